"""The page of the evidence holds what the results hold, and the results are judged as the claims say."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import toolkit as tk
from evidence.claims import Claim, claims
from evidence.judge import RESULTS, _difference, judge, judgements
from evidence.page import PAGE, excludes, page
from toolkit.errors import ResultError


def claim(**changes: object) -> Claim:
    known = next(one for one in claims() if one.id == "segreg-unseen-generated")
    return dataclasses.replace(known, **{"measure": "dice @ B", "seeds": [0, 1, 2], **changes})


def measured(folder: Path, arms: dict[str, np.ndarray], folds: bool = False) -> Path:
    """Results of (patients, trainings) values."""
    rows = [
        (
            arm,
            0 if folds else training,
            training if folds else "",
            "B",
            f"{training if folds else 0}-{patient}",
            "dice",
            value,
        )
        for arm, values in arms.items()
        for (patient, training), value in np.ndenumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "fold", "site", "subject", "metric", "value"])
    table.to_csv(folder / f"{'acdc' if folds else 'cardiac'}.csv", index=False)
    return folder


def test_the_page_and_the_verdicts_are_those_of_the_results() -> None:
    known = pd.read_csv(RESULTS / "verdicts.csv")
    now = pd.DataFrame([dataclasses.asdict(one) for one in judgements()])
    pd.testing.assert_frame_equal(known, now, check_dtype=False)
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m evidence.page"


def test_the_gallery_holds_the_verdicts_of_the_results() -> None:
    known = pd.read_csv(RESULTS / "verdicts.csv").set_index("claim")
    row = (
        r"^\* \[(.+)\]\(evidence\.md#.+?\): \*\*([a-z ]+)\*\*.*?: (\S+) \[(\S+) to ([^],]+).* (\d+) of (\d+) trainings"
    )
    rows = re.findall(row, (PAGE.parent / "gallery.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 15
    for claim_id, verdict, *numbers in rows:
        now = known.loc[claim_id]
        assert verdict == now["verdict"], f"{claim_id}: write it again: python -m scripts.gallery"
        expected = [now[name] for name in ("difference", "low", "high", "trainings", "planned")]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=6e-3), claim_id


def test_the_gallery_calls_composers_as_they_are() -> None:
    """Drawing all of it takes minutes; a keyword that a composer has lost is seen without."""
    tree = ast.parse((PAGE.parents[1] / "scripts" / "gallery.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    composed = [node for node in calls if ast.unparse(node.func).startswith("tk.figures.")]
    assert len(composed) > 15
    for node in composed:
        takes = inspect.signature(getattr(tk.figures, node.func.attr)).parameters  # type: ignore[attr-defined]
        assert {word.arg for word in node.keywords if word.arg} <= set(takes), ast.unparse(node.func)


def test_every_claim_has_a_row_with_a_verdict() -> None:
    text = PAGE.read_text(encoding="utf-8")
    verdicts = r"(supported|contradicted|inconclusive|not run yet|not tested here)"
    for one in claims():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{one.id}`")]
        assert re.search(verdicts, row)


def test_seeds_and_patients_are_both_samples(tmp_path: Path) -> None:
    plain = np.array([[0.5, 0.6, 0.4], [0.7, 0.6, 0.5]])
    gain = np.array([[0.10, 0.12, 0.11], [0.12, 0.14, 0.13]])
    one = judge(claim(), measured(tmp_path, {"segreg": plain + gain, "plain": plain}))
    assert (one.first, one.second) == pytest.approx((0.67, 0.55))
    assert one.difference == pytest.approx(0.12)
    # by seed: 0.11, 0.13, 0.12, so its standard error is 0.01 / sqrt(3); patients: 0.11 and 0.13, error 0.01
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert one.difference - one.low >= half
    assert (one.patients, one.trainings, one.planned, one.verdict) == (2, 3, 3, "supported")
    assert 0 < one.chance < 0.05


def test_a_second_look_is_judged_at_half_the_risk(tmp_path: Path) -> None:
    plain = np.array([[0.5, 0.6, 0.4], [0.7, 0.6, 0.5]])
    gain = np.array([[0.10, 0.14, 0.06], [0.10, 0.14, 0.06]])  # patients agree, trainings do not
    results = measured(tmp_path, {"segreg": plain + gain, "plain": plain})
    error = 0.04 / np.sqrt(3)
    once, again = (judge(claim(first_look=first), results) for first in ([], [0]))
    assert once.high - once.difference == pytest.approx(stats.t.ppf(0.975, 2) * error, rel=1e-3)
    assert again.high - again.difference == pytest.approx(stats.t.ppf(0.9875, 2) * error, rel=1e-3)


def test_one_training_decides_nothing(tmp_path: Path) -> None:
    plain = np.array([[0.5], [0.6], [0.7]])
    one = judge(claim(), measured(tmp_path, {"segreg": plain + np.array([[0.2], [0.21], [0.2]]), "plain": plain}))
    assert one.low > 0
    assert (one.verdict, one.trainings, one.planned) == ("inconclusive", 1, 3)


def test_an_early_look_decides_nothing(tmp_path: Path) -> None:
    plain = np.array([[0.5, 0.51], [0.6, 0.61], [0.7, 0.69]])
    two = judge(claim(), measured(tmp_path, {"segreg": plain + 0.2, "plain": plain}))
    assert two.low > 0
    assert (two.verdict, two.trainings, two.planned) == ("inconclusive", 2, 3)


def test_networks_that_have_not_learnt_decide_nothing(tmp_path: Path) -> None:
    plain = np.array([[0.3, 0.31, 0.29], [0.4, 0.39, 0.41], [0.35, 0.36, 0.34]])
    results = measured(tmp_path, {"segreg": plain + 0.2, "plain": plain})
    decided, withheld = (judge(claim(not_learnt=why), results) for why in ("", "below the floor at home"))
    assert (decided.verdict, withheld.verdict) == ("supported", "inconclusive")
    assert dataclasses.replace(withheld, verdict="supported") == decided, "the numbers stay on the page"
    row = pd.Series({"trainings": 3, "planned": 3, "high": 0.001, "second": 0.3})
    assert excludes(claim(effect=0.1), row)
    assert not excludes(claim(effect=0.1, not_learnt="below the floor at home"), row)


def test_folds_are_the_trainings_where_each_patient_is_tested_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = rng.uniform(0.4, 0.6, (7, 5))
    gain = np.array([0.0, 0.1, 0.2, 0.3, 0.4]) * np.ones((7, 1))
    results = measured(tmp_path, {"segreg": plain + gain, "plain": plain}, folds=True)
    one = judge(claim(seeds=[0], protocol="acdc: five folds"), results)
    by_fold = np.std([0.0, 0.1, 0.2, 0.3, 0.4], ddof=1) / np.sqrt(5)
    assert one.high - one.difference > 2 * by_fold, "35 patients of five trainings are not 35 trainings"
    assert (one.patients, one.trainings, one.planned) == (35, 5, 5)
    first = measured(tmp_path, {"segreg": plain[:, :1] + 0.2, "plain": plain[:, :1]}, folds=True)
    alone = judge(claim(seeds=[0], protocol="acdc: five folds"), first)
    assert (alone.verdict, alone.trainings, alone.planned) == ("inconclusive", 1, 5), "the first fold decides nothing"


def test_methods_that_are_equal_are_told_apart_in_one_of_twenty_cross_validations() -> None:
    """One seed, a domain of nuclei left out at a time: trainings vary as much as images do, and neither method is better."""
    sizes = (21, 6, 4, 5, 3, 2)
    random, folds = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    places = [folds, ["B"] * len(folds), [str(number) for number in range(len(folds))]]
    index = pd.MultiIndex.from_arrays(places, names=["fold", "site", "subject"])
    wrong, studies = 0, 300
    for _ in range(studies):
        gain = random.normal(size=len(folds)) + random.normal(size=len(sizes))[folds]
        known, *_ = _difference([pd.DataFrame({0: gain}, index), pd.DataFrame({0: 0 * gain}, index)])
        low, high = known.interval()
        wrong += low > 0 or high < 0
    assert wrong / studies < 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


def test_folds_of_one_size_are_judged_by_students_test_of_their_means_too(tmp_path: Path) -> None:
    gain = np.array([0.01, 0.05, -0.02, 0.03, 0.08]) + np.random.default_rng(0).normal(0, 0.001, (7, 5))
    arms = {"segreg": 0.5 + gain, "plain": np.full((7, 5), 0.5)}
    one = judge(claim(seeds=[0], protocol="acdc: five folds"), measured(tmp_path, arms, folds=True))
    known = stats.ttest_1samp(gain.mean(0), 0).confidence_interval()
    assert one.low <= known.low + 1e-4
    assert one.high >= known.high - 1e-4


def test_the_chance_says_what_the_interval_says(tmp_path: Path) -> None:
    gain = np.random.default_rng(3).exponential(0.05, (12, 1))  # skewed, so the bootstrap decides, not Student's test
    results = measured(tmp_path, {"segreg": 0.5 + gain, "plain": 0.5 + 0 * gain})
    ends = judge(claim(seeds=[0]), results)
    half = stats.t.ppf(0.975, 11) * stats.sem(gain[:, 0])
    assert ends.high - ends.difference > 1.2 * half
    for end, chance in ((ends.low, 0.025), (ends.high, 0.975)):
        beyond = claim(seeds=[0], rule=f"supported: low > {end:.6f}; contradicted: high < {end:.6f}; sees: 0.1")
        assert judge(beyond, results).chance == pytest.approx(chance, abs=0.002)


def test_what_is_missing_or_there_twice_turns_no_verdict(tmp_path: Path) -> None:
    plain = np.array([[0.5, 0.51, 0.5], [0.6, 0.61, 0.6], [0.7, 0.69, 0.7]])
    file = measured(tmp_path, {"segreg": plain + 0.2, "plain": plain}) / "cardiac.csv"
    table = pd.read_csv(file)
    table.drop(index=4).to_csv(file, index=False)
    with pytest.raises(ResultError, match="1 patients have no score"):
        judge(claim(), tmp_path)
    table.assign(value=table["value"].where(table.index != 4)).to_csv(file, index=False)
    with pytest.raises(ResultError, match="1 patients have no score"):
        judge(claim(), tmp_path)
    pd.concat([table, table[:1].assign(value=0.99)]).to_csv(file, index=False)
    with pytest.raises(ResultError, match="two scores of one patient"):
        judge(claim(), tmp_path)


def test_one_arm_is_judged_by_its_value_and_four_by_the_difference_of_differences(tmp_path: Path) -> None:
    values = np.array([[1.4, 1.5, 1.6], [1.4, 1.6, 1.5]])
    own = dataclasses.replace(claim(), arms=["only"], rule="supported: low > 1; contradicted: high < 1; sees: 0.1")
    assert judge(own, measured(tmp_path, {"only": values})).verdict == "supported"
    four = dataclasses.replace(claim(), arms=["a", "b", "c", "d"])
    arms = {"a": values, "b": values - 0.3, "c": values, "d": values - 0.1}
    assert judge(four, measured(tmp_path, arms)).difference == pytest.approx(0.2)


def test_a_published_difference_outside_of_the_interval_is_named() -> None:
    row = pd.Series({"trainings": 8, "planned": 8, "second": 0.9, "low": -0.018, "high": 0.006})
    assert excludes(claim(effect=0.0175), row)
    assert not excludes(claim(effect=0.005), row)
    above = pd.Series({**row, "low": 0.03, "high": 0.05})
    assert not excludes(claim(effect=0.0175), above), "more than the smallest published difference leaves it room"
    assert not excludes(claim(effect=0.0175), pd.Series({**row, "trainings": 1})), "one training excludes nothing"
    assert not excludes(claim(effect=0.0175), pd.Series({**row, "trainings": 7})), "nor does an early look"
    assert not excludes(claim(effect=0.11), row), "a Dice of 0.9 cannot rise by 0.11"
    assert not excludes(claim(), row)


def test_what_was_not_run_says_so(tmp_path: Path) -> None:
    assert judge(claim(), tmp_path).verdict == "not run yet"
    half = measured(tmp_path, {"segreg": np.ones((2, 2))})
    assert judge(claim(), half).verdict == "not run yet"
