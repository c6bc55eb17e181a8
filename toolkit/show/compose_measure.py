"""Figures of stored features: channel similarity, projections, and what each channel does for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.features.store import Features
from toolkit.measure.projection import Projection
from toolkit.measure.similarity import ChannelSimilarity
from toolkit.show.compose import composer
from toolkit.show.panels import Figure, Heatmap, Panel, Scatter, Series, in_rows, range_note, symmetric_limits

_AXES = {"pca": "PC", "lda": "LD", "head": "head axis", "umap": "UMAP", "tsne": "t-SNE"}
_ORDERED = 512  # channels; the best order of the leaves of a larger tree takes minutes
_ORDER = (
    "Rows and columns are channels, like ones side by side (average linkage). Off the diagonal, 1 = redundant and 0 = "
    "unrelated; the redundancy is the mean off the diagonal, averaged over images."
)
_POINTS = 900  # per stage and panel; more only hide each other


@composer(ChannelSimilarity, several=True)
def channel_similarities(results: Sequence[Any], names: Sequence[str], *, side: int | None = None) -> Figure:
    """The whole matrix of the living channels in clustered order, in the result's form and on its fixed colour range.

    Args:
        results: one a network, or for each the results of several layers; a row a network, a column a layer.
        side: edge of a matrix in pixels; None = 300 of one alone, 220 of several.

    Raises:
        ResultError: names and rows do not match.
    """
    if len(results) != len(names):
        raise ResultError(f"{len(results)} rows of matrices need as many names, not {len(names)}.")
    networks = [[one] if isinstance(one, ChannelSimilarity) else list(one) for one in results]
    alone = len(results) == 1 and networks[0][0] is results[0]
    side = side or (300 if alone else 220)
    return Figure(
        title=f"Channel similarity of {results[0].layer or 'a layer'}" if alone else "Channel similarity",
        subtitle=_ORDER if alone else f"One row a network, one column a layer. {_ORDER}",
        rows=[[_matrix(result, side, name) for result in row] for row, name in zip(networks, names, strict=True)],
        sources=([row[0] for row in networks], [] if alone else names),
    )


def _clustered(values: np.ndarray) -> np.ndarray:
    """Channels in the order of an average-linkage tree over 1 - similarity: groups of like channels become squares."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(values) < 3 or not np.isfinite(values).all():
        return np.arange(len(values))
    distance = 1 - (values + values.T)[np.triu_indices(len(values), 1)] / 2
    return leaves_list(linkage(np.clip(distance, 0, None), "average", optimal_ordering=len(values) <= _ORDERED))


def _matrix(result: Any, side: int, name: str) -> Heatmap:
    values = np.asarray(result.matrix, dtype=float)
    off, signed = values[~np.eye(len(values), dtype=bool)], result.form != "absolute"
    order = _clustered(values)
    dead = f", {len(result.dead)} dead" if len(result.dead) else ""
    return Heatmap(
        title=f"{name}: {result.layer}" if name else result.layer,
        note=f"{result.form}, redundancy {result.redundancy:.2f}, off-diagonal {range_note(off)}{dead}",
        values=values[np.ix_(order, order)],
        limits=(-1.0, 1.0) if signed else (0.0, 1.0),
        scale="diverging" if signed else "sequential",
        row_names=[],
        column_names=[],
        x_label=f"{len(values)} channels",
    ).sized(side, side)


@composer(Projection, several=True)
def projections(results: Sequence[Any], names: Sequence[str], *, stages: Sequence[str] = ()) -> Figure:
    """One row a network, one column a stage in the same axes and limits, and last the path of the class centroids.

    Rows are coloured by class; a large marker is the centroid of one.

    Raises:
        ResultError: a projection onto one axis.
    """
    if any(coordinates.shape[1] < 2 for result in results for coordinates in result.coordinates):
        fix = "Project with components=2, or use .points() and .table()."
        raise ResultError("A figure of a projection needs two axes.", where="project(components=1)", fix=fix)
    rows: list[list[Panel | None]] = []
    for result, name in zip(results, names, strict=True):
        points = np.concatenate([np.asarray(c)[:, :2] for c in result.coordinates])
        limits = _square(points.min(axis=0), points.max(axis=0), 0.55)
        count = len(result.coordinates)
        panels: list[Panel | None] = [_cloud(result, s, name, stages, limits) for s in range(count)]
        if count > 1:
            panels.append(_paths(result, name))
        for panel in panels[:-1] if not rows else panels:
            assert isinstance(panel, Scatter)
            panel.legend = False
        rows.append(panels)
    first = results[0]
    basis = {
        "shared": "axes fitted on all stages together",
        "stage1": "axes fitted on stage 1 and frozen",
        "per_stage": "axes fitted on each stage and rotated onto stage 1: rotations are hidden, drift cannot be read off",
    }[first.basis]
    limit = "A plane shows part of the variance only: drift is measured in the full space."
    if first.method in ("umap", "tsne"):
        basis = basis.replace("axes", "map")
        limit = "The map keeps neighbours, not distances: drift is measured in the full space."
    pools = {one.get("parameters", {}).get("pool") for one in first.provenance.get("stages", ())}
    pooled = ", ".join(sorted(pools - {None, "voxels", "boundary"}))
    point = f"One point is one row of {pooled} features" if pooled else "One point is one voxel"
    return Figure(
        title=f"{first.method.upper()} of the features of {first.layer}",
        subtitle=f"{point}; {basis}; large markers are class centroids. The stages of a row share limits. {limit}",
        rows=rows,
    )


