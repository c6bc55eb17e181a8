"""Rows and moments out of stored features, and the check that several stores may be compared at all."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import DataError, LayerError, ResultError
from toolkit.features.store import Features
from toolkit.results import DataFrame

KEYS = ("case", "class", "index")  # what makes a row the same place in the same image
CLUSTERS = ("subject", "volume", "case")  # the unit that is drawn anew by a bootstrap, coarsest first


@dataclasses.dataclass(frozen=True, eq=False)
class RowStream:
    """Rows of one layer of one store, read piece by piece in the order of the store, or all at once."""

    store: Features  # the features
    layer: str  # layer name
    where: str  # what errors call the store
    order: Tensor | None  # None, or the indices that bring the store's rows into the order of the first store's
    table: DataFrame  # the row table in that order
    channels: int  # number of channels C

    @functools.cached_property
    def rows(self) -> Tensor:
        """All rows (N, C) float32, in the order of the table."""
        return self.in_order(rows_of(self.store, self.layer, self.where))

    def pieces(self, *beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Pieces (n, C) float32 of the rows, each with the same rows of the tensors `beside`, which are in `order`."""
        if self.order is not None:
            back = torch.argsort(self.order)
            beside = tuple(part.index_select(0, back) for part in beside)
        start = 0
        for piece in self.store.batches(self.layer):
            rows = torch.as_tensor(piece).float()
            _require_finite(rows, self.where, start)
            yield rows, *(part[start : start + len(rows)] for part in beside)
            start += len(rows)

    def in_order(self, values: Tensor) -> Tensor:
        """Values that were computed from the pieces, in the order of the table."""
        return values if self.order is None else values.index_select(0, self.order)


def row_streams(stores: Sequence[Features], layer: str, *, paired: bool = True) -> list[RowStream]:
    """Rows of `layer` from every store in one order; `paired` requires the same places in the same images."""
    if not stores:
        raise ResultError("There are no features to compare.", fix="Pass a list of stores, one per stage.")
    places = [f"stage {index + 1}, layer {layer}" for index in range(len(stores))]
    for store, where in zip(stores, places, strict=True):
        _require_layer(store, layer, where)
    widths = [int(next(iter(store.batches(layer))).shape[1]) for store in stores]
    if len(set(widths)) > 1:
        fix = "Compare stages of one architecture, or use layer_similarity, which needs only paired rows."
        raise ResultError(f"The stores hold different numbers of channels: {widths}.", where=layer, fix=fix)
    streams = []
    for store, where, width in zip(stores, places, widths, strict=True):
        order = row_order(stores[0], store, where) if paired and store is not stores[0] else None
        table = store.cases.reset_index(drop=True)
        table = table if order is None else table.iloc[order.numpy()].reset_index(drop=True)
        streams.append(RowStream(store, layer, where, order, table, width))
    return streams


def rows_of(store: Features, layer: str, where: str = "") -> Tensor:
    """The (N, C) float32 rows of one layer."""
    _require_layer(store, layer, where)
    rows = torch.as_tensor(store.rows(layer)).float()
    _require_finite(rows, where or layer)
    return rows


def _require_layer(store: Features, layer: str, where: str) -> None:
    names = list(store.layers)
    if layer not in names:
        fix = f"Closest: {', '.join(difflib.get_close_matches(layer, names, 3, 0) or names[:8])}."
        raise LayerError(f"The features hold no layer {layer!r}.", where=where, fix=fix)


def _require_finite(rows: Tensor, where: str, start: int = 0) -> None:
    bad = (~torch.isfinite(rows)).any(dim=1)
    if bad.any():
        first = start + int(bad.nonzero()[0, 0])
        what = f"{int(bad.sum())} of {len(rows)} feature rows hold NaN or infinite values (the first is row {first})."
        fix = "Look for diverged weights or an image without contrast, then extract again."
        raise DataError(what, where=where, fix=fix)


