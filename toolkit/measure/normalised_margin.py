"""Margins of a linear head, normalised so that neither the scale of the features nor that of the head counts.

Source: Chuang et al., "Measuring Generalization with Optimal Transport" (NeurIPS 2021), the margin normalised by
k-variance and gradient norm.
"""

from __future__ import annotations

import math

import numpy as np

from toolkit.data.randomness import keyed_random

MOST_ROWS = 256  # of each of the two samples whose transport cost is computed exactly


def k_variance(rows: np.ndarray, key: tuple[int | str, ...], most: int = MOST_ROWS) -> float:
    """Wasserstein-1 distance of two disjoint random samples of k = min(N // 2, most) rows of (N, C); NaN below two rows.

    It is small where the rows of a class lie close together.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    k = min(len(rows) // 2, most)
    if k < 1:
        return math.nan
    chosen = keyed_random("k-variance", *key).choice(len(rows), 2 * k, replace=False)
    cost = cdist(rows[chosen[:k]], rows[chosen[k:]])
    return float(cost[linear_sum_assignment(cost)].mean())


def concentration(values: np.ndarray, labels: np.ndarray, known: np.ndarray, seed: int) -> float:
    """Mean k-variance of the classes, each class counted once."""
    found = [k_variance(values[labels == one].astype(np.float64), (seed, int(one))) for one in known]
    finite = [one for one in found if math.isfinite(one)]
    return float(np.mean(finite)) if finite else math.nan


def normalised_margins(
    values: np.ndarray, places: np.ndarray, weights: np.ndarray, biases: np.ndarray, spread: float
) -> np.ndarray:
    """Per row: (score of its class - best other score) / (|w_class - w_other| * spread); below 0 = misclassified.

    `places` are those of the rows' classes among `weights` (classes, C); `spread` is the features' `concentration`.
    """
    scores = values @ weights.T + biases
    index = np.arange(len(values))
    own = scores[index, places].copy()
    scores[index, places] = -np.inf
    other = scores.argmax(1)
    slope = np.linalg.norm(weights[:, None] - weights[None], axis=2)[places, other]
    return (own - scores[index, other]) / (slope * spread + 1e-12)


def median_margin(
    values: np.ndarray, labels: np.ndarray, known: np.ndarray, heads: tuple[np.ndarray, np.ndarray], seed: int
) -> float:
    """Median normalised margin of the rows of known classes, mean over heads (weights (B, K, C), biases (B, K))."""
    inside = np.isin(labels, known)
    values, labels = values[inside], labels[inside]
    spread = concentration(values, labels, known, seed)
    if not len(values) or not math.isfinite(spread):
        return math.nan
    places = np.searchsorted(known, labels)
    return float(
        np.mean([np.median(normalised_margins(values, places, w, b, spread)) for w, b in zip(*heads, strict=True)])
    )
