"""Comparing methods: paired by patient, over seeds, with a verdict that can be "inconclusive"."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from toolkit.errors import ConfigError, ResultError
from toolkit.files import write_atomically
from toolkit.measure.intervals import fewest_patients, mean_of, measured_coverage, patient_bootstrap, spread_of
from toolkit.results import DataFrame, Numbers, as_table, latex_table

INCONCLUSIVE = "inconclusive"
# A winner needs p <= CAUTION * level. In 20 000 simulated studies a design (2 to 5 seeds, 12 to 30 patients, 1 to 6
# equal methods, spread of trainings from none to five times that of patients) at most 5.4 % had a false winner at
# p <= 0.05, which is the level itself give or take the simulation's error, and at most 4.3 % at p <= 0.04.
CAUTION = 0.8
_TESTS = ("p_mean", "p_seeds", "p_bootstrap", "p_wilcoxon")
_SPREADS = ("patient_spread", "training_spread", "rest_spread")
_COLUMNS = [
    *("method", "mean", "low", "high", "difference", "difference_low", "difference_high", "coverage"),
    *("bootstrap_low", "bootstrap_high", *_TESTS, "p_holm", "probability_not_better", "smallest_detectable"),
    *(*_SPREADS, "patients", "seeds", "verdict"),
]


@dataclasses.dataclass(kw_only=True)
class Comparison(Numbers):
    """Methods compared with a baseline.

    Attributes:
        baseline: the method the others are compared with.
        metric: what was compared.
        numbers: one row per method, see `compare_scores`.
    """

    baseline: str
    metric: str
    kind: ClassVar[str] = "comparison"

    def paper_table(self, digits: int = 3) -> DataFrame:
        """A row a method as a paper prints it: mean (low to high), difference (low to high), verdict.

        Args:
            digits: digits after the point.
        """

        def spread(row: Any, name: str, low: str, high: str, sign: str = "") -> str:
            value, ends = f"{row[name]:{sign}.{digits}f}", [f"{row[end]:{sign}.{digits}f}" for end in (low, high)]
            return f"{value} ({ends[0]} to {ends[1]})" if math.isfinite(row[name]) else "--"

        level = self.provenance.get("parameters", {}).get("confidence", 0.95)
        score = f"{self.metric or 'score'} ({level:.0%} interval)"
        rows = []
        for _, row in self.numbers.iterrows():
            ends = spread(row, "difference", "difference_low", "difference_high", "+")
            rows.append((row["method"], spread(row, "mean", "low", "high"), ends, row["verdict"]))
        return as_table(rows, columns=["method", score, f"difference to {self.baseline}", "verdict"])

    def needed(self, effect: float, power: float = 0.8, *, seeds: Sequence[int] = (2, 3, 5, 10)) -> DataFrame:
        """The patients and seeds with which a verdict would find a true difference, from how this study's differences vary.

        Studies with a normal spread between patients, between trainings and of the rest, each as estimated here, are
        simulated and judged as this one was (400 a design: the power is known to about 0.04). What few seeds tell about
        trainings is little, so the numbers are the plan that follows from this study, not a guarantee.

        Args:
            effect: true difference to the baseline, in units of the metric.
            power: probability with which it is to be found.
            seeds: numbers of seeds to look at, each at least 2; in cross-validation a seed is one training a fold.

        Returns:
            A row a method and number of seeds: method, seeds, patients (the fewest of 6, 8, 10, ... 500 with that power;
            <NA> where 500 are not enough) and power (simulated with so many; else with 500).

        Raises:
            ConfigError: an effect of 0, a power outside (0, 1), or fewer than 2 seeds.
            ResultError: a study of one seed, which cannot tell trainings from methods, or a table saved before 0.2.
        """
        if not (effect and math.isfinite(effect)) or not 0 < power < 1 or not seeds or min(seeds) < 2:
            what = "An effect is not 0, a power lies in (0, 1), and a verdict needs 2 seeds."
            raise ConfigError(what, where=f"needed({effect=}, {power=}, {seeds=})")
        others = self.numbers[self.numbers["method"] != self.baseline]
        if not set(_SPREADS) <= set(others) or others[list(_SPREADS)].isna().any(axis=None):
            what = "It is not known how trainings vary: this comparison has one seed, or was saved by an older version."
            raise ResultError(what, fix="Compare at least two seeds, and compare saved scores again.")
        settings = self.provenance.get("parameters", {})
        level = CAUTION * (1 - settings.get("confidence", 0.95)) / max(1, len(others))
        rows = []
        for _, row in others.iterrows():
            for count in seeds:
                design = (int(count), int(settings.get("folds") or 1))
                patients, reached = fewest_patients(effect, power, list(row[list(_SPREADS)]), design, level=level)
                rows.append({"method": row["method"], "seeds": design[0], "patients": patients, "power": reached})
        return as_table(rows).astype({"patients": "Int64"})

    def write_table(self, path: str | os.PathLike[str], digits: int = 3) -> Path:
        """Write all numbers as CSV, or `paper_table(digits)` as a LaTeX tabular, by suffix (.csv or .tex)."""
        if Path(path).suffix != ".tex":
            return super().write_table(path)
        return write_atomically(Path(path), latex_table(self.paper_table(digits)), parents=True)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    adjusted, known = np.full_like(p, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def compare_methods(
    table: DataFrame, baseline: str, *, metric: str = "dice", patient: str | None = None, **options: Any
) -> Comparison:
    """Compare methods with a baseline on evaluation tables, paired by patient and by seed.

    Intervals of Dice and IoU end where the score does: few patients and one seed may say nothing, and then fill the range.

    Args:
        table: rows with method, seed, case, class, metric, value, status; NaN = absent from reference and prediction.
            In cross-validation also fold, the one that tested the case: the intervals then know that patients of a
            fold share a training.
        baseline: a method of the table.
        metric: which metric.
        patient: column that identifies a patient (default: subject, else volume, else case).
        options: of `compare_scores`.

    Raises:
        ResultError: missing columns, an incomplete design, fewer than 2 patients.
        ConfigError: the baseline is not in the table.

    Example:
        >>> tables = [tk.evaluate(network, task.cases("test")) for network in (model, tk.unet(1, 4, channels=(4, 8)))]
        >>> rows = pd.concat([t.assign(method=m, seed=0) for t, m in zip(tables, ["trained", "plain"])])
        >>> verdict = tk.compare_methods(rows, baseline="plain").table()
    """
    options = {"higher_is_better": metric in ("dice", "iou"), **options}
    if "fold" in table.columns:
        options["folds"] = _folds_of(table[table["metric"] == metric], patient or patient_column(table))
    result = compare_scores(patient_scores(table, metric, patient), baseline, **options)
    result.metric = metric
    if metric in ("dice", "iou"):  # an interval holds no value that the score cannot have
        for least, name in ((0, ""), (-1, "difference_"), (-1, "bootstrap_")):
            ends = [f"{name}low", f"{name}high"]
            result.numbers[ends] = result.numbers[ends].clip(least, 1)
    result.provenance["parameters"]["metric"] = metric
    return result


def compare_scores(
    scores: Mapping[str, np.ndarray],
    baseline: str,
    *,
    higher_is_better: bool = True,
    folds: Sequence[Any] | None = None,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare methods with a baseline on scores (patients, seeds), rows and columns paired between methods.

    Intervals of means and of differences are over patients and seeds (with one seed over patients only: they speak of
    these trainings), see `toolkit.measure.intervals`. A method is "better" or "worse" only if there are at least two
    seeds and four tests agree after Holm's correction over the methods: Student's of patients and seeds, Student's of
    the seeds' means, the bootstrap-t over patients, and Wilcoxon's signed-rank test over patients (seeds averaged), each
    at `CAUTION` (0.8) times 1 - confidence, so that studies of equal methods stay below 1 - confidence false winners.
    An interval can thus exclude 0 without a verdict. Everything else is "inconclusive"; where Wilcoxon's test cannot
    reach that level with so few patients the verdict says so, and nothing is detectable.

    Args:
        scores: per method, a complete array (patients, seeds).
        baseline: one of the methods.
        higher_is_better: False for distances.
        folds: in cross-validation, the fold that tested each patient.
        confidence: level of intervals and tests.
        bootstrap: replicates of the patient bootstrap.
        seed: of the bootstrap.

    Returns:
        Per method: mean, low, high; difference, difference_low, difference_high; coverage (the share of nominal 95 %
        intervals that held the true mean over patients and seeds in simulated studies of this size, the worst of
        several kinds of scores: benchmarks/results/coverage.csv); bootstrap_low, bootstrap_high (percentiles of the
        difference, patients only); p_mean, p_seeds (NaN with one seed), p_bootstrap, p_wilcoxon, p_holm (of the
        largest of the four); probability_not_better (that the method which leads in this pair is not better: its
        Bayesian posterior from the paired scores, see Christodoulou et al. 2025 on claims of outperformance);
        smallest_detectable (true difference that a verdict of a new study of this size finds with probability 0.8, at
        Holm's first step; 0.78 and more in simulated studies; NaN where no verdict is possible; `Comparison.needed`
        plans for a stated difference); patient_spread, training_spread,
        rest_spread (standard deviations of the difference, see `toolkit.measure.intervals.spread_of`); patients, seeds,
        verdict.

    Raises:
        ResultError: shapes differ, NaN, fewer than 2 patients.
        ConfigError: no such baseline, or an invalid setting.

    Example:
        >>> plain = np.random.default_rng(0).random((12, 3))  # patients x seeds
        >>> scores = {"plain": plain, "segreg": plain + 0.1}
        >>> verdict = tk.compare_scores(scores, baseline="plain").table()
    """
    if bootstrap < 1:
        raise ConfigError("At least one replicate is drawn.", where=f"{bootstrap=}")
    if baseline not in scores:
        raise ConfigError(f"There is no method {baseline!r}.", fix=f"Methods: {', '.join(scores)}.")
    base = np.asarray(scores[baseline], dtype=float)
    if base.ndim != 2 or len(base) < 2 or not base.shape[1]:
        what = f"Scores of {baseline!r} have the shape {base.shape}; they are (patients, seeds) of at least 2 patients."
        raise ResultError(what, fix="One training gives one column: scores[:, None].")
    rows = []
    for name, values in scores.items():
        own = np.asarray(values, dtype=float)
        if own.shape != base.shape:
            raise ResultError(f"{name!r} has scores {own.shape}, the baseline {base.shape} (patients, seeds).")
        if not np.isfinite(own).all():
            fix = "Fill them with a penalty, or leave those patients out of all methods."
            raise ResultError(f"{int((~np.isfinite(own)).sum())} scores of {name!r} are NaN or infinite.", fix=fix)
        rows.append(_row(name, own, None if name == baseline else base, folds, confidence, bootstrap, seed))
    tests = np.array([[row[name] for name in _TESTS] for row in rows])
    adjusted = holm(np.where(np.isnan(tests[:, 0]), np.nan, np.nan_to_num(tests).max(1)))
    level = CAUTION * (1 - confidence)
    for row, p in zip(rows, adjusted, strict=True):
        row["p_holm"] = float(p)
        if row["method"] == baseline:
            row["verdict"] = "baseline"
            continue
        difference = row.pop("test")
        possible = row["seeds"] > 1 and 2 * 0.5 ** row["patients"] * (len(rows) - 1) <= level
        if possible:
            row["smallest_detectable"] = difference.smallest_detectable(level / (len(rows) - 1))
        if row["seeds"] < 2:
            row["verdict"] = f"{INCONCLUSIVE} (one seed)"
        elif not possible:
            row["verdict"] = f"{INCONCLUSIVE} ({row['patients']} patients are too few for any verdict)"
        elif not row["p_holm"] <= level:
            row["verdict"] = INCONCLUSIVE
        else:
            row["verdict"] = "better" if (row["difference"] > 0) == higher_is_better else "worse"
    parameters = {"baseline": baseline, "confidence": confidence, "bootstrap": bootstrap, "seed": seed}
    if folds is not None:
        parameters["folds"] = len(set(folds))
    made_by = {"measure": "comparison", "parameters": parameters}
    return Comparison(baseline=baseline, metric="", numbers=as_table(rows)[_COLUMNS], provenance=made_by)


