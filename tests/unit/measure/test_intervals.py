"""Intervals of means over patients and seeds against scipy, closed forms and simulated studies."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from toolkit.measure.intervals import COVERAGE, PATIENTS, SEEDS, mean_of, measured_coverage, patient_bootstrap

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


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_smallest_detectable_mean_is_found_as_often_as_said_whatever_the_error_was(seeds: int) -> None:
    """Seeds alone vary: power is the noncentral t's, averaged over the errors that the printing study may have had."""
    trainings = np.random.default_rng(seeds).normal(size=seeds)
    known = mean_of(np.tile(trainings, (40, 1)))
    multiple = known.smallest_detectable(level=0.04, power=0.8) / stats.sem(trainings) / (1 + 4 / 40)
    freedom = seeds - 1
    bar, error = stats.t.ppf(0.98, freedom), stats.chi(freedom, scale=freedom**-0.5)

    def found(e: float) -> float:
        return float(np.nan_to_num(stats.nct.sf(bar, freedom, min(multiple * e, 30 * bar)), nan=1.0) * error.pdf(e))

    power = integrate.quad(found, 0, 6, limit=200, epsabs=1e-5)[0]
    assert power == pytest.approx(0.8, abs=0.006)


def test_the_posterior_of_a_false_claim_is_that_of_christodoulou_et_al() -> None:
    """Their formula for segmentation, from the means, spreads and correlation that a paper reports."""
    rng = np.random.default_rng(7)
    a = 0.8 + 0.1 * rng.normal(size=25)
    b = a + 0.01 + 0.03 * rng.normal(size=25)
    spread = a.var(ddof=1) + b.var(ddof=1) - 2 * a.std(ddof=1) * b.std(ddof=1) * np.corrcoef(a, b)[0, 1]
    reported = stats.t.cdf(-abs(b.mean() - a.mean()) * 25**0.5 / spread**0.5, 24)
    assert mean_of((b - a)[:, None]).probability_wrong_side() == pytest.approx(reported)
    draws = (b - a).mean() + stats.t.rvs(24, scale=stats.sem(b - a), size=200_000, random_state=rng)  # the posterior
    assert np.mean(draws * (b - a).mean() <= 0) == pytest.approx(reported, abs=0.004)


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


def test_the_committed_simulation_keeps_the_promises() -> None:
    for quantity in ("mean", "difference"):
        rows = [r for r in committed(quantity) if int(r["patients"]) >= 10 and int(r["seeds"]) >= 2]
        assert len(rows) >= 27
        assert min(float(r["share"]) for r in rows) >= 0.93
    assert max(float(r["share"]) for r in committed("false winner")) < 0.05
    power = committed("power at smallest detectable")
    assert len(power) == 3 * (9 + 6 + 6)  # kinds of scores x (patients 10, 30, 60; the same in folds; 6 and 8)
    assert min(float(r["share"]) for r in power) >= 0.78
    claimed = zip(committed("claim wrong, posterior"), committed("claim wrong, measured"), strict=True)
    for posterior, measured in claimed:
        assert float(measured["share"]) < float(posterior["share"]) + 0.02
