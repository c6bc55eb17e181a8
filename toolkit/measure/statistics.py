"""Comparing methods: paired by patient, over seeds, with a verdict that can be "inconclusive"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.results import Result

if TYPE_CHECKING:
    import pandas as pd

INCONCLUSIVE = "inconclusive"
# A winner needs p <= CAUTION * level. In 20 000 simulated studies a design (2 to 5 seeds, 12 to 30 patients, 1 to 6
# equal methods, spread of trainings from none to five times that of patients) at most 5.4 % had a false winner at
# p <= 0.05, which is the level itself give or take the simulation's error, and at most 4.3 % at p <= 0.04.
CAUTION = 0.8
_COLUMNS = (
    "method",
    "mean",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "bootstrap_low",
    "bootstrap_high",
    "p_mean",
    "p_seeds",
    "p_wilcoxon",
    "p_holm",
    "smallest_detectable",
    "patients",
    "seeds",
    "verdict",
)


@dataclasses.dataclass(kw_only=True)
class Comparison(Result):
    """Methods compared with a baseline.

    Attributes:
        baseline: the method the others are compared with.
        metric: what was compared.
        numbers: one row per method, see `compare_scores`.
    """

    baseline: str
    metric: str
    numbers: pd.DataFrame
    kind: ClassVar[str] = "comparison"

    def table(self) -> pd.DataFrame:
        """One row per method."""
        return self.numbers.copy()


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """The mean of paired differences over patients and seeds, and how well it is known.

    Attributes:
        mean: over seeds and patients.
        errors: (standard error, degrees of freedom) of every test that has to agree.
    """

    mean: float
    errors: tuple[tuple[float, float], ...]

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's interval, the widest of the tests."""
        half = max(_student(freedom, (1 + confidence) / 2) * error for error, freedom in self.errors)
        return self.mean - half, self.mean + half

    def p_values(self) -> tuple[float, ...]:
        """Two-sided p of no difference, one per test."""
        from scipy.special import stdtr

        return tuple(
            float(2 * stdtr(freedom, -abs(self.mean) / error)) if error > 0 else float(self.mean == 0)
            for error, freedom in self.errors
        )

    def smallest_detectable(self, level: float = 0.05, power: float = 0.8) -> float:
        """The true difference that this design would call significant with about the given probability."""
        return max(
            (_student(freedom, 1 - level / 2) + _student(freedom, power)) * error for error, freedom in self.errors
        )


