"""`report`: a training run, a sequence, results or sections of one's own as one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.features.provenance import weights_hash
from toolkit.files import write_atomically
from toolkit.results import DataFrame, Result, as_table
from toolkit.show import matplotlib_backend, plotly_backend
from toolkit.show.captions import plain
from toolkit.show.compose_training import scores_by_site, training_curves, volume_scores
from toolkit.show.figures import compose
from toolkit.show.layout import place
from toolkit.show.panels import Figure, Heatmap, Image, Scatter
from toolkit.training.run import Run
from toolkit.training.sequence import Stages

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclasses.dataclass
class Section:
    """One part of a page."""

    title: str  # heading
    text: str = ""  # paragraphs, separated by empty lines; plain text
    figures: Sequence[Figure] = ()  # each brings its own title, explanation and provenance
    tables: Sequence[tuple[str, DataFrame]] = ()  # (caption, table), drawn after the figures


def write_page(title: str, summary: str, sections: Sequence[Section], path: Path, *, interactive: bool = True) -> Path:
    """Write the page at once, from a title, a paragraph and sections; nothing half-written is ever seen.

    `interactive` adds an interactive version below each static picture (the page grows by 5 MB once).
    """
    import datetime

    import jinja2
    import torch
    from plotly.offline import get_plotlyjs

    import toolkit

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"plain": plain, "number": _number, "drawn": _drawn}
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        summary=summary,
        sections=sections,
        interactive=interactive,
        plotly=get_plotlyjs() if interactive else "",
        footer=f"toolkit {toolkit.__version__}, torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}",
    )
    return write_atomically(path, text, parents=True)


def _drawn(figure: Figure) -> dict[str, object]:
    """What the template writes of a figure; its interactive version is drawn where the template asks for it."""
    bare = dataclasses.replace(figure, title="", subtitle="", caption="", provenance="")
    heavy = any(isinstance(panel, (Image, Heatmap, Scatter)) for panel in figure.panels())
    kind, mime = ("png", "image/png") if heavy else ("svg", "image/svg+xml")
    data = base64.b64encode(matplotlib_backend.render(bare, kind, dpi=160)).decode()
    return {
        "title": figure.title,
        "subtitle": figure.subtitle,
        "caption": plain(figure.caption).splitlines(),
        "provenance": plain(figure.provenance).splitlines(),
        "panels": "; ".join(filter(None, (f"{p.title} {p.note}".strip() for p in figure.panels()))),
        "width": place(bare).width,
        "data": f"data:{mime};base64,{data}",
        "plot": lambda: plotly_backend.draw(bare).to_json().replace("</", "<\\/"),
    }


def _number(value: object) -> str | None:
    """A number as a table shows it; None for anything else."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "dtype")):
        return None
    number = float(value)  # type: ignore[arg-type]
    if number != number:
        return "–"
    if number.is_integer() or abs(number) >= 1000:
        return f"{number:.0f}"
    return f"{number:.3g}"


def report(
    content: Run | Stages | Result | Figure | Section | Sequence[Any],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    summary: str = "",
    split: str = "val",
    interactive: bool = True,
) -> Path:
    """Write one HTML page that needs no network, no other file and, for reading, no JavaScript.

    Each figure is a static picture with its provenance in text; below it an interactive version can be opened.

    Args:
        content: a run, a sequence of runs, any result, a `Figure`, a `Section`, or several of these.
        path: the .html file.
        title: title of the page; default says what the content is.
        summary: a paragraph below the title.
        split: split on which runs are scored; "val", so that no report looks at the test split unasked.
        interactive: add the interactive versions (5 MB more, once a page).

    Returns:
        The path.

    Raises:
        ResultError: content that cannot be shown, or another suffix than .html.

    Example:
        >>> page = tk.report(tk.drift([features, later], "bottleneck"), "drift.html", interactive=False)
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ResultError("A report is an HTML page.", where=str(path), fix="Use a path ending in .html.")
    items = list(content) if isinstance(content, (list, tuple)) else [content]
    if not items:
        raise ResultError("There is nothing to report on.", where="report(content=...)")
    runs = [item for item in items if isinstance(item, Run)]
    sections = [Section("Runs side by side", tables=[("Runs", runs_table(runs, split))])] if len(runs) > 1 else []
    sections += [section for item in items for section in _sections(item, split)]
    first = items[0]
    if isinstance(first, (Run, Stages)):
        own = f"Report on {first.path.name}"
    else:
        own = first.title if isinstance(first, (Figure, Section)) else f"Report: {getattr(first, 'kind', 'results')}"
    return write_page(title or own, summary, sections, path, interactive=interactive)


def _sections(item: Any, split: str) -> list[Section]:
    if isinstance(item, Section):
        return [item]
    if isinstance(item, (Run, Stages)):
        return _of_training(item, split)
    if isinstance(item, Figure):
        return [Section(item.title, figures=[item])]
    if isinstance(item, Result):
        figures = [] if compose.dispatch(type(item)) is compose.dispatch(object) else [compose(item)]
        return [Section(item.kind.replace("_", " ").capitalize(), figures=figures, tables=[("Numbers", item.table())])]
    fix = "Pass a run, a sequence, results, figures or toolkit.show.report.Section objects."
    raise ResultError(f"A {type(item).__name__} cannot be reported on.", fix=fix)


def run_record(run: Run) -> dict[str, Any]:
    """What a run's figures say about it: settings, selection rule, data, weights and environment."""
    record = run.directory.record()
    config = {key: record["config"][key] for key in ("steps", "batch_size", "seed", "precision", "learning_rate")}
    names = [regularizer.name for regularizer in run.regularizers] or ["none"]
    return {
        "run": run.path.name,
        "weights": weights_hash(run.model),
        "data": record.get("data"),
        "regularizer": names,
        "site": run.site or "all",
        **config,
        "selected step": run.selected_step,
        "selection": record["selection"]["rule"],
        "versions": {key: record["environment"].get(key) for key in ("toolkit", "torch")},
        "device": record["environment"].get("device"),
        "threads": record["environment"].get("threads"),
    }


