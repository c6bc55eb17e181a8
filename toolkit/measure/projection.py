"""Projections of features to the plane, over training stages, with the share of variance they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.errors import ConfigError, ResultError, choose
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure import projection_planes as planes
from toolkit.measure.embedding import TsneOptions, UmapOptions, balanced_sample, tsne_pictures, umap_pictures
from toolkit.measure.pairing import RowStream, row_streams
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame, Result, as_table

LINEAR = ("pca", "lda", "head")
METHODS = (*LINEAR, "umap", "tsne")
BASES = ("shared", "stage1", "per_stage")


@dataclasses.dataclass(kw_only=True)
class Projection(Result):
    """Coordinates of the rows of one layer at every stage.

    Attributes:
        layer: layer name.
        method: "pca", "lda", "head", "umap" or "tsne".
        basis: which stages the axes were fitted on.
        coordinates: per stage, (N, k) float32.
        classes: per stage, the class of every row (N,); -1 if the rows have none.
        class_names: names by class label.
        cases: per stage, index of every row's case into `case_names`.
        case_names: case identifiers.
        explained: (stages, k) share of each stage's total variance along each axis (NaN for umap and tsne).
        axes: (stages, k, C) orthonormal axes used for each stage (empty for umap and tsne).
        settings: what else the picture depends on.
    """

    layer: str
    method: str
    basis: str
    coordinates: list[Tensor]
    classes: list[Tensor]
    class_names: dict[int, str]
    cases: list[Tensor]
    case_names: list[str]
    explained: Tensor
    axes: Tensor
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "projection"

    def table(self) -> DataFrame:
        """One row per stage and axis: rows, channels and the share of the stage's variance on that axis."""
        rows = [
            {"layer": self.layer, "method": self.method, "basis": self.basis, "stage": stage + 1, "axis": axis + 1}
            | {"explained_variance": float(self.explained[stage, axis]), "rows": len(self.coordinates[stage])}
            for stage in range(len(self.coordinates))
            for axis in range(self.coordinates[stage].shape[1])
        ]
        return as_table(rows)

    def points(self) -> DataFrame:
        """One row per point: stage, case, class, class_name and the coordinates x1, x2, ..."""
        import pandas as pd

        frames = []
        for stage, coordinates in enumerate(self.coordinates):
            labels = self.classes[stage].tolist()
            frame = pd.DataFrame(coordinates.numpy(), columns=[f"x{i + 1}" for i in range(coordinates.shape[1])])
            frame.insert(0, "class_name", [self.class_names.get(label, str(label)) for label in labels])
            frame.insert(0, "class", labels)
            frame.insert(0, "case", [self.case_names[code] for code in self.cases[stage].tolist()])
            frame.insert(0, "stage", stage + 1)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def project(
    features: Features | Sequence[Features],
    layer: str,
    method: str = "pca",
    basis: str | None = None,
    *,
    components: int = 2,
    balanced: bool = True,
    standardise: bool = False,
    **options: Any,
) -> Projection:
    """Project the features of one or several training stages (SegReg, Fig. 3; the protocol is our inference).

    Args:
        features: one store or one per stage.
        layer: layer name.
        method: "pca"; "lda" (Fisher's discriminants); "head" (the plane of the head's weights); "umap" (fitted once,
            other rows placed out of sample by their exact neighbours); "tsne" (all stages together, a sample of the
            rows). Distances in the last two pictures mean nothing: measure drift with `drift`.
        basis: "shared" = fitted on all stages (default); "stage1" = fitted on the first and frozen (UMAP's default);
            "per_stage" = fitted on each stage, then turned and reflected onto stage 1 (linear methods). That one hides
            rotations of the latent space and must not be used to claim low drift.
        components: number of axes (2 for umap and tsne).
        balanced: give every class the same weight in the fit (umap and tsne draw classes evenly).
        standardise: linear methods divide by the root mean channel variance of stage 1; umap and tsne centre every
            stage and divide it by its own.
        options: for "umap" those of `UmapOptions`, for "tsne" those of `TsneOptions`.

    Returns:
        Coordinates per stage and the share of variance on each axis. Features that are isotropic show only
        `components / C` of their variance in any plane: a diffuse cloud is then expected.

    Raises:
        LayerError: a store lacks the layer.
        ResultError: stores that differ, too few rows, no classes for "lda", no head weights for "head".
        DataError: NaN features.
        ConfigError: unknown method, basis or option.

    Example:
        >>> planes = tk.project([features, later], "head_input", "pca", basis="shared")
    """
    import pandas as pd

    choose("method", method, METHODS)
    basis = basis or ("stage1" if method == "umap" else "shared")
    choose("basis", basis, BASES)
    if method in LINEAR and options:
        raise ConfigError(f"The method {method!r} takes no option {sorted(options)}.")
    stores = [features] if isinstance(features, Features) else list(features)
    beside = 400 if method == "umap" else 0  # of the neighbours
    state_rows("project" if method in LINEAR else f"project {method}", stores, layer, beside=beside)
    streams = row_streams(stores, layer, paired=basis == "per_stage" and method in LINEAR)
    if method in LINEAR:
        tables = [stream.table for stream in streams]
        shown = _linear(streams, method, basis, components, balanced, standardise)
    else:
        with guarded_random_state():
            tables, shown = _curved(streams, method, basis, components, standardise, options)
    joined = pd.concat([table["case"].astype(str) for table in tables], ignore_index=True)
    codes, case_names = pd.factorize(joined, sort=True)
    asked: dict[str, Any] = {"layer": layer, "method": method, "basis": basis}
    return Projection(
        **asked,
        classes=[_labels(table) for table in tables],
        class_names=_class_names(tables),
        cases=list(torch.from_numpy(codes.astype("int64")).split([len(table) for table in tables])),
        case_names=[str(name) for name in case_names],
        provenance={**asked, "stages": [dict(store.provenance) for store in stores]},
        **shown,
    )


