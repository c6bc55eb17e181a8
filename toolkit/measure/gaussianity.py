"""How far a latent space is from the standard normal reference: the SegReg statistic with its null beside it.

The statistic is the one of our SegReg loss, which is OUR INFERENCE from the public parts of the paper.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.errors import ResultError
from toolkit.features.epps_pulley import epps_pulley_by_direction, null_expectation, unit_directions
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure.pairing import CLUSTERS, class_members, cluster_codes, rows_of
from toolkit.results import Numbers, as_table


@dataclasses.dataclass(kw_only=True)
class Gaussianity(Numbers):
    """Distance of one layer's rows to N(0, I).

    Attributes:
        layer: layer name.
        numbers: one row for all rows ("all") and one per class, see `gaussianity`.
        by_direction: N-free statistic along every direction, of all rows (K,).
        eigenvalues: of the covariance of all rows, descending (C,); all 1 for the reference.
    """

    layer: str
    by_direction: Tensor
    eigenvalues: Tensor
    kind: ClassVar[str] = "gaussianity"


def gaussianity(
    features: Features,
    layer: str,
    *,
    directions: int = 256,
    t_max: float = 3.0,
    points: int = 17,
    seed: int = 0,
    null_draws: int = 200,
    standardise: bool = False,
) -> Gaussianity:
    """Sliced Epps-Pulley distance of stored rows to N(0, I), with what exactly normal rows would give.

    Voxels of one patient are not independent, so the N-scaled statistic must not be read as a test on voxels. N_eff is
    the number of rows divided by the design effect 1 + (m - 1) r of equally large clusters (m rows a patient, or
    volume, or case: the coarsest that is known; r the intraclass correlation, averaged over channels, at least 0). It
    is an estimate: from few patients r is uncertain, and with one alone its slices count as independent, which makes
    N_eff an upper bound. The statistic averages bounded waves, which are less alike than the values themselves, so
    with many patients N_eff is rather too small. `null` and `null_95` are those of independent normal rows,
    `null_eff` the expectation at N_eff: values up to about that are what a normal latent space gives.

    Random directions hardly see structure that lies in a few dimensions (in 32 channels, three classes in a plane look
    normal), which is why the largest direction stands beside the mean.

    Args:
        features: store, best with pool="voxels".
        layer: layer name.
        directions: K random unit directions.
        t_max: end of the frequency grid.
        points: points of the folded grid.
        seed: of directions and of the null.
        null_draws: simulated normal samples for `null_95` (at most 1024 rows and 64 directions each, scaled to N).
        standardise: first subtract the channels' means and divide by their deviations, over all rows: the shape
            alone. Normal rows so treated lie closer to N(0, I) than independent ones; the nulls are then theirs.

    Returns:
        Columns group, rows, n_eff, T_over_N, null, null_95, null_eff, T (= N times T_over_N), largest (direction),
        mean_norm, eig_min, eig_max, excess_kurtosis (mean over directions; 0 for normal rows).

    Raises:
        LayerError: no such layer.
        DataError: NaN features.
        ResultError: fewer rows than twice the channels.

    Example:
        >>> table = tk.gaussianity(features, "head_input", null_draws=20).table()
    """
    state_rows("gaussianity", [features], layer, beside=20 * directions)
    rows = rows_of(features, layer)
    channels = rows.shape[1]
    if len(rows) < 2 * channels:
        what = f"{len(rows)} rows of {channels} channels are too few; at least {2 * channels} are needed."
        raise ResultError(what, where=layer, fix="Extract with pool='voxels', or more cases.")
    rows = _standardised(rows) if standardise else rows
    table = features.cases.reset_index(drop=True)
    codes, _ = cluster_codes(table, next((n for n in CLUSTERS if n in table and table[n].nunique() > 1), "case"))
    generator = torch.Generator().manual_seed(int(keyed_random("gaussianity", seed).integers(2**62)))
    axes = unit_directions(channels, directions, generator)
    grid = {"t_max": t_max, "points": points}
    nulls = _nulls(axes, len(rows), null_draws, generator, grid, standardise)
    groups = {"all": torch.arange(len(rows))} | class_members(table)
    numbers = [
        {"group": name} | _row(rows[index], codes[index], axes, grid, torch.lerp(*nulls, len(index) / len(rows)))
        for name, index in groups.items()
        if len(index) >= 2 * channels
    ]  # what the common mean and deviation take out of T is in proportion to a group's share
    centred = (rows - rows.mean(0)).double()
    settings = {"directions": directions, **grid, "seed": seed, "standardise": standardise}
    return Gaussianity(
        layer=layer,
        numbers=as_table(numbers),
        by_direction=epps_pulley_by_direction(rows, axes, **grid),  # type: ignore[arg-type]
        eigenvalues=torch.linalg.eigvalsh(centred.T @ centred / len(rows)).flip(0),
        provenance={**features.provenance, "layer": layer, "measure": "gaussianity", "settings": settings},
    )


def effective_rows(rows: Tensor, clusters: Tensor) -> float:
    """N / (1 + (m - 1) r): rows (N, C) that are worth as much as independent ones; N if every cluster has one row."""
    values = rows.double()
    _, index, counts = torch.unique(clusters, return_inverse=True, return_counts=True)
    groups, total = len(counts), len(values)
    if groups == total:
        return float(total)
    if groups == 1:
        return 1.0
    sums = torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, index, values)
    means = sums / counts[:, None]
    between = (counts[:, None] * (means - values.mean(0)).square()).sum(0) / (groups - 1)
    within = (values - means.index_select(0, index)).square().sum(0) / (total - groups)
    typical = (total - float((counts.double() ** 2).sum()) / total) / (groups - 1)
    correlation = (between - within) / (between + (typical - 1) * within).clamp_min(1e-30)
    mean_size = float((counts.double() ** 2).sum()) / total
    return total / (1 + (mean_size - 1) * float(correlation.mean().clamp(0, 1)))


def _row(rows: Tensor, clusters: Tensor, axes: Tensor, grid: dict[str, Any], null: Tensor) -> dict[str, float]:
    statistics = epps_pulley_by_direction(rows, axes, **grid)
    n, effective = len(rows), effective_rows(rows, clusters)
    expectation, highest = null.tolist()
    mean = rows.double().mean(0)
    centred = rows.double() - mean
    values = torch.linalg.eigvalsh(centred.T @ centred / n)
    projected = centred @ axes.double()
    kurtosis = projected.pow(4).mean(0) / projected.square().mean(0).square().clamp_min(1e-300) - 3
    average = float(statistics.mean())
    row = {"rows": n, "n_eff": effective, "T_over_N": average, "null": expectation / n, "null_95": highest / n}
    row |= {"null_eff": expectation / effective, "T": n * average, "largest": float(statistics.max())}
    row |= {"mean_norm": float(mean.norm()), "eig_min": float(values[0]), "eig_max": float(values[-1])}
    return row | {"excess_kurtosis": float(kurtosis.mean())}


def _standardised(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)


def _nulls(
    axes: Tensor, count: int, draws: int, generator: torch.Generator, grid: dict[str, Any], standardise: bool
) -> tuple[Tensor, Tensor]:
    """Expectation and 95 % quantile (2,) of T for normal rows: of a small share and of all of those standardised."""
    values = torch.empty(2 if standardise else 1, draws, dtype=torch.float64)
    for draw in range(draws):
        rows = torch.randn(min(count, 1024), axes.shape[0], generator=generator)
        for place, part in enumerate((rows, _standardised(rows))[: len(values)]):
            values[place, draw] = len(rows) * float(epps_pulley_by_direction(part, axes[:, :64], **grid).mean())
    pairs = torch.stack((values.mean(1), values.quantile(0.95, 1)), 1)
    pairs[0, 0] = null_expectation(**grid)
    return pairs[0], pairs[-1]