def settings_table(record: dict[str, Any]) -> DataFrame:
    """A record as a table of two columns."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= value if isinstance(value, dict) else {key: value}
    texts = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in flat.values()]
    return as_table({"setting": list(flat), "value": texts})


def runs_table(runs: Sequence[Run], split: str = "val") -> DataFrame:
    """A row a run: its mean Dice (classes, then volumes; a missed organ counts 0) and what it was trained with.

    A run without cases in the split has no score.
    """
    rows = []
    for run in runs:
        config, cases = run.config, run.task.cases(split, site=run.site)
        scores = volume_scores(run.evaluate(split, run.site, metrics=("dice",))) if cases else np.zeros(0)
        patch = config.patch_size or getattr(run.task, "patch_size", None)
        row = {
            "run": run.path.name,
            f"dice ({split})": round(float(scores.mean()), 4) if len(scores) else None,
            "volumes": len(scores),
            "regularizer": ", ".join(one.name for one in run.regularizers) or "none",
            "loss": _named(run.directory.record()["objects"]["objective"]),
            "patch": "whole" if patch is None else " x ".join(map(str, patch)),
        }
        settings = config.to_dict()  # what is one's own is a record there
        row |= {name: _named(settings[name]) for name in ("schedule", "learning_rate", "augmentation", "steps", "seed")}
        rows.append(row | {"selected step": run.selected_step})
    return as_table(rows)


def _named(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    name = str(entry.get("name") or entry.get("class") or entry.get("foreign"))
    settings = ", ".join(f"{key}={value}" for key, value in entry.get("arguments", {}).items())
    return f"{name} ({settings})" if settings else name


def _of_training(item: Run | Stages, split: str) -> list[Section]:
    """The curves and the scores of a run, or of a sequence of runs."""
    name, runs = item.path.name, item.stages if isinstance(item, Stages) else [item]
    record = run_record(runs[-1])
    histories = {name: [run.history for run in runs]}
    tables = []
    if isinstance(item, Stages):
        text, sites = f"One site after another: {', '.join(item.sites)}.", item.sites
        settings = "Settings of the last stage"
        told = f"Dice on the {split} split; stage -1 is the network before training."
        stages = item.evaluate(split, metrics=("dice",))
        scores: DataFrame | None = stages[stages["stage"] == len(runs) - 1]
        tables = [("Mean Dice after each stage (row), by site (column)", item.dice(split).reset_index())]
    else:
        text = "Every term of the loss as it was logged, and the validation scores that selected the weights."
        settings, sites, told = "Settings", (), f"Dice on the {split} split."
        cases = item.task.cases(split, site=item.site)
        scores = item.evaluate(split, item.site, metrics=("dice",)) if cases else None
    curves = training_curves(histories, stages=sites, provenance=record)
    sections = [Section(f"Training of {name}", text, [curves], [(settings, settings_table(record))])]
    if scores is not None:
        figure = scores_by_site({name: scores}, provenance={**record, "split": split})
        sections.append(Section(f"Scores of {name}", told, [figure], tables))
    return sections
