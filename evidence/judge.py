"""From measurements to verdicts: `evidence/results/<study>.csv` and the rules of the claims to `verdicts.csv`."""

from __future__ import annotations

import dataclasses
import math
import operator
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtr

from evidence.claims import Claim, claims
from evidence.studies import STUDIES
from toolkit.errors import ResultError
from toolkit.measure.intervals import Mean, mean_of

RESULTS = Path(__file__).with_name("results")
NOT_RUN, NOT_HERE = "not run yet", "not tested here"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim with what was measured.

    Attributes:
        claim: its id.
        verdict: supported, contradicted or inconclusive; else "not run yet" or "not tested here".
        first, second: mean of the first arm and of the second (with four arms: of the differences).
        difference, low, high: mean paired difference (of one arm: its mean) with its interval, of 95 % or of what the claim says.
        chance: probability that the claim is false if nothing was known before (flat prior), by that one of the
            interval's tests which knows least: the one nearest to a half.
        detectable: the smallest effect that this design would find with a power of 80 % (see `toolkit.measure.intervals.Mean`).
        patients, trainings: size of the design; trainings are seeds, or folds of a cross-validation.
        planned: trainings that the claim asks for.
    """

    claim: str
    verdict: str
    first: float = math.nan
    second: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan
    detectable: float = math.nan
    patients: int = 0
    trainings: int = 0
    planned: int = 0


def judge(claim: Claim, results: Path = RESULTS) -> Judgement:
    """One claim by its own rule, on as many of its seeds and folds as all its arms have.

    Raises:
        ResultError: a training that is there lacks a score, or has two of one patient.
    """
    if claim.command:
        return Judgement(claim.id, NOT_HERE)
    file = results / f"{claim.study}.csv"
    table = (
        pd.read_csv(file, dtype={"subject": str}) if file.exists() else pd.DataFrame(columns=["metric", "site", "arm"])
    )
    chosen = table[(table["metric"] == claim.metric) & table["arm"].isin(claim.arms)]
    if claim.sites != ["all"]:
        chosen = chosen[chosen["site"].isin(claim.sites)]
    if set(chosen["arm"]) != set(claim.arms):
        return Judgement(claim.id, NOT_RUN)
    chosen = chosen[chosen["seed"].isin(claim.seeds)]
    arms = _paired([_by_patient(chosen[chosen["arm"] == arm], claim) for arm in claim.arms], claim)
    shared, patients = list(arms[0].columns), arms[0].index
    if not shared or len(patients) < 2:
        return Judgement(claim.id, NOT_RUN)
    known, first, second = _difference(arms)
    low, high = known.interval(claim.confidence)
    folds = patients.get_level_values("fold")
    trainings = len(shared) * folds.nunique()
    planned = len(claim.seeds) * max(1, STUDIES[claim.study].folds)
    early = trainings < planned  # who stops at the first look that pleases finds effects where there are none
    return Judgement(
        claim.id,
        "inconclusive" if early or claim.not_learnt else claim.verdict(low, high),
        first=_rounded(first),
        second=_rounded(second),
        difference=_rounded(known.mean),
        low=_rounded(low),
        high=_rounded(high),
        chance=_rounded(_chance_of_false(claim, known)),
        detectable=_rounded(known.smallest_detectable(1 - claim.confidence)),
        patients=len(patients.to_frame(index=False)[["site", "subject"]].drop_duplicates()),
        trainings=trainings,
        planned=planned,
    )


def judgements(results: Path = RESULTS) -> list[Judgement]:
    """All claims in the order of their file."""
    return [judge(claim, results) for claim in claims()]


def write(results: Path = RESULTS) -> Path:
    """Write `verdicts.csv`."""
    file = results / "verdicts.csv"
    pd.DataFrame([dataclasses.asdict(one) for one in judgements(results)]).to_csv(
        file, index=False, lineterminator="\n"
    )
    return file


def _by_patient(table: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """A row a patient (of a fold), a column a seed."""
    rows, table = ["fold", "site", "subject"], table.fillna({"fold": -1})
    if (twice := table.duplicated([*rows, "seed"])).any():
        where = f"{claim.study}.csv, {claim.metric}: {table.loc[twice, [*rows, 'seed']].iloc[0].to_dict()}"
        raise ResultError("A training has two scores of one patient.", where=where, fix="Collect the study again.")
    return table.pivot(index=rows, columns="seed", values="value")


def _paired(arms: list[pd.DataFrame], claim: Claim) -> list[pd.DataFrame]:
    """The seeds and folds that all arms have, complete: who leaves out a patient quietly may turn a verdict."""
    shared = [seed for seed in arms[0].columns if all(seed in other for other in arms)]
    table = pd.concat([arm[shared] for arm in arms], axis=1, keys=range(len(arms)))
    table = table[table.notna().groupby(level="fold").transform("any").all(axis=1)]
    if (lacking := table.isna().any(axis=1)).any():
        where = (
            f"{claim.study}.csv, {claim.metric}: {dict(zip(table.index.names, table.index[lacking][0], strict=True))}"
        )
        what = f"{int(lacking.sum())} patients have no score in one of the trainings that are there."
        raise ResultError(what, where=where, fix="Measure and collect the study again.")
    return [table[[number]].droplevel(0, axis=1) for number in range(len(arms))]


def _difference(arms: list[pd.DataFrame]) -> tuple[Mean, float, float]:
    signs: tuple[int, ...] = {1: (1,), 2: (1, -1), 4: (1, -1, -1, 1)}[len(arms)]
    values = reduce(operator.add, [sign * arm for sign, arm in zip(signs, arms, strict=True)])
    means = [float(arm.groupby(level=["site", "subject"]).mean().to_numpy().mean()) for arm in arms]
    first = means[0] - means[1] if len(arms) == 4 else means[0]
    second = means[2] - means[3] if len(arms) == 4 else means[1] if len(arms) == 2 else math.nan
    if values.index.to_frame(index=False).duplicated(["site", "subject"]).any():
        return _of_shared_patients(pd.DataFrame(values.unstack("fold"))), first, second
    folds = values.index.get_level_values("fold").to_numpy()
    if len(set(folds)) < 2:
        return mean_of(values.to_numpy()), first, second
    known = mean_of(values.to_numpy(), folds)
    if values.shape[1] == 1:
        known = dataclasses.replace(known, errors=(*known.errors, _of_trainings(values.iloc[:, 0].to_numpy(), folds)))
    return known, first, second


def _of_trainings(values: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """Error and degrees of freedom of the mean over patients from the folds' means alone, which is what few trainings tell.

    With folds of one size that is Student's test of their means. Where sizes differ a fold weighs as much as it has
    patients, in the mean as in its error, scaled to be unbiased where trainings vary (Bell and McCaffrey 2002).
    """
    names, sizes = np.unique(folds, return_counts=True)
    weights = sizes / sizes.sum()
    means = np.array([values[folds == name].mean() for name in names])
    squares = weights**2
    biased, expected = (
        (squares * (means - values.mean()) ** 2).sum(),
        (squares * (1 - 2 * weights + squares.sum())).sum(),
    )
    return math.sqrt(biased * squares.sum() / expected), len(names) - 1.0


def _of_shared_patients(values: pd.DataFrame) -> Mean:
    """Mean over patients (rows) of what several trainings (columns) scored, NaN where a training did not see a patient.

    As `mean_of` where every training sees every patient: their variances are added, and the trainings' means decide alone too.
    """
    by_patient, by_training = values.mean(axis=1).to_numpy(), values.mean(axis=0).to_numpy()
    known = mean_of(by_patient[:, None])
    parts = [(own.var(ddof=1) / len(own), len(own) - 1) for own in (by_patient, by_training)]
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / own for variance, own in parts) if total > 0 else parts[1][1]
    errors = ((math.sqrt(total), float(freedom)), (math.sqrt(parts[1][0]), float(parts[1][1])))
    return dataclasses.replace(known, errors=errors)


def _chance_of_false(claim: Claim, known: Mean) -> float:
    """Mass outside of what the rule calls supported, by the test that knows least: Student's, or the patients' bootstrap."""
    gaps = [(1 if end == "low" else -1, known.mean - threshold) for end, threshold in claim.bounds()]
    chances = [
        sum(float(stdtr(freedom, -side * gap / error)) if error > 0 else float(side * gap < 0) for side, gap in gaps)
        for error, freedom in known.errors
    ]
    error, drawn = known.errors[0][0], known.studentised
    if error > 0 and len(drawn):
        beyond = [(side * drawn >= side * gap / error).sum() for side, gap in gaps]
        chances.append(float((sum(beyond) + 0.5) / (len(drawn) + 1)))
    return min(1.0, min(chances, key=lambda chance: abs(chance - 0.5)))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
