"""Figures of checks: faithfulness and randomised weights of maps, Gaussianity, collapse, heads, health, reach of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.explain.cam_maps import TELLING
from toolkit.explain.faithfulness import Faithfulness
from toolkit.explain.sanity import RandomisedWeights
from toolkit.measure.classifier_variability import ClassifierVariability
from toolkit.measure.collapse import Collapse
from toolkit.measure.gaussianity import Gaussianity
from toolkit.measure.regularizer_health import RegularizerHealth
from toolkit.methods.med_disseg.regularizer import ACTIVE_BAND, preset_distances
from toolkit.results import DataFrame
from toolkit.show.compose import composer
from toolkit.show.compose_explain import target_text
from toolkit.show.panels import Bars, Figure, Heatmap, Intervals, Lines, Panel, Series, histogram, number_text

_MAPS = 7  # more curves in a panel cannot be told apart
_RANKS = ("effective_rank", "participation_ratio")


@composer(Faithfulness)
def faithfulness(result: Faithfulness) -> Figure:
    """Mean deletion and insertion curves of the first seven maps, one panel each.

    Maps that say nothing (cancelled, empty, constant) enter no mean; a layer with no others is drawn under their name.
    """
    every = list(dict.fromkeys(result.numbers["name"]))
    names = every[:_MAPS]
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
        note = f"{meaning}; area of random orders {result.numbers[f'{kind}_random'].mean():.2f}"
        scores = "score of the region (image 1, baseline 0)"
        panels.append(Lines(title=kind, note=note, series=series, x_label="share of the voxels", y_label=scores))
    return Figure(
        title=f"Faithfulness of maps of {target_text(result.target)}",
        subtitle="Voxels are removed from the image, or put into the baseline, from the map's highest value to its lowest."
        + (f" The first {_MAPS} of {len(every)} maps." if len(every) > _MAPS else ""),
        rows=[panels],
    )


@composer(RandomisedWeights)
def randomised_weights(result: RandomisedWeights) -> Figure:
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
        note, width = f"passes up to 0.5; {int(table['maps'].sum())} maps", max(300, 60 * len(table))
        panel = Bars(title="similarity", note=note, series=[bars], y_range=(0.0, 1.0), legend=False, width=width)
    return Figure(title=f"Randomised-weights check of {target_text(result.target)}", subtitle=subtitle, rows=[[panel]])


def _cascade(table: Any) -> Heatmap:
    """Rows: steps from the output to the input; columns: layers of the maps."""
    steps, layers = (list(dict.fromkeys(table[name])) for name in ("shuffled_down_to", "layer"))
    grid = table.pivot(index="shuffled_down_to", columns="layer", values="similarity").loc[steps, layers]
    return Heatmap(
        title="similarity",
        note=f"passes up to 0.5 in the last row; {int(table['maps'].iloc[0])} maps a cell",
        values=grid.to_numpy(dtype=float),
        row_names=steps,
        column_names=layers,
        x_label="layer of the map",
        y_label="shuffled down to",
        annotate=True,
    ).sized(max(360, (16 + 7 * max(map(len, layers))) * len(layers)), max(120, 30 * len(steps)))


@composer(Gaussianity)
def gaussianity(result: Gaussianity) -> Figure:
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
    distance = Bars(title="distance to N(0, I)", note=f"{int(table['rows'].iloc[0])} rows", series=values)
    return Figure(
        title=f"Gaussianity of {result.layer}",
        subtitle="Sliced Epps-Pulley distance to N(0, I), the statistic of our reading of SegReg; low is closer to normal. "
        "Rows of one patient are not independent; N_eff estimates how many are (with few patients, roughly).",
        rows=[[distance, Lines(title="eigenvalues", note="all 1 for N(0, I)", series=spectrum, x_label="component")]],
    )


@composer(Collapse, several=True)
def collapses(results: Sequence[Any], names: Sequence[str]) -> Figure:
    """Collapse diagnostics of several networks: distances between rows, and every diagnostic within -1 and 1.

    Raises:
        ResultError: results of different layers, or none.
    """
    if not results or len({result.layer for result in results}) != 1 or len(results) != len(names):
        raise ResultError("These are not the diagnostics of one layer in several named networks.")
    histograms = [histogram(name, one.histogram, one.edges) for name, one in zip(names, results, strict=True)]
    shares = [
        {
            f"{k} / channels" if k in _RANKS else k: v / (one.channels if k in _RANKS else 1)
            for k, v in one.values.items()
        }
        for one in results
    ]
    keys = [key for key in shares[0] if all(-1 <= one.get(key, np.nan) <= 1.000001 for one in shares)]
    rows = [key.replace("_", " ") for key in keys]
    series = [Series(name=name, x=[one[k] for k in keys], y=rows) for name, one in zip(names, shares, strict=True)]
    low = min(0.0, *(one[key] for one in shares for key in keys))
    numbers = [number_text(float(one.values["uniformity"])) for one in results]
    uniform = ", ".join(map(" ".join, zip(names, numbers, strict=True)))
    distances = Lines(
        title="distances between rows",
        note="histograms of all pairs",
        series=histograms,
        x_label="Euclidean distance",
        y_label="share of pairs",
        legend=False,
    ).sized(280, 260)
    diagnostics = Intervals(
        title="diagnostics", note=f"uniformity: {uniform}", series=series, x_label="value", x_range=(low - 0.03, 1.05)
    ).sized(280, 260)
    first = results[0]
    return Figure(
        title=f"Collapse diagnostics of {first.layer}",
        subtitle=f"{first.rows} rows of {first.channels} channels each. A collapsed space has small distances, cosines near 1 and a "
        "rank near 1. Distances are in each network's own units.",
        rows=[[distances, diagnostics]],
    )


@composer(ClassifierVariability, several=True)
def classifier_variabilities(results: Sequence[Any], names: Sequence[str]) -> Figure:
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
    )


@composer(RegularizerHealth)
def regularizer_health(result: RegularizerHealth) -> Figure:
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
    )


@composer()
def active_band(features: Any, table: DataFrame, *, bins: int = 24) -> Figure:
    """Per preset, how far pairs of images lie apart in units of tau; the mark is where the loss's reach ends.

    Args:
        features: (B, C, *S) of one batch.
        table: `preset_check(features)`.
        bins: of the histograms.
    """
    panels: list[Panel | None] = []
    for row in table.to_dict("records"):
        distances = np.asarray(preset_distances(features, row["preset"]), dtype=float)
        top = 1.1 * max(ACTIVE_BAND, float(distances.max()))
        numbers = f"loss {row['loss']:.5f}, gradient {number_text(row['gradient_norm'])}"
        panel = Lines(
            title=f"{row['preset']}: {row['status']}",
            note=f"{numbers}, {row['active_pairs']:.0%} of pairs in reach",
            series=[histogram("pairs", *np.histogram(distances, bins, (0.0, top)))],
            x_label="distance / tau",
            y_label="share of pairs",
            x_range=(0.0, top),
            y_range=(0.0, 1.05),
            marks=[(ACTIVE_BAND, "")],
            legend=False,
        ).sized(250, 190)
        panels.append(panel)
    return Figure(
        title="Distances and reach of the dispersive loss",
        subtitle=f"A pair farther apart than {ACTIVE_BAND} tau adds less than 1e-8 to the mean inside the logarithm (dotted line). Every "
        "panel has its own axis.",
        rows=[panels],
        sources=({}, ()),
    )
