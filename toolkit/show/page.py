"""One self-contained HTML page of sections with text, tables and figures; it asks for nothing from outside."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from toolkit.files import write_atomically
from toolkit.results import DataFrame
from toolkit.show import matplotlib_backend, plotly_backend
from toolkit.show.captions import plain
from toolkit.show.layout import place
from toolkit.show.panels import Figure, Heatmap, Image, Scatter

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
