"""From measurements to verdicts: `evidence/results/<study>.csv` and the rules of the claims to `verdicts.csv`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pandas as pd
from scipy.special import stdtr

from evidence.claims import Claim, claims
from evidence.studies import STUDIES
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
        chance: probability that the claim is false if nothing was known before (flat prior, Student's distribution).
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
    """One claim by its own rule, on as many of its seeds as all its arms have."""
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
    arms = [_by_patient(chosen[chosen["arm"] == arm]) for arm in claim.arms]
    shared = [seed for seed in arms[0].columns if all(seed in other for other in arms)]
    complete = pd.concat([arm[shared] for arm in arms], axis=1).dropna().index
    if not shared or len(complete) < 2:
        return Judgement(claim.id, NOT_RUN)
    known, first, second = _difference([arm.loc[complete, shared] for arm in arms])
    low, high = known.interval(claim.confidence)
    folds = complete.get_level_values("fold")
    trainings = len(shared) * folds.nunique()
    planned = len(claim.seeds) * max(1, STUDIES[claim.study].folds)
    early = trainings < planned  # who stops at the first look that pleases finds effects where there are none
    return Judgement(
        claim.id,
        "inconclusive" if early else claim.verdict(low, high),
        *(_rounded(value) for value in (first, second, known.mean, low, high)),
        chance=_rounded(_chance_of_false(claim, known)),
        detectable=_rounded(known.smallest_detectable(1 - claim.confidence)),
        patients=len(complete.droplevel("fold").unique()),
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


def _by_patient(table: pd.DataFrame) -> pd.DataFrame:
    """A row a patient (of a fold), a column a seed."""
    return table.fillna({"fold": -1}).pivot_table(index=["fold", "site", "subject"], columns="seed", values="value")


def _difference(arms: list[pd.DataFrame]) -> tuple[Mean, float, float]:
    signs = {1: (1,), 2: (1, -1), 4: (1, -1, -1, 1)}[len(arms)]
    values = sum(sign * arm for sign, arm in zip(signs, arms, strict=True))
    means = [float(arm.groupby(level=["site", "subject"]).mean().to_numpy().mean()) for arm in arms]
    first = means[0] - means[1] if len(arms) == 4 else means[0]
    second = means[2] - means[3] if len(arms) == 4 else means[1] if len(arms) == 2 else math.nan
    if values.index.droplevel("fold").duplicated().any():
        return _of_shared_patients(values.unstack("fold")), first, second
    folds = values.index.get_level_values("fold").to_numpy()
    return mean_of(values.to_numpy(), folds if len(set(folds)) > 1 else None), first, second


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
    """Mass outside of what the rule calls supported; of the two tests the less certain one."""
    chances = []
    for error, freedom in known.errors:
        total = 0.0
        for end, threshold in claim.bounds():
            side = 1 if end == "low" else -1
            gap = side * (known.mean - threshold)
            total += float(stdtr(freedom, -gap / error)) if error > 0 else float(gap < 0)
        chances.append(min(1.0, total))
    return max(chances)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
