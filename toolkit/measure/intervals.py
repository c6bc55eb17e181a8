"""How well a mean over patients and seeds is known: its error, its interval, and what a design can see."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from toolkit.data.randomness import keyed_random
from toolkit.errors import ResultError

PATIENTS, SEEDS = (2, 3, 5, 10, 30, 60), (1, 2, 3, 5)
# Measured share of nominal 95 % intervals that held the true mean over patients and seeds, the worst of normal, skewed
# and Dice-like scores with missed organs, by patients (rows, as PATIENTS) and seeds (columns, as SEEDS). Written by
# `python -m benchmarks.interval_coverage` into benchmarks/results/coverage.csv; a test compares the two.
COVERAGE = (
    (0.84, 0.94, 0.83, 0.83),
    (0.78, 0.95, 0.89, 0.90),
    (0.82, 0.96, 0.95, 0.95),
    (0.91, 0.98, 0.96, 0.93),
    (0.84, 0.98, 0.96, 0.96),
    (0.74, 0.97, 0.96, 0.95),
)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of values over patients and seeds, and how well it is known."""

    mean: float  # over seeds and patients
    errors: tuple[tuple[float, float], ...]  # (standard error, degrees of freedom) of every test that has to agree
    patients: int  # how many
    # deviations of the patients' mean from bootstrap samples, in their own standard errors, sorted
    studentised: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.zeros(0))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The widest of Student's intervals of all tests and the bootstrap-t interval, on either side.

        The bootstrap-t interval (Efron and Tibshirani 1993, section 12.5) draws patients anew, and takes the error
        over patients and seeds: it follows the skew of the patients, which Student's interval does not know.
        """
        tail = (1 - confidence) / 2
        half = max(_student(freedom, 1 - tail) * error for error, freedom in self.errors)
        low, high = np.quantile(self.studentised, [tail, 1 - tail]) if len(self.studentised) else (0.0, 0.0)
        error = self.errors[0][0]
        return self.mean - max(half, high * error), self.mean + max(half, -low * error)

    def p_values(self) -> tuple[float, ...]:
        """Two-sided p of a mean of 0, one per test."""
        from scipy.special import stdtr

        return tuple(
            float(2 * stdtr(freedom, -abs(self.mean) / error)) if error > 0 else float(self.mean == 0)
            for error, freedom in self.errors
        )

    def p_bootstrap(self) -> float:
        """Two-sided p of a mean of 0 by the bootstrap-t distribution."""
        error, count = self.errors[0][0], len(self.studentised)
        if not error > 0:
            return float(self.mean == 0)
        below = np.searchsorted(self.studentised, self.mean / error, side="right")
        above = count - np.searchsorted(self.studentised, self.mean / error, side="left")
        return float(min(1.0, 2 * (min(below, above) + 1) / (count + 1)))

    def probability_wrong_side(self) -> float:
        """Posterior probability that the true mean is 0 or on the other side of 0.

        With the prior 1/variance the posterior of a mean is Student's t around the observed one (Gelman et al. 2013,
        section 3.2). For one seed this is the probability of a false claim of Christodoulou et al. 2025 for
        segmentation, t_{n-1}(sqrt(n) (b - a) / sqrt(s_a^2 + s_b^2 - 2 s_a s_b r_ab)), with the correlation taken from
        the paired scores; with more seeds the least certain of the tests is taken. No study of small effects is
        assumed: where most methods of a field differ by next to nothing, claims fail more often than this says.
        """
        return max(self.p_values()) / 2 if self.mean else 0.5

    def smallest_detectable(self, level: float = 0.05, power: float = 0.8) -> float:
        """The true mean that a new study of this design calls different from 0 with the given probability.

        The noncentral t distribution, averaged over what the standard error could have been (it is estimated, here and
        in the new study); raised by 4/patients, because all tests of a verdict must agree and scores are not normal. In
        simulated studies new ones found what earlier ones printed with probability 0.78 or more from 6 patients and 2
        seeds on (benchmarks/results/coverage.csv).
        """
        sizes = [_multiple(round(freedom, 1), level, power) * error for error, freedom in self.errors]
        return max(sizes) * (1 + 4 / self.patients)


def mean_of(values: np.ndarray, folds: np.ndarray | None = None, *, replicates: int = 2000, seed: int = 0) -> Mean:
    """Mean of values (patients, seeds) when patients and seeds are both samples.

    The variance of the mean is (MS_patient + MS_seed) / (patients * seeds) (mean squares of the two-way layout;
    Satterthwaite's degrees of freedom): unbiased but for a share of the interaction, on the cautious side. When trainings
    vary more than patients, that alone is too sure, because few seeds leave their variance badly known; so a second
    test takes the seeds' means alone. With one seed the difference between two trainings cannot be told from the
    difference between two methods: only the patients' test is left, and it stands for these trainings.

    In cross-validation the patients of a fold share a training, so that their errors go together: the variance of the
    mean squares of fold x seed (with one seed: what folds vary more than their patients explain) is added. That the
    training sets of folds overlap is not accounted for; no unbiased estimate exists (Bengio and Grandvalet 2004).

    Without `replicates` (bootstrap samples of patients) there are Student's intervals alone.
    """
    d = np.asarray(values, dtype=float)
    if d.ndim != 2 or len(d) < 2 or not np.isfinite(d).all():
        raise ResultError(f"Values are (patients, seeds) with at least 2 patients, got {d.shape} or NaN.")
    errors = [(float(error), float(freedom)) for error, freedom in errors_of(d, folds)]
    return Mean(float(d.mean()), tuple(errors), len(d), _studentised(d.mean(1), replicates, seed))


def errors_of(d: np.ndarray, folds: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Standard errors and degrees of freedom of every test of `mean_of`, for values (..., patients, seeds)."""
    patients, seeds = d.shape[-2:]
    parts = [(d.mean(-1).var(-1, ddof=1) / patients, patients - 1)]
    by_seed = (d.mean(-2).var(-1, ddof=1) / seeds, seeds - 1) if seeds > 1 else None
    if folds is not None:
        parts.append(_of_folds(d, np.asarray(folds), parts[0][0]))
    if by_seed is not None:
        parts.append(by_seed)
    total = np.asarray(sum(variance for variance, _ in parts))
    spread = np.asarray(sum(variance**2 / freedom for variance, freedom in parts))
    freedoms = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1), parts[-1][1])
    errors = [(np.sqrt(total), freedoms)]
    return errors if by_seed is None else [*errors, (np.sqrt(by_seed[0]), np.asarray(by_seed[1]))]


