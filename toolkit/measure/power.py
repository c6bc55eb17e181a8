"""How many patients and seeds a study needs to find a stated difference: simulated studies, judged as real ones are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.data.randomness import keyed_random
from toolkit.measure.intervals import bootstrap_shares, errors_of

PATIENTS = (6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 500)


def spread_of(values: np.ndarray, folds: np.ndarray | None = None) -> tuple[float, float, float]:
    """Standard deviations of paired differences (patients, seeds): between patients, between trainings, and the rest.

    From the mean squares of the two-way layout without replicates, in cross-validation within folds (Searle, Casella and
    McCulloch 1992, section 4.3; a negative variance counts as 0). NaN with one seed, which cannot tell them apart.
    """
    d = np.asarray(values, dtype=float)
    if d.shape[1] < 2:
        return (float("nan"),) * 3
    names = np.zeros(len(d)) if folds is None else np.asarray(folds)
    parts = [d[names == name] for name in np.unique(names)]
    parts = [part for part in parts if len(part) > 1] or [d]
    seeds = d.shape[1]
    freedom = sum(len(part) - 1 for part in parts)
    interactions = [part - part.mean(1, keepdims=True) - part.mean(0) + part.mean() for part in parts]
    rest = sum(float((one**2).sum()) for one in interactions) / (freedom * (seeds - 1))
    patients = sum(seeds * float(part.mean(1).var()) * len(part) for part in parts) / freedom
    trainings = np.mean([(float(part.mean(0).var(ddof=1)) - rest / len(part)) for part in parts])
    variances = ((patients - rest) / seeds, float(trainings), rest)
    return tuple(float(np.sqrt(max(variance, 0.0))) for variance in variances)  # type: ignore[return-value]


def power_of(
    effect: float,
    spread: Sequence[float],
    design: tuple[int, int, int],
    *,
    level: float,
    studies: int = 400,
    replicates: int = 1000,
    seed: int = 0,
) -> float:
    """Share of simulated studies that find a true difference: all four tests of a verdict at `level`, on its side of 0.

    `spread` is that of `spread_of`: patients, trainings and the rest are normal; `design` is patients, seeds and folds
    (1 = no cross-validation). The sign of the effect does not matter.
    """
    patients, seeds, count = design
    random = keyed_random("power", seed, patients, seeds, count)
    folds = np.arange(patients) % count
    d = abs(effect) + spread[0] * random.normal(size=(studies, patients, 1))
    d = d + spread[1] * random.normal(size=(studies, count, seeds))[:, folds]
    d += spread[2] * random.normal(size=d.shape)
    return float(won(d, folds if count > 1 else None, level=level, replicates=replicates, seed=seed).mean())


def won(
    d: np.ndarray, folds: np.ndarray | None = None, *, level: float, replicates: int = 1000, seed: int = 0
) -> np.ndarray:
    """For paired differences (studies, patients, seeds): whether all four tests find a mean above 0 at `level`."""
    from scipy.special import stdtr
    from scipy.stats import wilcoxon

    means, errors = d.mean((1, 2)), errors_of(d, folds)
    wins = means > 0
    for error, freedom in errors:
        wins &= 2 * stdtr(freedom, -np.abs(means) / np.maximum(error, 1e-300)) <= level
    per_patient = d.mean(2)
    wins[wins] &= wilcoxon(per_patient[wins], axis=1).pvalue <= level if wins.any() else True
    wins[wins] &= _p_bootstrap(per_patient[wins], means[wins] / errors[0][0][wins], replicates, seed) <= level
    return np.asarray(wins)


def fewest_patients(
    effect: float, power: float, spread: Sequence[float], design: tuple[int, int], *, level: float, studies: int = 400
) -> tuple[int | None, float]:
    """The fewest of `PATIENTS` with which this power is reached, and the power there; None = not even with the most.

    `design` is seeds and folds; for the rest see `power_of`.
    """
    sizes = [number for number in PATIENTS if number >= 2 * design[1]]
    powers: dict[int, float] = {}

    def enough(index: int) -> bool:
        powers[index] = power_of(effect, spread, (sizes[index], *design), level=level, studies=studies)
        return powers[index] >= power

    low, high = 0, len(sizes) - 1
    if not enough(high):
        return None, powers[high]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return sizes[high], powers[high]


def _p_bootstrap(per_patient: np.ndarray, observed: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """`Mean.p_bootstrap` of many studies (studies, patients) at once."""
    number = per_patient.shape[1]
    centred = (per_patient - per_patient.mean(1, keepdims=True)).T
    weights = bootstrap_shares(number, replicates, seed)
    means = weights @ centred
    errors = np.sqrt(np.maximum(weights @ centred**2 - means**2, 0) / (number - 1))
    usable = errors > 1e-9 * np.maximum(np.abs(centred).max(0), 1e-300)
    studentised = np.where(usable, means / np.where(usable, errors, 1), np.nan)
    fewer = np.minimum((studentised <= observed).sum(0), (studentised >= observed).sum(0))
    return np.minimum(1.0, 2 * (fewer + 1) / (usable.sum(0) + 1))
