"""Signs of a collapsed latent space: rank, spread, uniformity, and whether classes can still be told apart."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure.distances import centred, squared_distances
from toolkit.measure.drift_samples import subsample
from toolkit.measure.pairing import cluster_codes, rows_of
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame, Result, as_table

ACTIVE_BAND = 18.4  # beyond this many temperatures a pair's term is below the loss's floor of 1e-8
READINGS = {
    "mean_cosine": "near 1",
    "mean_cosine_centred": "near 1",
    "uniformity": "near 0",
    "effective_rank": "near 1",
    "participation_ratio": "near 1",
    "mean_deviation": "near 0",
    "flat_channels": "near 1",
    "active_pairs": "near 0: a dispersive loss on plain L2 distances is dead",
    "active_pairs_normalised": "near 0: a dispersive loss on squared L2 / C is dead",
    "silhouette": "near 0 or below: classes overlap",
    "linear_probe": "near chance",
    "linear_probe_chance": "",
}


@dataclasses.dataclass(kw_only=True)
class Collapse(Result):
    """Diagnostics of one layer.

    Attributes:
        layer: layer name.
        values: diagnostic -> value; NaN where it is undefined (no classes, a single case).
        histogram: counts of pairwise L2 distances (bins,).
        edges: their edges (bins + 1,).
        tau: temperature of the active band.
        rows: rows used.
        channels: C, the largest possible rank.
    """

    layer: str
    values: dict[str, float]
    histogram: Tensor
    edges: Tensor
    tau: float
    rows: int
    channels: int
    kind: ClassVar[str] = "collapse"

    def table(self) -> DataFrame:
        """One row per diagnostic: value, and how a collapse reads."""
        return as_table(
            [
                {"layer": self.layer, "diagnostic": name, "value": value, "collapse_reads_as": READINGS[name]}
                | {"rows": self.rows, "channels": self.channels}
                for name, value in self.values.items()
            ]
        )


def collapse(
    features: Features, layer: str, *, tau: float = 0.5, max_rows: int = 2048, bins: int = 50, seed: int = 0
) -> Collapse:
    """Diagnostics that tell a collapsed latent space from a dispersed one (Med-DisSeg's motivation, measured).

    Effective rank is the exponential of the entropy of the normalised singular values of the centred rows,
    participation ratio (sum of eigenvalues)^2 / sum of squares, uniformity the log of the mean over pairs of
    exp(-2 |u_i - u_j|^2) of unit rows. `active_pairs` is the share of pairs within the reach of the loss: d / tau <
    18.4 for plain L2 distances, `active_pairs_normalised` the same for squared distances divided by C; both concern
    rows as they are stored, while the paper's loss flattens whole maps. The linear probe is balanced accuracy of a
    logistic regression on standardised rows, folds made of patients (NaN if one trains on a single class).

    Compare models on stores of the same images, samples and seed: the same rows are then drawn. Extract with
    pool="global" for one row per image, with pool="voxels" for positions, with pool="boundary" for positions at class
    boundaries only, where separation is hardest.

    Args:
        features: store.
        layer: layer name.
        tau: temperature of the dispersive loss.
        max_rows: rows used, as evenly over the cases as they allow.
        bins: bins of the distance histogram.
        seed: of the draw.

    Raises:
        LayerError: no such layer.
        DataError: NaN features.
        ResultError: fewer than 3 rows.
        ConfigError: an invalid setting.

    Example:
        >>> diagnostics = tk.collapse(features, "bottleneck").table()
    """
    state_rows("collapse", [features], layer)
    rows = rows_of(features, layer)
    table = features.cases.reset_index(drop=True)
    keep = _evenly(table, max_rows, seed)
    rows, table = rows.index_select(0, keep).double(), table.iloc[keep.numpy()].reset_index(drop=True)
    if len(rows) < 3:
        raise ResultError(f"{len(rows)} rows are too few for these diagnostics; at least 3 are needed.", where=layer)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    square = squared_distances(rows, rows)[upper[0], upper[1]]
    distance = square.sqrt()
    top = float(distance.max()) or 1.0
    active = float((distance / tau < ACTIVE_BAND).double().mean())
    normalised = float((square / rows.shape[1] / tau < ACTIVE_BAND).double().mean())
    with guarded_random_state():
        separation = _separation(rows, table)
    deviation = rows.std(0)
    values = {
        "mean_cosine": mean_cosine(rows),
        "mean_cosine_centred": mean_cosine(centred(rows)),
        "uniformity": uniformity(rows),
        "effective_rank": effective_rank(rows),
        "participation_ratio": participation_ratio(rows),
        "mean_deviation": float(deviation.mean()),
        "flat_channels": float((deviation < 1e-3).double().mean()),
        "active_pairs": active,
        "active_pairs_normalised": normalised,
        **separation,
    }
    return Collapse(
        layer=layer,
        values=values,
        histogram=torch.histc(distance, bins, 0, top),
        edges=torch.linspace(0, top, bins + 1, dtype=torch.float64),
        tau=tau,
        rows=len(rows),
        channels=rows.shape[1],
        provenance={**features.provenance, "layer": layer, "measure": "collapse", "rows": len(rows)},
    )


def effective_rank(rows: Tensor) -> float:
    """Exp of the entropy of the normalised singular values of the centred rows (N, C); 0 if they are all equal."""
    values = torch.linalg.svdvals(centred(rows))
    if float(values.sum()) <= 1e-12 * float(rows.abs().max() + 1e-300):
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def participation_ratio(rows: Tensor) -> float:
    """(sum of eigenvalues)^2 / (sum of their squares) of the covariance of rows (N, C); 0 if they are all equal."""
    x = centred(rows)
    covariance = x.T @ x
    total = float(covariance.trace())
    return total**2 / float((covariance**2).sum()) if total > 0 else 0.0


def uniformity(rows: Tensor) -> float:
    """Log of the mean over pairs of exp(-2 |u_i - u_j|^2), u = rows scaled to length 1."""
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    upper = torch.triu_indices(len(units), len(units), 1)
    terms = -2 * squared_distances(units, units)[upper[0], upper[1]]
    return float(torch.logsumexp(terms, 0) - math.log(len(terms)))


def mean_cosine(rows: Tensor) -> float:
    """Mean cosine over all pairs of different rows (N, C)."""
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    total = float((units.sum(0) ** 2).sum() - (units**2).sum())
    return total / (len(units) * (len(units) - 1))


def _separation(rows: Tensor, table: DataFrame) -> dict[str, float]:
    result = {"silhouette": math.nan, "linear_probe": math.nan, "linear_probe_chance": math.nan}
    if "class" not in table.columns:
        return result
    labels, counts = table["class"].to_numpy(), table["class"].value_counts()
    if len(counts) < 2 or counts.min() < 2:
        return result
    from sklearn.metrics import silhouette_score

    values = rows.numpy()
    result["silhouette"] = float(silhouette_score(values, labels))
    result["linear_probe_chance"] = 1 / len(counts)
    patients = cluster_codes(table)[0].numpy()  # slices of one patient would tell a fold its answers
    if len(set(patients.tolist())) >= 2:
        result["linear_probe"] = _probe(values, labels, patients)
    return result


def _probe(values: Any, labels: Any, patients: Any) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = list(GroupKFold(min(5, len(set(patients.tolist())))).split(values, labels, patients))
    if any(len(set(labels[rows].tolist())) < 2 for rows, _ in folds):
        return math.nan
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    return float(balanced_accuracy_score(labels, cross_val_predict(probe, values, labels, cv=folds)))


def _evenly(table: DataFrame, max_rows: int, seed: int) -> Tensor:
    """Indices of at most `max_rows` rows, as evenly over the cases as they allow, ascending."""
    if len(table) <= max_rows:
        return torch.arange(len(table))
    groups = [torch.tensor(index.to_numpy()) for index in table.groupby("case", sort=True).groups.values()]
    each = math.ceil(max_rows / len(groups))
    pooled = torch.cat([group[subsample(len(group), each, "collapse", seed, k)] for k, group in enumerate(groups)])
    return pooled[subsample(len(pooled), max_rows, "collapse", seed, "all")].sort().values
