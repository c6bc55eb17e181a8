"""Intervals of means over patients and seeds against scipy, closed forms and simulated studies."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from toolkit.measure.intervals import (
    COVERAGE,
    PATIENTS,
    POWER,
    SEEDS,
    mean_of,
    measured_coverage,
    measured_power,
    patient_bootstrap,
)

COMMITTED = Path(__file__).parents[3] / "benchmarks" / "results" / "coverage.csv"


def committed(quantity: str) -> list[dict[str, str]]:
    with COMMITTED.open(encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["quantity"] == quantity]


def test_one_seed_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=15), rng.normal(size=15) + 0.3
    known = mean_of((b - a)[:, None], replicates=0)
    reference = stats.ttest_rel(b, a)
    assert known.p_values() == pytest.approx((reference.pvalue,))
    expected = reference.confidence_interval(0.95)
    assert known.interval() == pytest.approx((expected.low, expected.high))
    assert known.probability_wrong_side() == pytest.approx(
        stats.ttest_rel(b, a, alternative="less" if b.mean() < a.mean() else "greater").pvalue
    )


def test_seed_noise_alone_leaves_seeds_minus_one_degrees() -> None:
    known = mean_of(np.tile([[0.1, 0.2, 0.6]], (30, 1)))
    reference = stats.ttest_1samp([0.1, 0.2, 0.6], 0)
    assert known.p_values() == pytest.approx((reference.pvalue, reference.pvalue))
    assert mean_of(np.zeros((5, 3))).p_values() == (1.0, 1.0)
    assert mean_of(np.zeros((5, 3))).probability_wrong_side() == 0.5


def test_the_smallest_detectable_mean_has_the_power_of_the_noncentral_t() -> None:
    known = mean_of(np.tile([[0.1, 0.2, 0.6]], (30, 1)))
    error = float(np.std([0.1, 0.2, 0.6], ddof=1)) / math.sqrt(3)
    size, low, high = known.smallest_detectable(level=0.04, power=0.8)
    assert stats.nct.sf(stats.t.ppf(0.98, 2), 2, size / error) == pytest.approx(0.8, abs=1e-4)
    assert (low, high) == pytest.approx(
        (size * math.sqrt(2 / stats.chi2.ppf(0.975, 2)), size * math.sqrt(2 / stats.chi2.ppf(0.025, 2)))
    )


def test_error_of_the_mean_errs_on_the_cautious_side() -> None:
    rng = np.random.default_rng(1)
    shapes = {0.2: (400, 12, 1), 0.3: (400, 1, 4), 0.1: (400, 12, 4)}
    d = sum(scale * rng.normal(size=shape) for scale, shape in shapes.items())
    truth = 0.04 / 12 + 0.09 / 4 + 0.01 / 48
    squares = np.array([mean_of(part, replicates=0).errors[0][0] ** 2 for part in d])
    assert d.mean((1, 2)).var() == pytest.approx(truth, rel=0.2)
    assert squares.mean() == pytest.approx(truth + 0.01 / 48, rel=0.1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_error_in_cross_validation_holds_the_trainings_that_patients_share(seeds: int) -> None:
    rng = np.random.default_rng(2)
    folds = np.arange(30) % 5
    d = 0.1 * rng.normal(size=(600, 30, 1)) + 0.1 * rng.normal(size=(600, 5, seeds))[:, folds]
    truth = 0.01 / 30 + 0.01 / (5 * seeds)
    squares = np.array([mean_of(part, folds, replicates=0).errors[0][0] ** 2 for part in d])
    assert d.mean((1, 2)).var() == pytest.approx(truth, rel=0.2)
    assert truth < squares.mean() < (1.25 if seeds == 1 else 2.2) * truth
    blind = np.array([mean_of(part, replicates=0).errors[0][0] ** 2 for part in d])
    assert seeds > 1 or blind.mean() < 0.5 * truth


def test_the_bootstrap_t_is_scipys_studentised_quantiles() -> None:
    values = np.random.default_rng(3).exponential(size=(25, 1))
    known = mean_of(values, replicates=20_000)
    draws = np.random.default_rng(4).choice(values[:, 0], size=(20_000, 25))
    studentised = stats.ttest_1samp(draws, values.mean(), axis=1).statistic
    expected = np.quantile(studentised, [0.025, 0.1, 0.9, 0.975])
    np.testing.assert_allclose(np.quantile(known.studentised, [0.025, 0.1, 0.9, 0.975]), expected, rtol=0.06)
    low, high = known.interval()
    assert high - values.mean() == pytest.approx(-expected[0] * stats.sem(values[:, 0]), rel=0.06)
    assert values.mean() - low == pytest.approx(stats.t.ppf(0.975, 24) * stats.sem(values[:, 0]))


def test_bootstrap_of_the_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(size=(200, 1))
    low, high = patient_bootstrap(values, 4000)
    error = values.std(ddof=1) / 200**0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.02)
    assert patient_bootstrap(values, 50, seed=1) == patient_bootstrap(values, 50, seed=1)


def test_the_coverage_that_is_printed_is_the_committed_one() -> None:
    rows = [row for row in committed("mean") if row["folds"] == "0"]
    for i, patients in enumerate(PATIENTS):
        for j, seeds in enumerate(SEEDS):
            shares = [float(r["share"]) for r in rows if (r["patients"], r["seeds"]) == (str(patients), str(seeds))]
            assert len(shares) == 3
            assert COVERAGE[i][j] == pytest.approx(min(shares), abs=0.0051)
    assert measured_coverage(29, 4) == COVERAGE[3][2]
    assert math.isnan(measured_coverage(1, 4))


def test_the_power_that_is_printed_is_the_committed_one() -> None:
    rows = [row for row in committed("power at smallest detectable") if row["folds"] == "0"]
    for i, patients in enumerate((10, 30, 60)):
        for j, seeds in enumerate((2, 3, 5)):
            shares = [float(r["share"]) for r in rows if (r["patients"], r["seeds"]) == (str(patients), str(seeds))]
            assert len(shares) == 3
            assert POWER[i][j] == pytest.approx(min(shares), abs=0.0051)
    assert measured_power(59, 9) == POWER[1][2]
    assert math.isnan(measured_power(9, 4))
    assert math.isnan(measured_power(10, 1))


def test_the_committed_simulation_keeps_the_promises() -> None:
    for quantity in ("mean", "difference"):
        rows = [r for r in committed(quantity) if int(r["patients"]) >= 10 and int(r["seeds"]) >= 2]
        assert len(rows) >= 27
        assert min(float(r["share"]) for r in rows) >= 0.93
    assert max(float(r["share"]) for r in committed("false winner")) < 0.05
    claimed = zip(committed("claim wrong, posterior"), committed("claim wrong, measured"), strict=True)
    for posterior, measured in claimed:
        assert float(measured["share"]) < float(posterior["share"]) + 0.02
