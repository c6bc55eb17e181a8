"""Comparisons of methods against scipy, closed forms and simulated studies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from toolkit.errors import ConfigError, ResultError
from toolkit.measure.intervals import mean_of
from toolkit.measure.statistics import (
    CAUTION,
    Comparison,
    compare_methods,
    compare_scores,
    holm,
    patient_scores,
    wilcoxon,
)


def long_table(scores: dict[str, np.ndarray], metric: str = "dice") -> pd.DataFrame:
    rows = [
        {"method": m, "seed": s, "case": f"p{p:03d}", "class": "LV", "metric": metric, "value": v, "status": "ok"}
        for m, array in scores.items()
        for (p, s), v in np.ndenumerate(array)
    ]
    return pd.DataFrame(rows)


def study(
    rng: np.random.Generator, effects: dict[str, float], patients: int = 20, seeds: int = 3, training: float = 0.02
) -> dict[str, np.ndarray]:
    """Scores (patients, seeds): trainings differ, patients are hard or easy and react differently to a method."""
    patient = 0.8 + 0.1 * rng.normal(size=(patients, 1))
    return {
        method: patient
        + effect
        + training * rng.normal(size=(1, seeds))
        + 0.02 * rng.normal(size=(patients, 1))
        + 0.03 * rng.normal(size=(patients, seeds))
        for method, effect in effects.items()
    }


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])
    assert holm(np.array([np.nan])).shape == (1,)
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_wilcoxon_is_scipys() -> None:
    d = np.random.default_rng(3).normal(size=25) + 0.2
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d).pvalue)
    assert wilcoxon(np.zeros(5)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "patients", "training"), [(2, 30, 0.1), (3, 12, 0.02), (3, 30, 0.04), (5, 12, 0.1), (5, 30, 0.04)]
)
def test_equal_methods_rarely_pass_both_tests(seeds: int, patients: int, training: float) -> None:
    """The verdict's level leaves fewer than 5 % false winners, even without Wilcoxon's test as a third condition."""
    rng = np.random.default_rng([seeds, patients, round(1000 * training)])
    shapes = {training: (4000, 2, 1, seeds), 0.02: (4000, 2, patients, 1), 0.03: (4000, 2, patients, seeds)}
    scores = sum(scale * rng.normal(size=shape) for scale, shape in shapes.items())
    largest = np.array([max(mean_of(both[1] - both[0], replicates=0).p_values()) for both in scores])
    assert (largest <= CAUTION * 0.05).mean() < 0.05
    assert (largest <= CAUTION * 0.05).mean() > 0.01  # the designs are hard ones: the test could fail


def test_null_studies_rarely_have_a_winner() -> None:
    rng, effects = np.random.default_rng(4), {"plain": 0.0, "a": 0.0, "b": 0.0, "c": 0.0}
    won = []
    for index in range(120):
        table = compare_scores(study(rng, effects, training=0.03 * (index % 3)), "plain", bootstrap=400).table()
        winners = table[table["verdict"].isin(["better", "worse"])]
        assert (winners[["p_mean", "p_seeds", "p_bootstrap", "p_wilcoxon"]].max(axis=1) <= CAUTION * 0.05).all()
        won.append(len(winners) > 0)
    # True share below 0.04: 12 or more of 120 would happen once in 500 such series.
    assert sum(won) < stats.binom.ppf(0.998, 120, 0.04)


def test_a_verdict_needs_more_than_the_nominal_level() -> None:
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=(20, 3)), 0.1 * rng.normal(size=(20, 3))
    noise -= noise.mean()

    def row(shift: float) -> pd.Series:
        return compare_scores({"b": base, "m": base + noise + shift}, "b", bootstrap=4000).table().iloc[1]

    shift = optimize.brentq(lambda value: row(value)["p_holm"] - 0.045, 0.0, 0.5)
    assert row(shift)["p_holm"] == pytest.approx(0.045)
    assert row(shift)["verdict"] == "inconclusive"
    assert row(1.2 * shift)["verdict"] == "better"


def test_a_clear_effect_is_found_and_a_small_one_is_not() -> None:
    scores = study(np.random.default_rng(5), {"plain": 0.0, "good": 0.25, "bad": -0.25, "same": 0.001})
    table = long_table(scores)
    result = compare_methods(table, "plain").table().set_index("method")
    assert result.loc["good", "verdict"] == "better"
    assert result.loc["bad", "verdict"] == "worse"
    assert result.loc["same", "verdict"] == "inconclusive"
    assert result.loc["plain", "verdict"] == "baseline"
    assert result.loc["same", "smallest_detectable"] > abs(result.loc["same", "difference"])
    worse = compare_methods(table, "plain", higher_is_better=False).table().set_index("method")
    assert worse.loc["good", "verdict"] == "worse"
    assert compare_methods(table.assign(metric="hd95"), "plain", metric="hd95").table()["verdict"][1] == "worse"
    one_seed = compare_methods(table[table["seed"] == 0], "plain").table().set_index("method")
    assert one_seed.loc["good", "verdict"] == "inconclusive (one seed)"
    direct = compare_scores(scores, "plain").table()
    direct[["low", "high"]] = direct[["low", "high"]].clip(0, 1)  # where a Dice ends, which an array of scores need not
    pd.testing.assert_frame_equal(direct, result.reset_index()[direct.columns])


def test_intervals_of_dice_end_where_dice_does() -> None:
    """Two patients and one seed say nothing: Student's interval of one degree of freedom is 12.7 standard errors wide."""
    scores = {"plain": np.array([[0.9], [0.2]]), "a": np.array([[0.3], [0.8]])}
    half = stats.t.ppf(0.975, 1) * np.std([-0.6, 0.6], ddof=1) / 2**0.5
    assert half > 7
    assert compare_scores(scores, "plain").table().iloc[1]["difference_high"] >= half - 1e-9
    row = compare_methods(long_table(scores), "plain").table().iloc[1]
    assert row[["low", "high", "difference_low", "difference_high"]].tolist() == [0.0, 1.0, -1.0, 1.0]
    assert row["verdict"] == "inconclusive (one seed)"
    distances = compare_methods(long_table(scores, "hd95"), "plain", metric="hd95").table().iloc[1]
    assert distances["difference_high"] >= half - 1e-9, "a distance has no such end"