def mean_difference(differences: np.ndarray) -> MeanDifference:
    """Mean of paired differences (patients, seeds) when patients and seeds are both samples.

    Two tests have to agree. The first takes (MS_patient + MS_seed) / (patients * seeds) as the variance of the mean
    (mean squares of the two-way layout; Satterthwaite's degrees of freedom): unbiased but for a share of the
    interaction, on the cautious side. When trainings vary more than patients that alone finds too many winners, because few
    seeds leave their variance badly known; so the second is Student's test over the seeds' means. Where the seeds
    dominate, the pair is no stricter than its second test, which is exact: see `CAUTION` for what that means for
    verdicts. With one seed the difference between two trainings cannot be told from the difference between two
    methods: only the patients' test is left, and it stands for this pair of trainings.

    Raises:
        ResultError: fewer than 2 patients, or NaN.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 2 or len(d) < 2 or not np.isfinite(d).all():
        raise ResultError(f"Paired differences are (patients, seeds) with at least 2 patients, got {d.shape} or NaN.")
    patients, seeds = d.shape
    by_patient = float(d.mean(1).var(ddof=1)) / patients
    if seeds == 1:
        return MeanDifference(float(d.mean()), ((math.sqrt(by_patient), patients - 1),))
    by_seed = float(d.mean(0).var(ddof=1)) / seeds
    both = by_patient + by_seed
    spread = by_patient**2 / (patients - 1) + by_seed**2 / (seeds - 1)
    freedom = both**2 / spread if spread > 0 else float(seeds - 1)
    return MeanDifference(float(d.mean()), ((math.sqrt(both), freedom), (math.sqrt(by_seed), seeds - 1)))


def patient_bootstrap(
    values: np.ndarray, replicates: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of values (patients, seeds) with patients drawn anew."""
    per_patient = np.asarray(values, dtype=float).mean(1)
    number = len(per_patient)
    weights = keyed_random("patients", seed, number).multinomial(number, [1 / number] * number, size=replicates)
    low, high = np.quantile(weights @ per_patient / number, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    adjusted, known = np.full_like(p, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def compare_methods(
    table: pd.DataFrame, baseline: str, *, metric: str = "dice", patient: str | None = None, **options: Any
) -> Comparison:
    """Compare methods with a baseline on evaluation tables, paired by patient and by seed.

    Args:
        table: rows with method, seed, case, class, metric, value, status; NaN = absent from reference and prediction.
        baseline: a method of the table.
        metric: which metric.
        patient: column that identifies a patient (default: subject, else volume, else case).
        options: of `compare_scores`.

    Raises:
        ResultError: missing columns, an incomplete design, fewer than 2 patients.
        ConfigError: the baseline is not in the table.
    """
    options = {"higher_is_better": metric in ("dice", "iou"), **options}
    result = compare_scores(patient_scores(table, metric, patient), baseline, **options)
    result.metric = metric
    result.provenance["parameters"]["metric"] = metric
    return result


def compare_scores(
    scores: Mapping[str, np.ndarray],
    baseline: str,
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare methods with a baseline on scores (patients, seeds), rows and columns paired between methods.

    A method is "better" or "worse" only if there are at least two seeds and three tests agree after Holm's correction
    over the methods: those of `mean_difference`, and Wilcoxon's signed-rank test over the patients (seeds averaged),
    each at `CAUTION` (0.8) times 1 - confidence, so that studies of equal methods stay below 1 - confidence false
    winners also where the tests alone sit exactly there. An interval can thus exclude 0 without a verdict.
    Everything else is "inconclusive", and the smallest difference that the design could have detected (at that
    level, power 0.8, before Holm's correction) stands beside it.

    Args:
        scores: per method, a complete array (patients, seeds).
        baseline: one of the methods.
        higher_is_better: False for distances.
        confidence: level of intervals and tests.
        bootstrap: replicates of the patient bootstrap.
        seed: of the bootstrap.

    Returns:
        Per method: mean, low, high (patient bootstrap), difference, difference_low, difference_high (patients and
        seeds random), bootstrap_low, bootstrap_high (of the difference, patients only), p_mean, p_seeds (NaN with one
        seed), p_wilcoxon, p_holm (of the largest of the three), smallest_detectable, patients, seeds, verdict.

    Raises:
        ResultError: shapes differ, NaN, fewer than 2 patients.
        ConfigError: no such baseline, or a setting that cannot work.
    """
    import pandas as pd

    if not 0 < confidence < 1 or bootstrap < 1:
        raise ConfigError(
            "These settings cannot work.",
            where=f"{confidence=}, {bootstrap=}",
            fix="confidence lies in (0, 1), for example 0.95, and at least one replicate is drawn.",
        )
    if baseline not in scores:
        raise ConfigError(f"There is no method {baseline!r}.", fix=f"Methods: {', '.join(scores)}.")
    base = np.asarray(scores[baseline], dtype=float)
    if base.ndim != 2 or len(base) < 2 or not base.shape[1]:
        raise ResultError(
            f"The scores of {baseline!r} have the shape {base.shape}; they are (patients, seeds) of at least 2 patients.",
            fix="One training gives one column: scores[:, None].",
        )
    rows = []
    for name, values in scores.items():
        own = np.asarray(values, dtype=float)
        if own.shape != base.shape:
            raise ResultError(f"{name!r} has scores {own.shape}, the baseline {base.shape} (patients, seeds).")
        if not np.isfinite(own).all():
            raise ResultError(
                f"{int((~np.isfinite(own)).sum())} scores of {name!r} are NaN or infinite.",
                fix="Fill them with a penalty, or leave those patients out of all methods.",
            )
        rows.append(_row(name, own, None if name == baseline else base, confidence, bootstrap, seed))
    tests = np.array([[row["p_mean"], row["p_seeds"], row["p_wilcoxon"]] for row in rows])
    adjusted = holm(np.where(np.isnan(tests[:, 0]), np.nan, np.nan_to_num(tests).max(1)))
    for row, p in zip(rows, adjusted, strict=True):
        is_base = row["method"] == baseline
        row["p_holm"] = float(p)
        row["verdict"] = "baseline" if is_base else _verdict(row, CAUTION * (1 - confidence), higher_is_better)
    parameters = {"baseline": baseline, "confidence": confidence, "bootstrap": bootstrap, "seed": seed}
    return Comparison(
        baseline=baseline,
        metric="",
        numbers=pd.DataFrame(rows)[list(_COLUMNS)],
        provenance={"measure": "comparison", "parameters": parameters},
    )


def patient_scores(table: pd.DataFrame, metric: str = "dice", patient: str | None = None) -> dict[str, np.ndarray]:
    """Per method, a complete (patients, seeds) array of scores averaged over classes, then over a patient's cases.

    A class absent from the reference counts 1 (Dice, IoU) or 0 (distances) for a method that leaves it absent if any
    method or seed predicts it in that case, so that a false alarm costs; else the class is left out for all.
    Undefined distances of missed or spurious classes must be filled by a penalty first.

    Raises:
        ResultError: missing columns, undefined values, or an incomplete design (says what is missing).
    """
    unit = patient or next((name for name in ("subject", "volume", "case") if name in table.columns), "case")
    needed = ["method", "seed", "case", "class", "metric", "value", "status", unit]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ResultError(f"The table lacks the columns {missing}.")
    rows = table[table["metric"] == metric].assign(patient=lambda frame: frame[unit])
    if rows.empty:
        raise ResultError(f"The table holds no {metric!r}.", fix=f"It holds: {sorted(set(table['metric']))}.")
    absent = rows["status"] == "both_absent"
    if rows.loc[~absent, "value"].isna().any():
        raise ResultError(
            f"Some {metric} values are undefined because the organ was missed or spurious.",
            fix="Fill them with a penalty (for example the image diagonal) before comparing, or compare Dice.",
        )
    counts = rows.groupby(["method", "seed"], sort=False).size()
    if counts.nunique() > 1 or len(counts) != rows["method"].nunique() * rows["seed"].nunique():
        raise ResultError(f"The design is incomplete: rows per method and seed are {counts.to_dict()}.")
    places = ["patient", "case", "class"]
    wide = rows.pivot_table(index=places, columns=["method", "seed"], values="value", dropna=False)
    wide = wide.reindex(rows.set_index(places).index.unique())
    wide = wide[wide.notna().any(axis=1)].fillna(1.0 if metric in ("dice", "iou") else 0.0)
    per_patient = wide.groupby(level=["patient", "case"]).mean().groupby(level="patient").mean()
    methods = list(dict.fromkeys(rows["method"]))
    return {str(name): per_patient[name].sort_index(axis=1).to_numpy() for name in methods}


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided signed-rank p of paired differences (patients,); 1 if all are 0."""
    from scipy import stats

    nonzero = differences[differences != 0]
    return float(stats.wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0


def _student(freedom: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _row(
    name: str, own: np.ndarray, base: np.ndarray | None, confidence: float, bootstrap: int, seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, math.nan)
    row |= {"method": name, "mean": float(own.mean()), "patients": len(own), "seeds": own.shape[1]}
    row["low"], row["high"] = patient_bootstrap(own, bootstrap, confidence, seed)
    if base is None:
        return row
    known = mean_difference(own - base)
    row["difference"] = known.mean
    row["difference_low"], row["difference_high"] = known.interval(confidence)
    row["bootstrap_low"], row["bootstrap_high"] = patient_bootstrap(own - base, bootstrap, confidence, seed)
    row["p_mean"], row["p_seeds"] = (*known.p_values(), math.nan)[:2]
    row["p_wilcoxon"] = wilcoxon((own - base).mean(1))
    row["smallest_detectable"] = known.smallest_detectable(CAUTION * (1 - confidence))
    return row


def _verdict(row: dict[str, Any], level: float, higher_is_better: bool) -> str:
    if row["seeds"] < 2:
        return f"{INCONCLUSIVE} (one seed)"
    if not row["p_holm"] <= level:
        return INCONCLUSIVE
    return "better" if (row["difference"] > 0) == higher_is_better else "worse"