def _linear(
    streams: list[RowStream], method: str, basis: str, components: int, balanced: bool, standardise: bool
) -> dict[str, Any]:
    """The fields of the result for a linear method; of the rows, only one piece at a time is in memory."""
    labels = [_labels(stream.table) for stream in streams]
    weights = [planes.balanced_weights(label) if balanced else torch.ones(len(label)) for label in labels]
    fit = _Fit(streams, labels, weights, method, components)
    count = len(streams)
    if basis == "per_stage":
        fitted = _aligned_planes(fit)
    else:
        fitted = [fit.plane([0] if basis == "stage1" else list(range(count)))] * count
    scale = fit.scale() if standardise else 1.0
    shown = [fit.shown(stage, plane) for stage, plane in enumerate(fitted)]
    return {
        "coordinates": [coordinates / scale for coordinates, _ in shown],
        "explained": torch.stack([explained for _, explained in shown]),
        "axes": torch.stack([plane.axes for plane in fitted]),
        "settings": {"balanced": balanced, "standardised_by": scale if standardise else None},
    }


def _curved(
    streams: list[RowStream], method: str, basis: str, components: int, standardise: bool, options: dict[str, Any]
) -> tuple[list[DataFrame], dict[str, Any]]:
    """The tables of the rows shown and the fields of the result for UMAP and t-SNE."""
    settings = UmapOptions(**options) if method == "umap" else TsneOptions(**options)
    if components != 2:
        raise ConfigError(f"{method} gives 2 components.", where="project(components=...)")
    if basis == "per_stage" or (method == "tsne" and basis == "stage1"):
        fix = 'Use basis="shared", or for UMAP "stage1" (later stages are placed out of sample).'
        raise ConfigError(f"{method} cannot be drawn with the basis {basis!r}.", fix=fix)
    rows, tables = [stream.rows for stream in streams], [stream.table for stream in streams]
    labels = [_labels(table) for table in tables]
    if isinstance(settings, TsneOptions):
        chosen = [balanced_sample(label, max(2, settings.fit_rows // len(rows)), settings.seed) for label in labels]
        rows = [part.index_select(0, index) for part, index in zip(rows, chosen, strict=True)]
        tables = [table.iloc[index.numpy()].reset_index(drop=True) for table, index in zip(tables, chosen, strict=True)]
    if standardise:
        centred = [part - part.mean(0) for part in rows]
        rows = [part / part.var(0).mean().sqrt().clamp_min(1e-12) for part in centred]
    if isinstance(settings, TsneOptions):
        coordinates, measured = tsne_pictures(rows, settings)
    else:
        fitted_on = [0] if basis == "stage1" else list(range(len(rows)))
        coordinates, measured = umap_pictures(rows, labels, fitted_on, settings)
    nothing = torch.full((len(rows), 2), torch.nan, dtype=torch.float64)
    return tables, {
        "coordinates": coordinates,
        "explained": nothing,
        "axes": torch.empty(len(rows), 0, streams[0].channels, dtype=torch.float64),
        "settings": {**measured, "standardised": standardise},
    }


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Fits a plane on any of the stages."""

    streams: list[RowStream]
    labels: list[Tensor]
    weights: list[Tensor]
    method: str
    components: int

    def plane(self, stages: list[int]) -> planes.Plane:
        if self.method == "lda":
            return self._discriminants(stages)
        pooled = planes.StreamingMoments(self.streams[0].channels)
        for stage in stages:
            for rows, weights in self.streams[stage].pieces(self.weights[stage]):
                pooled.update(rows, weights)
        if self.method == "pca":
            return planes.principal_plane(pooled, self.components)
        heads = [self.streams[s].store.head_weights for s in stages]
        if any(head is None for head in heads):
            fix = "Extract the layer that feeds the head (head_input), or use another method."
            raise ResultError("The features do not hold the weights of the segmentation head.", fix=fix)
        centred = [head.double().flatten(1) - head.double().flatten(1).mean(0) for head in heads if head is not None]
        if any(head.shape[1] != self.streams[0].channels for head in centred):
            what = f"The head reads {centred[0].shape[1]} channels, this layer has {self.streams[0].channels}."
            raise ResultError(what, fix="The head's plane exists only in the layer that feeds it (head_input).")
        return planes.head_plane(torch.cat(centred), pooled, self.components)

    def _discriminants(self, stages: list[int]) -> planes.Plane:
        """The classes weigh the same over all the stages together."""
        labels = torch.cat([self.labels[s] for s in stages])
        weights = planes.balanced_weights(labels).split([len(self.labels[s]) for s in stages])
        channels = self.streams[0].channels
        pooled = planes.StreamingMoments(channels)
        per_class = {label: planes.StreamingMoments(channels) for label in torch.unique(labels).tolist()}
        for stage, weight in zip(stages, weights, strict=True):
            for rows, label, part in self.streams[stage].pieces(self.labels[stage], weight):
                pooled.update(rows, part)
                for one in torch.unique(label).tolist():
                    per_class[one].update(rows[label == one])
        return planes.discriminant_plane(list(per_class.values()), pooled, self.components)

    def shown(self, stage: int, plane: planes.Plane) -> tuple[Tensor, Tensor]:
        """Coordinates of the rows of a stage in the order of its table, and their share of variance on each axis."""
        stream, total, parts = self.streams[stage], planes.StreamingMoments(self.streams[stage].channels), []
        for rows, weights in stream.pieces(self.weights[stage]):
            total.update(rows, weights)
            parts.append(plane.coordinates(rows))
        return stream.in_order(torch.cat(parts)), plane.explained_of(total)

    def scale(self) -> float:
        first = planes.StreamingMoments(self.streams[0].channels)
        for (rows,) in self.streams[0].pieces():
            first.update(rows)
        return float(first.covariance().diagonal().mean().sqrt())


def _aligned_planes(fit: _Fit) -> list[planes.Plane]:
    aligned = [fit.plane([0])]
    target = fit.shown(0, aligned[0])[0].double()
    for stage in range(1, len(fit.streams)):
        plane = fit.plane([stage])
        own = fit.shown(stage, plane)[0].double()
        turn = planes.rotation_onto(own, target)  # may reflect, so it also settles the signs
        aligned.append(planes.Plane(plane.mean, turn.T @ plane.axes, plane.explained))
    return aligned


def _labels(table: DataFrame) -> Tensor:
    if "class" not in table.columns:
        return torch.full((len(table),), -1)
    return torch.from_numpy(table["class"].to_numpy(dtype="int64", copy=True))


def _class_names(tables: list[DataFrame]) -> dict[int, str]:
    names: dict[int, str] = {}
    for table in tables:
        if {"class", "class_name"} <= set(table.columns):
            first = table.groupby("class", sort=True)["class_name"].first()
            names |= {int(k): str(v) for k, v in zip(first.index.tolist(), first, strict=True)}
    return names