def moments_of(features: Features | Tensor, layer: str = "") -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Per image: Gram matrices (n, C, C), channel sums (n, C), numbers of positions (n,), and the provenance.

    Of a store with `moments(layer)`, or of activations (B, C, *S).
    """
    if isinstance(features, Tensor):
        if features.ndim < 3:
            what = f"Activations have the shape (B, C, *S); this tensor has {tuple(features.shape)}."
            raise ResultError(what, fix="Pass a feature map, or a store extracted with moments=True.")
        flat = features.detach().flatten(2).double()
        count = torch.full((len(flat),), flat.shape[-1], dtype=torch.float64)
        return flat @ flat.transpose(1, 2), flat.sum(2), count, {}
    _require_layer(features, layer, "")
    moments = features.moments(layer)
    if moments is None:
        raise ResultError("These features hold no second moments.", where=layer, fix="Extract again with moments=True.")
    return moments.gram, moments.sum, moments.count.double(), dict(features.provenance)


def cluster_codes(table: DataFrame, column: str | None = None) -> tuple[Tensor, str]:
    """An integer per row that says which patient (or volume, or case) it comes from, and the column used."""
    import pandas as pd

    names = [column] if column else [n for n in CLUSTERS if n in table.columns and table[n].notna().all()]
    if not names or names[0] not in table.columns:
        fix = f"It has: {', '.join(table.columns)}."
        raise ResultError(f"The row table has no column {column or 'case'!r}.", fix=fix)
    codes, _ = pd.factorize(table[names[0]], sort=True)
    return torch.from_numpy(codes.astype("int64")), str(names[0])


def class_members(table: DataFrame) -> dict[str, Tensor]:
    """Row indices per class name (nothing if the rows have no class, or all the same)."""
    if "class" not in table.columns:
        return {}
    names = table["class_name"] if "class_name" in table.columns else table["class"]
    first = table.assign(_name=names.astype(str)).groupby("class", sort=True)["_name"].first()
    if len(first) < 2:
        return {}
    return {
        str(name): torch.from_numpy((table["class"] == label).to_numpy().nonzero()[0]) for label, name in first.items()
    }


def row_order(first_store: Features, other_store: Features, where: str) -> Tensor | None:
    """None if the rows of two stores correspond as they are, else the order of the other's that makes them."""
    first, other = (store.cases.reset_index(drop=True) for store in (first_store, other_store))
    keys = [name for name in KEYS if name in first.columns]
    lacking = [name for name in keys if name not in other.columns]
    if lacking or not keys:
        raise ResultError(f"The row tables differ: {lacking or 'case'} is missing.", where=where)
    left, right = first[keys].fillna(-1), other[keys].fillna(-1)
    _require_same_data(first_store, other_store, where)
    if len(left) == len(right) and (left.to_numpy() == right.to_numpy()).all():
        return None
    left_order = left.sort_values(keys, kind="stable").index
    right_order = right.sort_values(keys, kind="stable").index
    sorted_left, sorted_right = left.loc[left_order].to_numpy(), right.loc[right_order].to_numpy()
    if len(left) == len(right) and (sorted_left == sorted_right).all():
        order = torch.empty(len(left), dtype=torch.int64)
        order[torch.tensor(left_order.to_numpy())] = torch.tensor(right_order.to_numpy())
        return order
    what = f"The stores cannot be paired: {_difference(first, other, first_store, other_store)}."
    fix = "Extract all stages with the same data, layers, pool, samples and seed, or pass paired=False."
    raise ResultError(what, where=where, fix=fix)


def _require_same_data(first: Features, other: Features, where: str) -> None:
    """Cases of one name can be other images: another normalisation, other labels, an edited file."""
    hashes = [str(store.provenance.get("data", "")) for store in (first, other)]
    cases = [list(store.images["case"]) if len(store.images) else None for store in (first, other)]
    if "" in hashes or hashes[0] == hashes[1] or cases[0] != cases[1]:
        return
    what = "The stores were made from other data: the cases have the same names, but the hash of their images and "
    what += f"labels is {hashes[0][:12]} there and {hashes[1][:12]} here."
    fix = "Extract all stages from the same images and labels, or pass paired=False."
    raise ResultError(what, where=where, fix=fix)


def _difference(first: DataFrame, other: DataFrame, first_store: Features, other_store: Features) -> str:
    one, two = set(first["case"]), set(other["case"])
    reasons = []
    if one != two:
        reasons.append(f"cases differ (only in the first: {sorted(one - two)[:3]}, only here: {sorted(two - one)[:3]})")
    settings = [{**one.provenance, **one.provenance.get("parameters", {})} for one in (first_store, other_store)]
    changed = {
        name: (settings[0].get(name), settings[1].get(name))
        for name in ("pool", "samples", "seed", "data")
        if settings[0].get(name) != settings[1].get(name)
    }
    reasons += [f"{name} is {before!r} there and {after!r} here" for name, (before, after) in changed.items()]
    if len(first) != len(other):
        reasons.append(f"{len(first)} rows there and {len(other)} here")
    return "; ".join(reasons) or "the same cases were sampled at different places"