def _square(low: np.ndarray, high: np.ndarray, share: float) -> list[tuple[float, float]]:
    """Limits of both axes, each so many times the longer extent from its middle."""
    half = share * max(float((high - low).max()), 1e-9)
    return [(float(middle) - half, float(middle) + half) for middle in (low + high) / 2]


def _classes(result: Any) -> dict[int, str]:
    """Names of the classes that any stage holds, by label."""
    labels = sorted({int(label) for labels in result.classes for label in np.unique(np.asarray(labels))})
    return {label: str(result.class_names.get(label, "all" if label < 0 else label)) for label in labels}


def _axis_labels(result: Any, stage: int | None) -> tuple[str, str]:
    prefix = _AXES.get(result.method, result.method)
    if stage is None or not len(result.explained) or np.isnan(float(result.explained[stage, 0])):
        return f"{prefix} 1", f"{prefix} 2"
    return tuple(f"{prefix} {axis + 1} ({100 * float(result.explained[stage, axis]):.0f} %)" for axis in range(2))  # type: ignore[return-value]


def _centre(result: Any, stage: int, label: int) -> np.ndarray:
    inside = np.asarray(result.classes[stage]) == label
    return np.asarray(result.coordinates[stage])[inside, :2].mean(axis=0) if inside.any() else np.full(2, np.nan)


def _cloud(result: Any, stage: int, name: str, stages: Sequence[str], limits: Any) -> Scatter:
    points, labels = np.asarray(result.coordinates[stage]), np.asarray(result.classes[stage])
    keep = np.sort(np.random.default_rng(0).permutation(len(points))[:_POINTS])
    series = []
    for label, title in _classes(result).items():
        rows = keep[labels[keep] == label]
        series.append(Series(name=title, x=points[rows, 0], y=points[rows, 1], size=3.5, label=label))
    for label, title in _classes(result).items():
        centre = _centre(result, stage, label)
        series.append(Series(name="", colour=title, x=centre[:1], y=centre[1:], size=10, symbol=2))
    where = stages[stage] if stage < len(stages) else f"stage {stage + 1}"
    axes = _axis_labels(result, stage)
    return _plane(f"{name}: {where}", f"{len(keep)} of {len(points)} rows", series, axes, limits)


def _paths(result: Any, name: str) -> Scatter:
    count, series = len(result.coordinates), []
    texts = [f"stage {stage + 1}" for stage in range(count)]
    for label, title in _classes(result).items():
        x, y = np.array([_centre(result, stage, label) for stage in range(count)]).T
        series.append(Series(name=title, x=x, y=y, size=9, symbol=2, label=label, text=texts))
    everything = np.array([[one.x, one.y] for one in series])  # classes, axes, stages
    limits = _square(np.nanmin(everything, axis=(0, 2)), np.nanmax(everything, axis=(0, 2)), 0.65)
    panel = _plane(f"{name}: centroids", "by stage, own limits", series, _axis_labels(result, None), limits)
    panel.joined = True
    return panel


def _plane(title: str, note: str, series: list[Series], axes: tuple[str, str], limits: Any) -> Scatter:
    named = Scatter(title=title.removeprefix(": "), note=note, series=series, x_label=axes[0], y_label=axes[1])
    named.x_range, named.y_range = limits
    return named.sized(240, 240)


@composer(Features)
def features(result: Features, *, layers: list[str] | None = None, columns: int = 2) -> Figure:
    """Mean of every channel within every class, one panel a layer, in units of the channel's standard deviation."""
    panels = [_class_means(result, layer) for layer in layers or result.layers]
    return Figure(
        title="Class means of the features",
        subtitle="Each channel is centred on its mean over all rows and divided by its standard deviation: red is above, blue "
        "below. Every panel has its own symmetric scale.",
        rows=in_rows(panels, columns),
    )


def _class_means(result: Any, layer: str) -> Heatmap:
    rows = np.asarray(result.rows(layer), dtype=float)
    if not len(rows):
        raise ResultError("There are no rows to draw.", where=layer, fix="Extract images that hold a class.")
    labels, names = result.cases["class"].to_numpy(), result.cases["class_name"]
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    present = np.unique(labels)
    means = np.stack([scaled[labels == label].mean(axis=0) for label in present])
    return Heatmap(
        title=layer,
        note=f"{len(rows)} rows, {rows.shape[1]} channels, means {means.min():.2f} to {means.max():.2f} sd",
        values=means,
        limits=symmetric_limits(means),
        scale="diverging",
        row_names=[str(names[labels == label].iloc[0]) for label in present],
        x_label="channel",
    ).sized(340, 26 * len(present) + 12)