def patient_scores(table: DataFrame, metric: str = "dice", patient: str | None = None) -> dict[str, np.ndarray]:
    """Per method, a complete (patients, seeds) array of scores averaged over classes, then over a patient's cases.

    A class absent from the reference counts 1 (Dice, IoU) or 0 (distances) for a method that leaves it absent if any
    method or seed predicts it in that case, so that a false alarm costs; else the class is left out for all.
    Undefined distances of missed or spurious classes must be filled by a penalty first.
    """
    unit = patient or patient_column(table)
    needed = ["method", "seed", "case", "class", "metric", "value", "status", unit]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ResultError(f"The table lacks the columns {missing}.")
    rows = table[table["metric"] == metric].assign(patient=lambda frame: frame[unit])
    if rows.empty:
        raise ResultError(f"The table holds no {metric!r}.", fix=f"It holds: {sorted(set(table['metric']))}.")
    absent = rows["status"] == "both_absent"
    if rows.loc[~absent, "value"].isna().any():
        fix = "Fill them with a penalty (for example the image diagonal) before comparing, or compare Dice."
        raise ResultError(f"Some {metric} values are undefined because the organ was missed or spurious.", fix=fix)
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


def patient_column(table: DataFrame) -> str:
    """The column of a table of scores that identifies a patient."""
    return next((name for name in ("subject", "volume", "case") if name in table.columns), "case")


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided signed-rank p of paired differences (patients,); 1 if all are 0."""
    from scipy import stats

    nonzero = differences[differences != 0]
    return float(stats.wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0


def _row(
    name: str,
    own: np.ndarray,
    base: np.ndarray | None,
    folds: Sequence[Any] | None,
    confidence: float,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, math.nan)
    row |= {"method": name, "mean": float(own.mean()), "patients": len(own), "seeds": own.shape[1]}
    places = None if folds is None else np.asarray(folds)
    row["low"], row["high"] = mean_of(own, places, replicates=bootstrap, seed=seed).interval(confidence)
    row["coverage"] = measured_coverage(len(own), own.shape[1])
    if base is None:
        return row
    difference = row["test"] = mean_of(own - base, places, replicates=bootstrap, seed=seed)
    row["difference"] = difference.mean
    row["difference_low"], row["difference_high"] = difference.interval(confidence)
    row["bootstrap_low"], row["bootstrap_high"] = patient_bootstrap(own - base, bootstrap, confidence, seed)
    row["p_mean"], row["p_seeds"] = (*difference.p_values(), math.nan)[:2]
    row["p_bootstrap"] = difference.p_bootstrap()
    row["p_wilcoxon"] = wilcoxon((own - base).mean(1))
    row["probability_not_better"] = difference.probability_wrong_side()
    row |= dict(zip(_SPREADS, spread_of(own - base, places), strict=True))
    return row


def _folds_of(table: DataFrame, unit: str) -> list[Any]:
    """The fold of every patient, in the order of `patient_scores`."""
    per_patient = table[table["value"].notna()].groupby(unit, sort=True)["fold"].agg(["first", "nunique"])
    if (per_patient["nunique"] > 1).any():
        crossing = per_patient.index[per_patient["nunique"] > 1][0]
        fix = "Deal whole patients: task.folds(5)."
        raise ResultError(f"The patient {crossing!r} was tested in several folds.", fix=fix)
    return list(per_patient["first"])
