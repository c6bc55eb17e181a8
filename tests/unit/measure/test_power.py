"""Planning a study: spreads and power against closed forms, and against verdicts of whole comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from toolkit.errors import ConfigError, ResultError
from toolkit.measure.intervals import fewest_patients, power_of, spread_of
from toolkit.measure.statistics import CAUTION, compare_scores

SPREAD = (0.03, 0.02, 0.02)
LEVEL = CAUTION * 0.05


def drawn(rng: np.random.Generator, effect: float, patients: int, seeds: int) -> np.ndarray:
    shapes = [(patients, 1), (1, seeds), (patients, seeds)]
    return effect + sum(scale * rng.normal(size=shape) for scale, shape in zip(SPREAD, shapes, strict=True))


def test_spreads_are_those_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    found = np.array([spread_of(drawn(rng, 0.1, 40, 5)) for _ in range(200)])
    np.testing.assert_allclose((found**2).mean(0) ** 0.5, SPREAD, rtol=0.1)
    folds = np.arange(40) % 4
    trainings = [0.03 * rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(4, 5))[folds] for _ in range(200)]
    found = np.array([spread_of(each, folds) for each in trainings])
    np.testing.assert_allclose((found**2).mean(0) ** 0.5, (0.03, 0.1, 0.0), rtol=0.1, atol=1e-6)
    assert np.isnan(spread_of(np.zeros((5, 1)))).all()


def test_without_spread_of_trainings_power_is_that_of_the_signed_rank_and_t_tests() -> None:
    """Many seeds without noise: only the patients count; no test has more power than the t test."""
    size, patients = 0.03, 24
    bound = stats.nct.sf(stats.t.ppf(1 - LEVEL / 2, patients - 1), patients - 1, size / 0.04 * patients**0.5)
    power = power_of(size, (0.04, 0.0, 1e-6), (patients, 4, 1), level=LEVEL, studies=2000)
    assert bound - 0.12 < power < bound + 0.02
    assert power_of(-size, (0.04, 0.0, 1e-6), (patients, 4, 1), level=LEVEL, studies=2000) == power


@pytest.mark.parametrize("folds", [1, 4])
def test_simulated_studies_are_judged_as_comparisons_are(folds: int) -> None:
    rng, effect, patients, seeds = np.random.default_rng(1), 0.04, 20, 3
    names = np.arange(patients) % folds
    won = []
    for _ in range(60):
        d = effect + 0.03 * rng.normal(size=(patients, 1)) + 0.02 * rng.normal(size=(folds, seeds))[names]
        d = d + 0.02 * rng.normal(size=d.shape)
        table = compare_scores({"b": 0 * d, "m": d}, "b", bootstrap=1000, folds=names if folds > 1 else None).table()
        won.append(table["verdict"][1] == "better")
    expected = power_of(effect, SPREAD, (patients, seeds, folds), level=LEVEL, studies=1000)
    assert 0.2 < expected < 0.99
    assert abs(np.mean(won) - expected) < 4 * (0.25 / 60) ** 0.5


def test_the_fewest_patients_reach_the_power_and_fewer_do_not() -> None:
    number, reached = fewest_patients(0.04, 0.8, SPREAD, (6, 1), level=LEVEL)
    assert number is not None
    assert reached >= 0.8
    assert power_of(0.04, SPREAD, (number // 2, 6, 1), level=LEVEL) < 0.8
    assert power_of(0.04, SPREAD, (2 * number, 6, 1), level=LEVEL, seed=1) > 0.8
    assert (
        fewest_patients(0.03, 0.8, (0.01, 0.05, 0.01), (2, 1), level=LEVEL)[0] is None
    )  # no patient makes up for seeds


def test_a_comparison_says_what_a_stated_effect_would_need() -> None:
    d = drawn(np.random.default_rng(2), 0.0, 30, 5)
    known = compare_scores({"plain": np.zeros_like(d), "a": d, "b": 4 * d}, "plain")
    table = known.needed(0.08, seeds=(5, 10))
    assert list(table.columns) == ["method", "seeds", "patients", "power"]
    assert table[["method", "seeds"]].to_numpy().tolist() == [["a", 5], ["a", 10], ["b", 5], ["b", 10]]
    assert table["patients"][1] <= table["patients"][0]
    assert (table["power"][table["patients"].notna()] >= 0.8).all()
    assert table["patients"].isna()[2]
    row = known.table().iloc[1]
    assert tuple(row[["patient_spread", "training_spread", "rest_spread"]]) == pytest.approx(spread_of(d))
    with pytest.raises(ConfigError, match="not 0"):
        known.needed(0.0)
    with pytest.raises(ConfigError, match="2 seeds"):
        known.needed(0.1, seeds=(1,))
    with pytest.raises(ResultError, match="one seed"):
        compare_scores({"plain": np.zeros((30, 1)), "a": d[:, :1]}, "plain").needed(0.1)
