"""Draw docs/images/gallery/*.png and write docs/gallery.md; draw the README's pictures too.

    python scripts/gallery.py                # everything, two minutes on one core
    python scripts/gallery.py segreg-pca     # some figures, and the page

Every figure is made from the trained networks that come with the project, or from evidence/results. The page holds no number
but those of evidence/results/verdicts.csv; what agrees with the original and what does not was written looking at the pictures.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import toolkit as tk
from toolkit.features.provenance import provenance
from toolkit.show.matplotlib_backend import write

ROOT = Path(__file__).parents[1]
IMAGES, PAGE, RESULTS = ROOT / "docs" / "images", ROOT / "docs" / "gallery.md", ROOT / "evidence" / "results"
DPI = 100
Figure = Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One figure of a paper.

    Attributes:
        name: of the file.
        paper: which paper.
        figure: which figure of it.
        original: what it shows there, in one line.
        reading: what agrees in ours and what does not.
        claims: rows of verdicts.csv that test it.
        notebook: name of the notebook and a part of its heading.
        draw: makes it; None = not drawn.
    """

    name: str
    paper: str
    figure: str
    original: str
    reading: str
    claims: tuple[str, ...] = ()
    notebook: tuple[str, str] | None = None
    draw: Callable[[], Figure] | None = None


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
        groups = [patients[site].to_numpy() for site in sites if site in patients.index.levels[0]]
        means = [float(group.mean()) for group in groups]
        half = [
            1.96 * float(group.std(ddof=1)) / math.sqrt(len(group)) if len(group) > 1 else math.nan for group in groups
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


def segreg_forward() -> Figure:
    return site_bars(
        results("sequence"),
        "forward",
        {"plain": "plain", "segreg": "SegReg"},
        "Forward transfer by task",
        "Dice difference",
    )


def segreg_scatter() -> Figure:
    table = results("sequence")
    panels = []
    for metric, title in (("forward", "forward transfer"), ("backward", "backward transfer")):
        points = {
            arm: [
                table[(table["arm"] == arm) & (table["metric"] == one)].groupby("site")["value"].mean().mean()
                for one in (metric, "dice")
            ]
            for arm in ("plain", "segreg")
        }
        x, y = (np.array([points[arm][axis] for arm in ("plain", "segreg")]) for axis in (0, 1))
        series = [tk.figures.Series(name="sequential training", x=x, y=y, size=9)]
        limits = [(float(v.min()) - 0.04, float(v.max()) + 0.04) for v in (x, y)]
        panels.append(
            tk.figures.Scatter(
                title=f"mean {title}",
                note="1 = without, 2 = with SegReg",
                series=series,
                joined=True,
                legend=False,
                x_label=f"mean {title} (Dice)",
                y_label="final mean Dice",
                x_range=limits[0],
                y_range=limits[1],
                width=330,
                height=240,
            )
        )
    caption = f"from evidence/results, {table['seed'].nunique()} training(s) an arm"
    return tk.figures.Figure(
        "Transfer against accuracy", [panels], subtitle="Better is towards the top right.", caption=caption
    )


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
    return tk.figures.masked_grid({s: [masked(s, p) for p in FRACTIONS] for s in SCHEMES}, show=show, title=title)


def latent_images() -> Figure:
    return grid(["image"], "Images decoded from masked image codes")


def latent_masks() -> Figure:
    return grid(["segmentation", "entropy"], "Segmentations of masked shape codes, and their entropy")


def latent_soft() -> Figure:
    drawn = {"hard": [masked("channel", p, False) for p in FRACTIONS[1:]]}
    drawn |= {f"soft {seed}": [masked("channel", p, True, seed) for p in FRACTIONS[1:]] for seed in (1, 2)}
    return tk.figures.masked_grid(
        drawn, show=["image", "segmentation"], title="Channel masks: hard, and two soft draws"
    )


def latent_gallery() -> Figure:
    image = clear(home(FAST)).image[None]
    pictures = {"original": image}
    for method in ("random_windows", "random_convolution", "adversarial_noise", "adversarial_bias"):
        pictures[method.replace("_", " ")] = tk.augment_image(image, method, network(FAST), seed=0)
    pictures |= {f"latent: {scheme}": masked(scheme, 0.5).image[1] for scheme in SCHEMES}
    arrays = {name: np.asarray(one[0, 0]) for name, one in pictures.items()}
    return tk.figures.gallery(
        arrays, side=110, title="Image-space and latent-space examples", provenance=masked("channel", 0.5).provenance
    )


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


ENTRIES = (
    Entry(
        "segreg-classifier",
        "SegReg",
        "Fig. 1",
        "A drawing: class blobs inside a circle of constrained latent space, with decision boundaries of two classifiers that nearly coincide.",
        "A drawing has no number to agree with, so its claim is measured: heads refitted on bootstraps of the features.",
        ("segreg-classifier", "segreg-anchored"),
        ("10_segreg", "Fig. 1"),
        segreg_classifier,
    ),
    Entry(
        "segreg-forward",
        "SegReg",
        "Fig. 2a",
        "Forward transfer by task on the prostate sequence, a dashed curve a base method and a solid one, above it, with SegReg.",
        "Bars instead of curves, on four generated cardiac sites instead of prostate sites, from one site to the next. Where intervals overlap, no curve lies above the other.",
        ("segreg-forward-generated",),
        ("11_segreg_appendix", "Fig. 2"),
        segreg_forward,
    ),
    Entry(
        "segreg-scatter",
        "SegReg",
        "Fig. 2b, c",
        "Final Dice against forward (b) and backward (c) transfer; every base method moves to the top right with SegReg.",
        "One base method, sequential training on generated sites. It moves as in the paper; the verdicts say whether by more than chance.",
        ("segreg-final-generated", "segreg-backward-generated"),
        ("11_segreg_appendix", "Fig. 2"),
        segreg_scatter,
    ),
    Entry(
        "segreg-pca",
        "SegReg",
        "Fig. 3",
        "PCA of the penultimate features over the stages, without and with SegReg; with it the clouds stay where they were.",
        "The layout agrees. The clouds of both networks move when the site changes; how far is read off the next figure, not off a plane.",
        ("segreg-drift-raw", "segreg-drift-rotation-free"),
        ("10_segreg", "Fig. 3"),
        segreg_pca,
    ),
    Entry(
        "segreg-drift",
        "SegReg",
        "Fig. 3, in numbers",
        "None: the paper shows the plane only.",
        "Drift in the full space, with intervals over patients and, in grey, what two halves of the patients show without any training.",
        ("segreg-drift-raw", "segreg-drift-rotation-free"),
        ("10_segreg", "Fig. 3"),
        segreg_drift,
    ),
    Entry(
        "selfreg-attention",
        "SelfReg-UNet",
        "Fig. 1b",
        "Grad-CAM of nine blocks of a CNN and a Swin U-Net: early blocks fire on outline and background, only the last decoder on all organs.",
        "Agrees in the last decoder block, which covers all organs, in early blocks that answer to outlines, and in encoder 4 of the plain network, hot at the body wall. The grid at decoder 2 is not seen.",
        ("selfreg-attention",),
        ("20_selfreg_unet", "Fig. 1b"),
        selfreg_attention,
    ),
    Entry(
        "selfreg-similarity",
        "SelfReg-UNet",
        "Fig. 1c",
        "Similarity of 30 channels of a shallow and a deep set, from 0 to 1: the deep set is more alike.",
        "Against the paper's claim: with both losses channels are more alike, not less. No code was published for the figure; the cosine over pixels is our definition.",
        ("selfreg-redundancy",),
        ("20_selfreg_unet", "Fig. 1c"),
        selfreg_similarity,
    ),
    Entry(
        "selfreg-masks",
        "SelfReg-UNet",
        "Fig. 3, 4",
        "Predictions beside the reference; contours with SelfReg lie nearer to it.",
        "One image a site, the first site being the one trained on. On it both networks follow the reference, and on others they are right and wrong together.",
        ("selfreg-unet-generated",),
        ("20_selfreg_unet", "Fig. 3 and 4"),
        selfreg_masks,
    ),
    Entry(
        "selfreg-ablation",
        "SelfReg-UNet",
        "Fig. 5",
        "Ablation: both losses, then SCR, then IFD, then plain, in this order, on two data sets of histology.",
        "The order is not seen: at home all arms are within the spread of seeds.",
        ("selfreg-unet-generated", "selfreg-scr-alone", "selfreg-ifd-alone", "selfreg-both-beat-scr"),
        ("21_selfreg_appendix", "Plain, SCR, IFD"),
        selfreg_ablation,
    ),
    Entry(
        "latent-images",
        "Latent-space augmentation",
        "released demonstration",
        "Images decoded from masked codes: already blurred without any mask; dropout makes blobs, channels ripple, positions lose contrast locally.",
        "Agrees in kind: without skip connections the image is blurred from the start, and dropout changes it most.",
        (),
        ("30_latent_augmentation", "Damaged codes"),
        latent_images,
    ),
    Entry(
        "latent-masks",
        "Latent-space augmentation",
        "Fig. 3",
        "Label maps and entropy of masked codes: dropout and channel masks over-segment, spatial masks under-segment.",
        "One image: agrees for spatial masks, which under-segment, and in the rise of entropy with the fraction, but not for dropout. The verdicts count over patients and seeds.",
        ("latent-dropout-overfills", "latent-channel-overfills", "latent-spatial-underfills"),
        ("30_latent_augmentation", "Damaged codes"),
        latent_masks,
    ),
    Entry(
        "latent-soft",
        "Latent-space augmentation",
        "Fig. 2",
        "Soft masks against hard ones: milder, and different in every draw.",
        "Agrees: soft masks change less; their draws differ little, since they share the masked channels.",
        (),
        ("30_latent_augmentation", "Soft against hard"),
        latent_soft,
    ),
    Entry(
        "latent-gallery",
        "Latent-space augmentation",
        "Fig. 7",
        "One slice under four image-space augmentations and under latent masks.",
        "Agrees in kind: adversarial noise is invisible, bias fields are smooth, latent examples are blurred by the bottleneck.",
        ("latent-beats-windows", "latent-beats-convolution", "latent-beats-noise", "latent-beats-bias"),
        ("30_latent_augmentation", "changes of the image"),
        latent_gallery,
    ),
    Entry(
        "latent-boxes",
        "Latent-space augmentation",
        "Fig. 5",
        "Box plots by test set, standard and cooperative training, without and with the slow network: cooperative training is ahead away from home.",
        "Not its data. The verdicts weigh the differences between the boxes.",
        ("latent-unseen-generated", "latent-home", "latent-slow-helps", "latent-slow-only-after-cooperative"),
        ("30_latent_augmentation", "Robustness"),
        latent_boxes,
    ),
    Entry(
        "latent-seventy",
        "Latent-space augmentation",
        "Fig. 8",
        "The same with seventy training subjects.",
        "Not drawn: it needs the official data.",
        ("latent-seventy-subjects",),
    ),
    Entry(
        "disseg-masks",
        "Med-DisSeg",
        "qualitative grid",
        "Rows of polyps and lesions, columns of networks: the outlines with the loss are cleanest.",
        "Generated glands, one image a site. At home both networks find the glands, with outlines that hardly differ; away both merge neighbouring glands.",
        ("disseg-helps-home",),
        ("40_med_disseg", "qualitative grid"),
        disseg_masks,
    ),
    Entry(
        "disseg-features",
        "Med-DisSeg",
        "feature scatter",
        "Scattered points with the loss, clumps without; the released script draws random numbers under one of the titles.",
        "Deliberately not that construction: both networks in one space, each under its own name. The points spread wider with the loss; that can be scale alone, so the verdicts use measures that do not see it.",
        ("disseg-disperses-rank", "disseg-disperses-cosine"),
        ("40_med_disseg", "disperse?"),
        disseg_features,
    ),
    Entry(
        "disseg-domains",
        "Med-DisSeg",
        "Tables 1 and 2",
        "Scores across domains, higher with the loss.",
        "Other data and sites. The verdicts weigh the differences, at home and away.",
        ("disseg-helps-home", "disseg-helps-unseen"),
        ("41_med_disseg_appendix", "architectures"),
        disseg_domains,
    ),
    Entry(
        "disseg-parameters",
        "Med-DisSeg",
        "ablation panels",
        "Validation curves by weight, layer and temperature.",
        "Not drawn here: the notebook trains a few settings in its long form.",
        ("disseg-released-gradient",),
        ("41_med_disseg_appendix", "ablations, to be trained"),
    ),
)


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
    """A line for every claim, all numbers from verdicts.csv."""
    with (RESULTS / "verdicts.csv").open(encoding="utf-8") as stream:
        known = {row["claim"]: row for row in csv.DictReader(stream)}
    lines = []
    for claim in claims:
        row = known[claim]
        numbers = ""
        if row["low"]:
            low, middle, high = (
                f"{float(row[key]):.3f}".replace("-", "\N{MINUS SIGN}") for key in ("low", "difference", "high")
            )
            what = "difference" if row["second"] else "value"
            numbers = f": {what} {middle} ({low} to {high}), {row['patients']} patients, {row['trainings']} of {row['planned']} trainings an arm"
        lines.append(f"* [{claim}](evidence.md): {row['verdict']}{numbers}")
    return lines


def page() -> str:
    """docs/gallery.md."""
    lines = [
        "# Gallery: the papers' figures and ours",
        "",
        (
            "In the order of the papers' figures. Ours come from the [trained networks](start.md) of the generated tasks or from "
            '`evidence/results`, never from a network below its floor: such a picture would be stamped "untrained" across. The '
            "lines with numbers are those of the [evidence](evidence.md); this page is written by `python scripts/gallery.py`."
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
        write(figure, IMAGES / f"{name}.png", dpi=DPI)
        print(name, flush=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
