"""Figures of checks: faithfulness and randomised weights of maps, Gaussianity, classifier variability, health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.explain.cam_maps import TELLING
from toolkit.explain.faithfulness import Faithfulness
from toolkit.explain.sanity import RandomisedWeights
from toolkit.measure.classifier_variability import ClassifierVariability
from toolkit.measure.gaussianity import Gaussianity
from toolkit.measure.regularizer_health import RegularizerHealth
from toolkit.show.captions import credits
from toolkit.show.compose import compose, for_networks
from toolkit.show.compose_explain import target_text
from toolkit.show.panels import Bars, Figure, Heatmap, Lines, Panel, Series, number_text


@compose.register
def faithfulness(result: Faithfulness, *, note: str = "", most: int = 7) -> Figure:
    """Mean deletion and insertion curves of every map, one panel each.

    Maps that say nothing (cancelled, empty, constant) enter no mean; a layer with no others is drawn under their name.

    Args:
        most: maps drawn at most.
    """
    every = list(dict.fromkeys(result.numbers["name"]))
    names = every[:most]
    panels: list[Panel | None] = []
    for kind, meaning in (("deletion", "lower is better"), ("insertion", "higher is better")):
        series = []
        for name in names:
            rows = result.numbers[result.numbers["name"] == name]
            silent = rows[~rows["status"].isin(TELLING)]
            cases = (silent if len(silent) == len(rows) else rows.drop(silent.index))["case"]
            words = f" ({', '.join(sorted(set(silent['status'])))})" if len(silent) == len(rows) else ""
            mean = np.mean([np.asarray(result.curves[f"{name}/{case}/{kind}"]) for case in cases], axis=0)
            series.append(Series(name=name + words, x=np.linspace(0, 1, len(mean)), y=mean))
        chance = float(result.numbers[f"{kind}_random"].mean())
        panels.append(
            Lines(
                title=kind,
                note=f"{meaning}; area of random orders {chance:.2f}",
                series=series,
                x_label="share of the voxels",
                y_label="score of the region (image 1, baseline 0)",
            )
        )
    return Figure(
        title=f"Faithfulness of maps of {target_text(result.target)}",
        subtitle="Voxels are removed from the image, or put into the baseline, from the map's highest value to its lowest."
        + (f" The first {most} of {len(every)} maps." if len(every) > most else ""),
        rows=[panels],
        **credits(result, note),
    )


@compose.register
def randomised_weights(result: RandomisedWeights, *, note: str = "") -> Figure:
    """Similarity of maps of the trained and of the shuffled network: one bar a layer, or for a cascade a table of steps."""
    table = result.table()
    subtitle = (
        "Mean |rank correlation| of the maps with those of copies with shuffled weights; high values mean that "
        "the map shows the image, not what the network learnt."
    )
    if "shuffled_down_to" in table:
        panel: Panel = _cascade(table)
        subtitle += " Weights are shuffled from the output on, row by row down to the input."
    else:
        bars = Series(name="trained against shuffled", x=list(table["layer"]), y=table["similarity"].to_numpy())
        panel = Bars(
            title="similarity",
            note=f"passes up to 0.5; {int(table['maps'].sum())} maps",
            series=[bars],
            y_range=(0.0, 1.0),
            legend=False,
            width=max(300, 60 * len(table)),
        )
    return Figure(
        title=f"Randomised-weights check of {target_text(result.target)}",
        subtitle=subtitle,
        rows=[[panel]],
        **credits(result, note),
    )


def _cascade(table: Any) -> Heatmap:
    """Rows: steps from the output to the input; columns: layers of the maps."""
    steps, layers = (list(dict.fromkeys(table[name])) for name in ("shuffled_down_to", "layer"))
    grid = table.pivot(index="shuffled_down_to", columns="layer", values="similarity").loc[steps, layers]
    longest = max(len(name) for name in layers)
    return Heatmap(
        title="similarity",
        note=f"passes up to 0.5 in the last row; {int(table['maps'].iloc[0])} maps a cell",
        values=grid.to_numpy(dtype=float),
        row_names=steps,
        column_names=layers,
        annotate=True,
        y_label="shuffled down to",
        x_label="layer of the map",
        width=max(360, (16 + 7 * longest) * len(layers)),
        height=max(120, 30 * len(steps)),
    )


@compose.register
def gaussianity(result: Gaussianity, *, note: str = "") -> Figure:
    """The statistic of every group of rows against its null, and the spectrum of the covariance."""
    table = result.table()
    groups = list(table["group"])
    values = [
        Series(name=label, x=groups, y=table[column].to_numpy())
        for label, column in (("this layer", "T_over_N"), ("normal, at N_eff", "null_eff"), ("normal, 95 %", "null_95"))
    ]
    eigenvalues = np.asarray(result.eigenvalues)
    place = np.arange(1, len(eigenvalues) + 1)
    spectrum = [
        Series(name="covariance", x=place, y=eigenvalues),
        Series(name="N(0, I)", x=place, y=np.ones(len(place)), dash=1),
    ]
    return Figure(
        title=f"Gaussianity of {result.layer}",
        subtitle="Sliced Epps-Pulley distance to N(0, I), the statistic of our reading of SegReg; low is closer to normal. "
        "Rows of one patient are not independent; N_eff estimates how many are (with few patients, roughly).",
        rows=[
            [
                Bars(title="distance to N(0, I)", note=f"{int(table['rows'].iloc[0])} rows", series=values),
                Lines(title="eigenvalues", note="all 1 for N(0, I)", series=spectrum, x_label="component"),
            ]
        ],
        **credits(result, note),
    )


@for_networks(ClassifierVariability)
def classifier_variabilities(results: Sequence[Any], names: Sequence[str], *, note: str = "") -> Figure:
    """Refitted heads of several networks side by side (SegReg, Fig. 1, as a measurement)."""
    pairs, where = list(zip(results, names, strict=True)), ["source", "target"]
    angles = [Series(name=name, x=results[0].class_names, y=np.asarray(one.angles)) for one, name in pairs]
    disagreement, accuracy = (
        [Series(name=name, x=where, y=[getattr(one, f"{side}_{field}") for side in where]) for one, name in pairs]
        for field in ("disagreement", "accuracy")
    )
    mean = ", ".join(f"{name} {number_text(float(one.angles.mean()))}".strip() for one, name in pairs)
    panels: list[Panel | None] = [
        Bars(title="angle between heads", note=f"degrees; mean {mean}", series=angles, legend=False, width=300),
        Bars(title="disagreement", note="share of rows", series=disagreement, legend=False, width=200),
        Bars(title="balanced accuracy", note="mean over heads", series=accuracy, y_range=(0.0, 1.0), width=200),
    ]
    return Figure(
        title=f"Variability of a classifier refitted on {results[0].layer}",
        subtitle="Linear heads fitted on bootstraps of class-balanced features of the source site: how far apart they are, "
        "and how often two of them disagree, at home and on another site.",
        rows=[panels],
        **credits(results, note, names),
    )


@compose.register
def regularizer_health(result: RegularizerHealth, *, note: str = "") -> Figure:
    """Gradient ratios over the steps of a run."""
    series = [
        Series(name=str(name), x=part["step"].to_numpy(), y=part["ratio"].to_numpy())
        for name, part in result.ratios.groupby("regularizer", sort=False)
    ]
    return Figure(
        title="Regularizer health",
        subtitle="Norm of the regularizer's gradient divided by the objective's at the tapped layers: dead below 1e-8, "
        "dominant above 1.",
        rows=[[Lines(title="gradient ratio", series=series, x_label="step", log_y=True, width=420)]],
        **credits(result, note),
    )
