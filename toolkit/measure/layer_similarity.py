"""Similarity of layers: every layer of one network against every layer of another, a stage or a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError, choose
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure.distances import centred, procrustes, rbf_kernel, unbiased_hsic
from toolkit.measure.drift_samples import subsample
from toolkit.measure.pairing import row_order, rows_of
from toolkit.results import DataFrame, Result, as_table

METHODS = ("linear_cka", "rbf_cka", "procrustes", "rsa")


@dataclasses.dataclass(kw_only=True)
class LayerSimilarity(Result):
    """Similarity of layers, 1 = the same up to what the method ignores.

    Attributes:
        method: "linear_cka", "rbf_cka", "procrustes" or "rsa".
        layers_a: layers of the first store, rows of the matrix.
        layers_b: layers of the second store, columns of the matrix.
        matrix: (A, B); NaN where a layer is constant.
        rows: number of feature rows used.
        batch: rows per minibatch (CKA).
    """

    method: str
    layers_a: list[str]
    layers_b: list[str]
    matrix: Tensor
    rows: int
    batch: int
    kind: ClassVar[str] = "layer similarity"

    def table(self) -> DataFrame:
        """One row per pair of layers."""
        rows = [
            {"layer_a": a, "layer_b": b, "method": self.method, "similarity": float(self.matrix[i, j])}
            for i, a in enumerate(self.layers_a)
            for j, b in enumerate(self.layers_b)
        ]
        return as_table(rows)


def layer_similarity(
    features_a: Features,
    features_b: Features | None = None,
    method: str = "linear_cka",
    *,
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    batch: int = 256,
    max_rows: int = 1000,
    seed: int = 0,
) -> LayerSimilarity:
    """Compare all layers of two stores of the same rows (or of one store with itself).

    CKA is the ratio of unbiased HSIC estimates averaged over minibatches (Nguyen, Raghu and Kornblith 2021): its
    expectation does not depend on the batch size, and all pairs of layers come from one pass. It may be slightly
    negative. Procrustes is 1 - the disparity on all rows; RSA is Spearman's correlation of the correlation distances
    between rows.

    Args:
        features_a: first store.
        features_b: second store; None = the first.
        method: "linear_cka", "rbf_cka" (bandwidth: half the root median squared distance in the batch),
            "procrustes" or "rsa".
        layers_a: layers of the first store (default all).
        layers_b: layers of the second store (default all).
        batch: rows per minibatch, at least 4.
        max_rows: rows that RSA uses.
        seed: order of the rows in minibatches, and RSA's draw.

    Raises:
        LayerError: a store lacks a layer.
        ResultError: the stores hold different rows (says which), or fewer than 4.
        DataError: NaN features.
        ConfigError: unknown method or a batch below 4.

    Example:
        >>> cka = tk.layer_similarity(features, later, "linear_cka")
    """
    choose("method", method, METHODS)
    if batch < 4:
        raise ConfigError(f"A batch of {batch} rows is too small for the unbiased HSIC; take at least 4.")
    other = features_a if features_b is None else features_b
    names = [list(layers_a or features_a.layers), list(layers_b or other.layers)]
    sides = [features_a] if other is features_a else [features_a, other]
    state_rows(f"layer_similarity {method}", sides, {*names[0], *names[1]})
    first = [rows_of(features_a, name, f"first store, layer {name}") for name in names[0]]
    second = first
    if other is not features_a or names[0] != names[1]:
        second = [rows_of(other, name, f"second store, layer {name}") for name in names[1]]
    order = None if other is features_a else row_order(features_a, other, "second store")
    if order is not None:
        second = [rows.index_select(0, order) for rows in second]
    number = len(first[0])
    if number < 4:
        fix = "Extract more images, or pool='voxels' with more samples."
        raise ResultError(f"{number} rows are too few to compare layers; at least 4 are needed.", fix=fix)
    if method in ("linear_cka", "rbf_cka"):
        matrix = _minibatch_cka(first, second, method, min(batch, number), seed)
    elif method == "procrustes":
        matrix = torch.empty(len(first), len(second), dtype=torch.float64)
        for i, one in enumerate(first):
            for j, another in enumerate(second):
                symmetric = second is first and j < i
                matrix[i, j] = matrix[j, i] if symmetric else 1 - procrustes(one, another)
    else:
        keep = subsample(number, max_rows, "rsa", seed)
        both = [first] if second is first else [first, second]
        profiles = [torch.stack([_ranked_dissimilarity(rows.index_select(0, keep)) for rows in one]) for one in both]
        matrix = profiles[0] @ profiles[-1].T
    settings: dict[str, Any] = {"method": method, "batch": batch, "seed": seed}
    return LayerSimilarity(
        method=method,
        layers_a=names[0],
        layers_b=names[1],
        matrix=matrix.double(),
        rows=min(number, max_rows) if method == "rsa" else number,
        batch=min(batch, number),
        provenance={**settings, "stages": [dict(features_a.provenance), dict(other.provenance)]},
    )


def _minibatch_cka(first: list[Tensor], second: list[Tensor], method: str, batch: int, seed: int) -> Tensor:
    number, layers = len(first[0]), first if second is first else first + second
    order = torch.from_numpy(keyed_random("minibatches", seed, number).permutation(number))
    spreads = [_spread(rows) for rows in layers]
    total = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    for index in order.split(batch):
        if len(index) < batch:
            break  # a smaller last batch would weigh as much as the others
        parts = [rows.index_select(0, index) / spread for rows, spread in zip(layers, spreads, strict=True)]
        kernels = [rbf_kernel(part) if method == "rbf_cka" else (x := centred(part)) @ x.T for part in parts]
        total += unbiased_hsic(torch.stack(kernels))
    own = total.diagonal()
    scale = torch.where(own > 1e-12, own, torch.nan).sqrt()
    return (total / scale[:, None] / scale[None, :])[: len(first), -len(second) :]


def _spread(rows: Tensor) -> float:
    """Root mean square deviation of rows (N, C), the unit in which layers of any scale compare; NaN if they are constant."""
    deviation = float(centred(rows).square().mean().sqrt())
    return deviation if deviation > 1e-9 * float(rows.abs().max()) else torch.nan


def _ranked_dissimilarity(rows: Tensor) -> Tensor:
    """Centred unit vector of the ranks of 1 - correlation over all pairs of rows; NaN if all are alike."""
    from scipy.stats import rankdata

    upper = torch.triu_indices(len(rows), len(rows), 1)
    units = torch.nn.functional.normalize(rows.double() - rows.double().mean(1, keepdim=True), dim=1)
    ranks = torch.from_numpy(rankdata((1 - units @ units.T)[upper[0], upper[1]].round(decimals=12).numpy()))
    return (ranks - ranks.mean()) / (ranks - ranks.mean()).norm()