def test_detectable_difference_is_detected_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)

    def compared(effect: float) -> pd.Series:
        scores = study(rng, {"plain": 0.0, "a": effect}, patients=20, seeds=6)
        return compare_scores(scores, "plain", bootstrap=400).table().iloc[1]

    effects = [compared(0.0)["smallest_detectable"] for _ in range(100)]
    found = np.mean([compared(effect)["p_holm"] < CAUTION * 0.05 for effect in effects])
    assert 0.7 <= found <= 0.93  # 0.8 and a little more, give or take the error of 100 studies


def test_scores_average_classes_then_cases_then_patients() -> None:
    rows = [
        ("m", 0, "p1", "p1a", "LV", 0.8, "ok"),
        ("m", 0, "p1", "p1a", "RV", 0.6, "ok"),
        ("m", 0, "p1", "p1b", "LV", 0.5, "ok"),
        ("m", 0, "p1", "p1b", "RV", math.nan, "both_absent"),
        ("m", 0, "p2", "p2a", "LV", 0.9, "ok"),
        ("m", 0, "p2", "p2a", "RV", math.nan, "both_absent"),
    ]
    names = ["method", "seed", "subject", "case", "class", "value", "status"]
    table = pd.DataFrame(rows, columns=names).assign(metric="dice")
    np.testing.assert_allclose(patient_scores(table)["m"], [[0.6], [0.9]])
    alarm = table.assign(method="n")
    alarm.loc[5, ["value", "status"]] = [0.0, "spurious"]
    both = patient_scores(pd.concat([table, alarm]))
    np.testing.assert_allclose(both["m"], [[0.6], [0.95]])  # rightly absent: 1, because the other sees something
    np.testing.assert_allclose(both["n"], [[0.6], [0.45]])