def measured_coverage(patients: int, seeds: int) -> float:
    """Measured coverage of nominal 95 % intervals in the largest simulated design that is not larger than this one."""
    row, column = sum(patients >= least for least in PATIENTS) - 1, sum(seeds >= least for least in SEEDS) - 1
    return COVERAGE[row][column] if row >= 0 and column >= 0 else math.nan


def patient_bootstrap(
    values: np.ndarray, replicates: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of values (patients, seeds) with patients drawn anew."""
    per_patient = np.asarray(values, dtype=float).mean(1)
    means = bootstrap_shares(len(per_patient), replicates, seed) @ per_patient
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _of_folds(d: np.ndarray, folds: np.ndarray, by_patient: np.ndarray) -> tuple[np.ndarray, int]:
    """Variance of the mean from trainings that a fold's patients share, and its degrees of freedom."""
    names = np.unique(folds)
    if len(folds) != d.shape[-2] or len(names) < 2:
        what = f"Folds are one name a patient, at least two different ones; got {len(names)} for {d.shape[-2]}."
        raise ResultError(what)
    cells = np.stack([d[..., folds == name, :].mean(-2) for name in names], axis=-2)
    count, seeds = cells.shape[-2:]
    if seeds == 1:
        return np.maximum(cells[..., 0].var(-1, ddof=1) / count - by_patient, 0.0), count - 1
    rest = cells - cells.mean(-1, keepdims=True) - cells.mean(-2, keepdims=True) + cells.mean((-2, -1), keepdims=True)
    freedom = (count - 1) * (seeds - 1)
    return (rest**2).sum((-2, -1)) / freedom / (count * seeds), freedom


def _studentised(per_patient: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    number = len(per_patient)
    centred = per_patient - per_patient.mean()
    draws = bootstrap_shares(number, replicates, seed)
    means = draws @ centred
    errors = np.sqrt(np.maximum(draws @ centred**2 - means**2, 0) / (number - 1))
    usable = errors > 1e-9 * max(np.abs(centred).max(), 1e-300)  # a sample of one patient again and again has no error
    return np.sort(means[usable] / errors[usable])


@functools.lru_cache(maxsize=16)
def bootstrap_shares(number: int, replicates: int, seed: int) -> np.ndarray:
    """Weights (replicates, patients) of bootstrap samples."""
    return keyed_random("patients", seed, number).multinomial(number, [1 / number] * number, size=replicates) / number


def _student(freedom: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


@functools.lru_cache(maxsize=1024)
def _multiple(freedom: float, level: float, power: float) -> float:
    """The effect, in standard errors of one study, that a two-sided t test of another one finds with this probability."""
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    errors = np.sqrt(chdtri(freedom, (np.arange(200) + 0.5) / 200) / freedom)  # equally likely, true error 1
    bars = _student(freedom, 1 - level / 2) * errors[:, None]
    return float(np.exp(brentq(lambda log: ndtr(np.exp(log) * errors - bars).mean() - power, -5, 25, xtol=1e-5)))


SIZES = (6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 500)


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
    """The fewest of `SIZES` with which this power is reached, and the power there; None = not even with the most.

    `design` is seeds and folds; for the rest see `power_of`.
    """
    sizes = [number for number in SIZES if number >= 2 * design[1]]
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
