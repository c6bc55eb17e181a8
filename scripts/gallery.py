"""Draw docs/images/gallery/*.png and write docs/gallery.md; draw the README's pictures too.

    python -m scripts.gallery                # everything, half a minute on one core
    python -m scripts.gallery segreg-pca     # some figures, and the page

Every figure is made from the trained networks that come with the project, or from evidence/results. The page holds no number
but those of evidence/results/verdicts.csv; what agrees with the original and what does not was written looking at the pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

import toolkit as tk
from evidence.claims import claims as every_claim
from evidence.page import measured, written
from toolkit.features.provenance import provenance
from toolkit.files import write_atomically
from toolkit.show.matplotlib_backend import render

ROOT = Path(__file__).parents[1]
IMAGES, PAGE, RESULTS = ROOT / "docs" / "images", ROOT / "docs" / "gallery.md", ROOT / "evidence" / "results"
DPI = 100
Figure = Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One figure of a paper, in gallery.toml."""

    name: str  # of the file, and of the function here that draws it
    paper: str  # which paper
    figure: str  # which figure of it
    original: str  # what it shows there, in one line
    reading: str  # what agrees in ours and what does not
    claims: Sequence[str] = ()  # rows of verdicts.csv that test it
    notebook: tuple[str, str] | None = None  # its name and a part of its heading

    @property
    def draw(self) -> Callable[[], Figure] | None:
        """Makes it; None = not drawn."""
        return globals().get(self.name.replace("-", "_"))


@functools.cache
def network(name: str, seed: int = 0) -> Any:
    return tk.load_trained(name, seed=seed)


@functools.cache
def task(name: str) -> Any:
    return tk.load_task(**network(name).provenance["task"])


def home(name: str) -> list[Any]:
    return list(task(name).cases("test", site=network(name).provenance["sites"]))


def clear(cases: Sequence[Any]) -> Any:
    """The case whose smallest class is largest."""
    labels = [label for label in cases[0].classes if label]
    return max(cases, key=lambda one: min(int((one.label == label).sum()) for label in labels))


def rows(name: str, cases: Sequence[Any], layers: Sequence[str], samples: int = 12) -> Any:
    return tk.extract(network(name), cases, list(layers), pool="voxels", samples=samples)