def test_no_verdict_and_nothing_detectable_where_wilcoxon_cannot_reach_the_level() -> None:
    """Six patients: the smallest p of the signed-rank test is 2 / 64, times two methods more than 0.04."""
    rng = np.random.default_rng(0)
    clear = study(rng, {"plain": 0.0, "a": 0.9, "b": 0.9}, patients=6, training=0.001)
    rows = compare_scores(clear, "plain").table().set_index("method")
    assert rows.loc["a", "verdict"] == "inconclusive (6 patients are too few for any verdict)"
    assert rows["smallest_detectable"].isna().all()
    alone = compare_scores({name: clear[name] for name in ("plain", "a")}, "plain").table().iloc[1]
    assert alone["verdict"] == "better"
    assert 0 < alone["smallest_detectable"] < 0.9


def test_folds_of_a_table_are_those_of_its_patients_and_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    fold = np.arange(20) % 5
    shared = {name: 0.5 + 0.1 * rng.normal(size=(5, 1))[fold] for name in ("plain", "a")}
    scores = {name: value + 0.01 * rng.normal(size=(20, 1)) for name, value in shared.items()}
    table = long_table(scores)
    table["fold"] = [fold[int(case[1:])] for case in table["case"]]
    knowing = compare_methods(table, "plain").table().iloc[1]
    blind = compare_methods(table.drop(columns="fold"), "plain").table().iloc[1]
    assert knowing["high"] - knowing["low"] > 1.3 * (blind["high"] - blind["low"])
    pd.testing.assert_series_equal(knowing, compare_scores(scores, "plain", folds=fold).table().iloc[1])
    with pytest.raises(ResultError, match="'p000' was tested in several folds"):
        compare_methods(table.assign(fold=range(len(table))), "plain")


def test_a_paper_table_has_one_row_an_arm_and_is_written_as_latex(tmp_path: Path) -> None:
    result = compare_methods(long_table(study(np.random.default_rng(5), {"plain": 0.0, "a_b": 0.25})), "plain")
    row = result.table().iloc[1]
    printed = result.paper_table(digits=2)
    assert list(printed.columns) == ["method", "dice (95% interval)", "difference to plain", "verdict"]
    assert printed.iloc[1, 1] == f"{row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    assert printed.iloc[1, 2].startswith(f"+{row['difference']:.2f} (+")
    assert printed.iloc[0, 2] == "--"
    text = result.write_table(tmp_path / "table.tex", digits=2).read_text()
    assert rf"a\_b & {printed.iloc[1, 1]} & {printed.iloc[1, 2]} & better \\" in text
    assert pd.read_csv(result.write_table(tmp_path / "table.csv"))["mean"].tolist() == result.table()["mean"].tolist()


def test_round_trip(tmp_path: Path) -> None:
    result = compare_scores(study(np.random.default_rng(0), {"plain": 0.0, "a": 0.1}), "plain")
    again = Comparison.load(result.save(tmp_path / "comparison.tkr"))
    assert again.table()["verdict"].tolist() == result.table()["verdict"].tolist()


def test_wrong_calls() -> None:
    table = long_table(study(np.random.default_rng(0), {"plain": 0.0, "a": 0.1}))
    with pytest.raises(ConfigError, match="plane"):
        compare_methods(table, "plane")
    with pytest.raises(ResultError, match="holds no 'iou'"):
        compare_methods(table, "plain", metric="iou")
    with pytest.raises(ResultError, match="status"):
        compare_methods(table.drop(columns="status"), "plain")
    with pytest.raises(ResultError, match="incomplete"):
        compare_methods(table.iloc[1:], "plain")
    missed = table.assign(metric="hd95")
    missed.loc[0, ["value", "status"]] = [math.nan, "missed"]
    with pytest.raises(ResultError, match="missed"):
        compare_methods(missed, "plain", metric="hd95")
    with pytest.raises(ResultError, match="2 patients"):
        mean_of(np.zeros((1, 3)))
    with pytest.raises(ResultError, match="the baseline"):
        compare_scores({"plain": np.zeros((4, 3)), "a": np.zeros((4, 2))}, "plain")