def results(study: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{study}.csv")


def titled(figure: Figure, title: str) -> Figure:
    figure.title = title
    return figure


# SegReg ------------------------------------------------------------------------------------------------------------------
PAIR = {"plain": "phantom-cardiac/plain", "SegReg": "phantom-cardiac/segreg"}


def segreg_classifier() -> Figure:
    whole = task(PAIR["plain"])
    made = []
    for name in PAIR.values():
        here, away = (rows(name, whole.cases("test", site=site), ["head_input"], 32) for site in whole.sites[:2])
        made.append(tk.classifier_variability(here, "head_input", away, bootstraps=20, rows=2000))
    return tk.figures.classifier_variabilities(made, list(PAIR))


def site_bars(table: pd.DataFrame, metric: str, names: dict[str, str], title: str, label: str) -> Figure:
    """Mean over patients and its interval over the same, by site; several trainings are averaged within a patient."""
    chosen = table[table["metric"] == metric]
    sites = list(dict.fromkeys(chosen["site"]))
    series = []
    for arm, name in names.items():
        patients = chosen[chosen["arm"] == arm].groupby(["site", "subject"])["value"].mean()
        groups = [patients[site].to_numpy() for site in sites if site in patients.index.get_level_values(0)]
        means = [float(group.mean()) for group in groups]
        half = [
            student(len(group)) * float(group.std(ddof=1)) / math.sqrt(len(group)) if len(group) > 1 else math.nan
            for group in groups
        ]
        low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
        series.append(tk.figures.Series(name=name, x=sites, y=means, low=low, high=high))
    seeds = chosen["seed"].nunique()
    counts = "/".join(map(str, sorted({len(set(part["subject"])) for _, part in chosen.groupby("site")})))
    panel = tk.figures.Bars(
        title=label,
        note=f"mean and 95 % interval over {counts} patients a site; {seeds} training{'s' * (seeds > 1)} an arm",
        series=series,
        x_label="site",
        y_label=label,
        width=520,
        height=240,
    )
    return tk.figures.Figure(title, [[panel]], caption=f"from evidence/results, metric {metric}")


def student(patients: Any) -> Any:
    """How many standard errors a 95 % interval of so many patients reaches to either side."""
    return stdtrit(patients - 1, 0.975)


def segreg_forward() -> Figure:
    table = results("prostate-sequence").query("metric == 'forward'")
    sites = list(dict.fromkeys(table["site"]))  # from the second to the last
    series = []
    for arm, name, dash in (("plain", "plain", 1), ("segreg", "SegReg", 0)):
        patients = table[table["arm"] == arm].groupby(["site", "subject"])["value"].mean().groupby("site")
        mean, half = patients.mean()[sites], (student(patients.count()) * patients.sem())[sites]
        x = list(range(2, len(sites) + 2))
        series.append(tk.figures.Series(name=name, x=x, y=mean, low=mean - half, high=mean + half, dash=dash))
    counts = sorted(set(table.groupby("site")["subject"].nunique()))
    said = f"mean and 95 % interval over {'/'.join(map(str, counts))} patients a site; trainings an arm: {table['seed'].nunique()}"
    look = {"x_label": "task", "y_label": "Dice just before its turn", "width": 420, "height": 240}
    panel = tk.figures.Lines(title="Forward transfer, six generated prostate sites", note=said, series=series, **look)
    return tk.figures.Figure("Forward transfer by task", [[panel]], caption="from evidence/results, metric forward")


# name in the figure: study, and which of its base methods
SEQUENCES = {
    "generated hearts": ("sequence", None),
    "generated prostates": ("prostate-sequence", None),
    "generated hippocampi": ("hippocampus-sequence", None),
    "left ventricle, MR": ("mr-sequence", None),
    "nuclei, rehearsal": ("nuclei-sequence", 0),
    "nuclei, EWC": ("nuclei-sequence", 1),
    "nuclei, LwF": ("nuclei-sequence", 2),
}


def segreg_scatter() -> Figure:
    panels: list[Any] = []
    for metric, title in (("forward", "forward transfer"), ("backward", "backward transfer")):
        series, counts = [], []
        for number, (name, (study, strategy)) in enumerate(SEQUENCES.items()):
            points = transfer_points(study, strategy, metric)
            if points is not None:
                x, y, trainings = points
                counts.append(f"{name} {trainings}")
                series.append(tk.figures.Series(name=name, x=x, y=y, size=9, symbol=number % 4))
        look = {"joined": True, "y_label": "final mean Dice", "width": 380, "height": 300, "legend": bool(panels)}
        note, label = "1 = without, 2 = with SegReg", f"mean {title} (Dice)"
        panels.append(tk.figures.Scatter(title=f"mean {title}", note=note, series=series, x_label=label, **look))
    said = "Better is towards the top right. Sequential training where no other base method is named."
    caption = f"from evidence/results, mean over sites, patients and trainings; trainings an arm: {', '.join(counts)}"
    return tk.figures.Figure("Transfer against accuracy", [panels], subtitle=said, caption=caption)


def transfer_points(study: str, strategy: int | None, metric: str) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Transfer and final Dice of plain and SegReg, on so many trainings that both have; None where there is none."""
    if not (RESULTS / f"{study}.csv").exists():
        return None
    table = results(study)
    table = table if strategy is None else table[table["fold"] == strategy]
    seeds = [set(table.loc[table["arm"] == arm, "seed"]) for arm in ("plain", "segreg")]
    table = table[table["seed"].isin(seeds[0] & seeds[1])]
    if table.empty:
        return None
    means = table.groupby(["arm", "metric", "site"])["value"].mean().groupby(["arm", "metric"]).mean()
    moved, final = (np.array([means[arm, one] for arm in ("plain", "segreg")]) for one in (metric, "dice"))
    return moved, final, len(seeds[0] & seeds[1])


STAGES = {arm: [f"phantom-cardiac/sequence-{arm}-{stage}" for stage in (1, 2, 4)] for arm in ("plain", "segreg")}


@functools.cache
def stage_features() -> dict[str, list[Any]]:
    cases = task(STAGES["plain"][0]).cases("test", site="A")
    return {arm: [rows(name, cases, ["head_input"]) for name in names] for arm, names in STAGES.items()}


def segreg_pca() -> Figure:
    placed = [tk.project(features, "head_input") for features in stage_features().values()]
    figure = tk.figures.projections(placed, ["plain", "SegReg"], stages=["after A", "after A, B", "after A to D"])
    return titled(figure, "PCA before the head, after three stages of a sequence")


def segreg_drift() -> Figure:
    moved = [tk.drift(features, "head_input", bootstrap=100, null_splits=50) for features in stage_features().values()]
    return tk.figures.drifts(moved, ["plain", "SegReg"], measures=["frechet", "sliced_w2", "linear_cka"])


# SelfReg -----------------------------------------------------------------------------------------------------------------
SELF = {"plain": "phantom-cardiac/selfreg-plain", "SelfReg": "phantom-cardiac/selfreg"}


def selfreg_attention() -> Figure:
    first = network(SELF["plain"])
    layers = list(first.attention_layers)
    case = clear(home(SELF["plain"]))
    cams = [tk.grad_cam(network(one), case, layers, tk.NormalisedClassSum()) for one in SELF.values()]
    figure = tk.figures.grad_cams(cams, list(SELF), crop=False)
    blocks = [f"encoder {k}" for k in (1, 2, 3, 4)] + ["bottleneck"] + [f"decoder {k}" for k in (4, 3, 2, 1)]
    for row in figure.rows:
        for panel, name in zip(row[1:], blocks, strict=True):
            panel.title = name
    return titled(figure, "Grad-CAM of nine blocks, summed over the classes")


def selfreg_similarity() -> Figure:
    cases = home(SELF["plain"])[::3][:20]
    stores = [rows(name, cases, ["encoder.2", "bottleneck"]) for name in SELF.values()]
    pairs = [[tk.channel_similarity(one, layer) for layer in ("encoder.2", "bottleneck")] for one in stores]
    return titled(tk.figures.channel_similarities(pairs, list(SELF)), "Cosine of channels, a shallow and a deep block")


def qualitative(networks: dict[str, str], cases: Sequence[Any]) -> Figure:
    predictions = {
        name: [np.asarray(tk.predict(network(one), case)) for case in cases] for name, one in networks.items()
    }
    record = {"networks": {name: provenance(network(one)) for name, one in networks.items()}}
    return tk.figures.qualitative(cases, predictions, provenance=record)


def selfreg_masks() -> Figure:
    every = task(SELF["plain"])
    return qualitative(SELF, [clear(every.cases("test", site=site)) for site in every.sites[:3]])


def from_cards(names: dict[str, str], title: str) -> Figure:
    """Mean Dice by site of trained networks as their cards have it, every seed that is there."""
    known = tk.list_trained()
    rows_ = []
    for name, key in names.items():
        for seed in known.loc[known["name"] == key, "seed"]:
            scores = network(key, int(seed)).scores
            rows_ += [(name, int(seed), site, dice) for site, dice in zip(scores["site"], scores["dice"], strict=True)]
    table = pd.DataFrame(rows_, columns=["network", "seed", "site", "dice"])
    sites = list(dict.fromkeys(table["site"]))
    series = []
    for name in names:
        part = table[table["network"] == name].groupby("site")["dice"]
        mean, low, high = (getattr(part, how)().reindex(sites) for how in ("mean", "min", "max"))
        series.append(tk.figures.Series(name=f"{name} ({part.size().max()})", x=sites, y=mean, low=low, high=high))
    note = "mean over trainings (how many: in brackets), lines from the lowest to the highest"
    panel = tk.figures.Bars(
        title="mean Dice",
        note=note,
        series=series,
        x_label="site",
        y_label="Dice",
        y_range=(0.0, 1.0),
        width=560,
        height=240,
    )
    return tk.figures.Figure(
        title, [[panel]], caption="from the cards of the trained networks; trained on the first site"
    )


def selfreg_ablation() -> Figure:
    arms = {"plain": "plain", "SCR": "scr", "IFD": "ifd"}
    names = {name: f"phantom-cardiac/selfreg-{arm}" for name, arm in arms.items()} | {"both": SELF["SelfReg"]}
    return from_cards(names, "Ablation of the two losses")


# Latent-space augmentation -------------------------------------------------------------------------------------------------
FAST, COOPERATIVE = "phantom-cardiac/standard", "phantom-cardiac/cooperative"
SCHEMES, FRACTIONS = ("dropout", "channel", "spatial"), (0.0, 0.1, 0.3, 0.5)


@functools.cache
def masked(scheme: str, fraction: float, soft: bool = True, seed: int = 0) -> Any:
    return tk.mask_latent(network(FAST), clear(home(FAST)), scheme, fraction, soft=soft, seed=seed)


def grid(show: Sequence[str], title: str) -> Figure:
    return titled(tk.figures.masked_grid({s: [masked(s, p) for p in FRACTIONS] for s in SCHEMES}, show=show), title)


def latent_images() -> Figure:
    return grid(["image"], "Images decoded from masked image codes")


def latent_masks() -> Figure:
    return grid(["segmentation", "entropy"], "Segmentations of masked shape codes, and their entropy")


def latent_soft() -> Figure:
    drawn = {"hard": [masked("channel", p, False) for p in FRACTIONS[1:]]}
    drawn |= {f"soft {seed}": [masked("channel", p, True, seed) for p in FRACTIONS[1:]] for seed in (1, 2)}
    return titled(
        tk.figures.masked_grid(drawn, show=["image", "segmentation"]), "Channel masks: hard, and two soft draws"
    )


def latent_gallery() -> Figure:
    image = clear(home(FAST)).image[None]
    pictures = {"original": image}
    for method in ("random_windows", "random_convolution", "adversarial_noise", "adversarial_bias"):
        pictures[method.replace("_", " ")] = tk.augment_image(image, method, network(FAST), seed=0)
    pictures |= {f"latent: {scheme}": masked(scheme, 0.5).image[1] for scheme in SCHEMES}
    arrays = {name: np.asarray(one[0, 0]) for name, one in pictures.items()}
    drawn = tk.figures.gallery(arrays, side=110, provenance=masked("channel", 0.5).provenance)
    return titled(drawn, "Image-space and latent-space examples")


def latent_boxes() -> Figure:
    table = results("latent")
    arms = {
        "standard-fast": "standard, fast network",
        "standard": "standard, fast and slow",
        "cooperative-fast": "cooperative, fast network",
        "cooperative": "cooperative, fast and slow",
    }
    dice = table[table["metric"] == "dice"].assign(**{"class": "mean"})
    dice["case"] = dice["subject"] + "/" + dice["seed"].astype(str)
    scores = {name: dict(iter(dice[dice["arm"] == arm].groupby("site", sort=False))) for arm, name in arms.items()}
    figure = tk.figures.score_boxes(scores, note="from evidence/results")
    return titled(figure, "Dice by site, trained on the first: fast network, and fast and slow")


# Med-DisSeg --------------------------------------------------------------------------------------------------------------
DISSEG = {"without the loss": "phantom-glands/med-disseg-without", "with the loss": "phantom-glands/med-disseg"}


def disseg_masks() -> Figure:
    every = task(DISSEG["with the loss"])
    return qualitative(DISSEG, [every.cases("test", site=site)[0] for site in every.sites[:3]])


def disseg_features() -> Figure:
    cases = home(DISSEG["with the loss"])[:20]
    layer = tk.load_trained(DISSEG["with the loss"]).provenance["recipe"]["regularizers"]
    taps = json.dumps(layer)
    tap = re.search(r'"(?:layer|tap|taps)": \[?"([^"]+)"', taps)
    where = tap[1] if tap else "bottleneck"
    made = tk.project([rows(name, cases, [where]) for name in DISSEG.values()], where)
    return titled(
        tk.figures.projections([made], [""], stages=list(DISSEG)),
        "Features at the tap of the dispersive loss, one space",
    )


def disseg_domains() -> Figure:
    return site_bars(
        results("med-disseg"),
        "dice",
        {"without": "without the loss", "with": "with the loss"},
        "Across domains, trained on the first",
        "Dice",
    )


ENTRIES = [
    Entry(**one) for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["figure"]
]


def cams() -> Figure:
    """The README's picture: every block of two networks on one slice."""
    case = clear(home(PAIR["plain"]))
    blocks = ["encoder.1", "encoder.3", "bottleneck", "decoder.3", "decoder.1", "head"]
    made = [
        tk.grad_cam(network(name), case, blocks, tk.Region("LV", inside="reference"), method="hires_cam")
        for name in PAIR.values()
    ]
    return tk.figures.grad_cams(made, list(PAIR))


README = {"grad_cam": cams, "drift": segreg_drift}


def heading(notebook: str, words: str) -> tuple[str, str]:
    """The first heading of a notebook that holds these words, and its anchor on the site."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines()]
    for line in lines:
        if line.startswith("#") and words in line:
            title = line.lstrip("# ")
            return title, re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
    raise SystemExit(f"{notebook} has no heading with {words!r}")


def verdicts(claims: Sequence[str]) -> list[str]:
    """A line for every claim, as the page of the evidence has it."""
    known, named = written(RESULTS), {claim.id: claim for claim in every_claim()}
    lines = []
    for claim in claims:
        told, _, _, count, verdict = measured(named[claim], known[claim])
        table = re.sub(r"[^\w\- ]", "", named[claim].paper.lower()).replace(" ", "-")
        what = f"{verdict}: {told}, {count} trainings an arm" if verdict.startswith("**") else told or verdict
        lines.append(f"* [{claim}](evidence.md#{table}): {what}")
    return lines


def page() -> str:
    """docs/gallery.md."""
    lines = [
        "# Gallery: the papers' figures and ours",
        "",
        (
            "In the order of the papers' figures. Ours come from the [trained networks](start.md) of the generated tasks or from "
            '`evidence/results`, never from a network below its floor: such a picture would be stamped "untrained" across. The '
            "lines with numbers are those of the [evidence](evidence.md); this page is written by `python -m scripts.gallery`."
        ),
    ]
    paper = ""
    for entry in ENTRIES:
        if entry.paper != paper:
            paper = entry.paper
            lines += ["", f"## {paper}"]
        lines += ["", f"### {paper}, {entry.figure}", "", f"**The original.** {entry.original}", ""]
        if entry.draw is not None:
            lines += [f"![{paper}, {entry.figure}: ours](images/gallery/{entry.name}.png)", ""]
        lines += [f"**Ours.** {entry.reading}", ""]
        lines += [*verdicts(entry.claims), ""] if entry.claims else []
        if entry.notebook is not None:
            title, anchor = heading(*entry.notebook)
            lines += [
                f"Made step by step in [{entry.notebook[0]}, {title}](notebooks/{entry.notebook[0]}.ipynb#{anchor})."
            ]
    return "\n".join(lines).rstrip() + "\n"


def main(wanted: Sequence[str]) -> None:
    (IMAGES / "gallery").mkdir(exist_ok=True)
    drawn = {f"gallery/{one.name}": one.draw for one in ENTRIES if one.draw is not None} | dict(README)
    for name, draw in drawn.items():
        if wanted and Path(name).name not in wanted:
            continue
        figure = draw()
        if figure.stamp:
            raise SystemExit(f"{name} would be stamped {figure.stamp!r}: no figure leans on such a network.")
        write_atomically(IMAGES / f"{name}.png", render(figure, "png", dpi=DPI))
        print(name, flush=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
