"""Transfer metrics against published numbers and a hand-made matrix."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden_cases import golden_case

from toolkit.errors import ResultError
from toolkit.measure.transfer import Transfer, score_matrix, transfer_metrics


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    return golden_case("segreg", "cl_metrics").numbers()


def test_golden(numbers: dict[str, np.ndarray]) -> None:
    result = transfer_metrics(
        numbers["R"],
        ["A", "B", "C", "D"],
        untrained=numbers["baseline_untrained"],
        single_task=numbers["single_task_diag"],
        sequential=numbers["R_sequential_baseline"],
    )
    means = {
        "mean_dice": "gem_acc",
        "bwt": "mammoth_bwt",
        "bwt_gem": "gem_bwt_mean_over_T",
        "fwt_untrained": "mammoth_fwt",
        "fwt_untrained_gem": "gem_fwt_mean_over_T",
        "fwt_single_task": "tuda_fwt_mean",
        "forgetting_max_all_rows": "mammoth_forgetting_max_over_all_rows",
    }
    for metric, name in means.items():
        assert result.value(metric) == pytest.approx(float(numbers[name]), rel=1e-5, abs=1e-6), metric
    per_task = {
        "bwt": ("tuda_bwt_per_task", "ABC"),
        "fwt_single_task": ("tuda_fwt_per_task", "BCD"),
        "forgetting": ("tuda_forgetting_per_task", "ABC"),
        "rem": ("tuda_rem_per_task", "ABC"),
        "mean_dice": ("tuda_dice_per_task", "ABCD"),
    }
    for metric, (name, tasks) in per_task.items():
        got = [result.value(metric, task) for task in tasks]
        np.testing.assert_allclose(got, numbers[name], rtol=1e-5, atol=1e-6, err_msg=metric)
    table = result.table().set_index(["metric", "task"])
    for metric, name in (("bwt", "tuda_bwt_std"), ("fwt_single_task", "tuda_fwt_std")):
        assert table.loc[(metric, "mean"), "sd"] == pytest.approx(float(numbers[name]), rel=1e-5)
    for metric, name in (
        ("bwt_relative", "lifelong_relative_bwt_mean_std"),
        ("fwt_relative_final", "lifelong_relative_fwt_as_coded_mean_std"),
    ):
        np.testing.assert_allclose(table.loc[(metric, "mean"), ["value", "sd"]].astype(float), numbers[name], rtol=1e-5)


def test_by_hand() -> None:
    r = [[0.5, 0.9, 0.1], [0.4, 0.6, 0.2], [0.3, 0.7, 0.8]]
    plain = [[0.6, 0, 0], [0, 0.5, 0], [0, 0, 0.9]]
    result = transfer_metrics(r, single_task=[0.55, 0.7, 0.7], sequential=plain)
    assert result.value("incremental_dice") == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    assert result.value("forgetting_max", "task 2") == pytest.approx(0.6 - 0.7)
    assert result.value("forgetting_max_all_rows", "task 2") == pytest.approx(0.9 - 0.7)
    assert result.value("bwt_plus") == pytest.approx((0 + 0.1) / 2)
    assert result.value("plasticity_gap") == pytest.approx((-0.05 - 0.1 + 0.1) / 3)
    assert result.value("fwt_plasticity") == pytest.approx((0.1 - 0.1) / 2, abs=1e-12)
    assert result.value("fwt_zero_shot") == pytest.approx((0.9 + 0.1 + 0.2) / 3)
    assert result.value("fwt_zero_shot", "task 3") == pytest.approx(0.15)
    assert "fwt_untrained" not in set(result.table()["metric"])


def test_a_model_that_never_changes() -> None:
    row, single = np.array([0.7, 0.4, 0.5]), np.array([0.8, 0.8, 0.8])
    result = transfer_metrics(np.tile(row, (3, 1)), single_task=single)
    assert result.value("bwt") == 0
    assert [result.value("fwt_single_task", f"task {i}") for i in (2, 3)] == pytest.approx([-0.4, -0.3])


def test_one_task_has_no_transfer(tmp_path: Path) -> None:
    result = transfer_metrics([[0.8]], untrained=[0.1], single_task=[0.8], sequential=[[0.8]])
    assert result.value("mean_dice") == 0.8
    for metric in (
        "bwt",
        "bwt_gem",
        "forgetting",
        "forgetting_max",
        "fwt_single_task",
        "fwt_untrained",
        "fwt_zero_shot",
    ):
        assert math.isnan(result.value(metric)), metric
    again = Transfer.load(result.save(tmp_path / "transfer.tkr"))
    assert again.value("mean_dice") == 0.8


def test_score_matrix_averages_classes_then_cases() -> None:
    def stage(offset: float) -> pd.DataFrame:
        rows = [
            ("a1", "A", "LV", "dice", 0.5 + offset),
            ("a1", "A", "RV", "dice", 0.7 + offset),
            ("a2", "A", "LV", "dice", 0.9 + offset),
            ("a2", "A", "RV", "dice", np.nan),
            ("b1", "B", "LV", "dice", 0.2 + offset),
            ("b1", "B", "LV", "hd95", 9.0),
        ]
        return pd.DataFrame(rows, columns=["case", "site", "class", "metric", "value"])

    matrix = score_matrix([stage(0.0), stage(0.05)], ["A", "B"])
    np.testing.assert_allclose(matrix, [[0.75, 0.2], [0.8, 0.25]])
    assert np.isnan(score_matrix([stage(0.0)], ["C"])).all()


def test_a_missed_organ_makes_a_mean_distance_worse() -> None:
    """Two cases of one class: 4 mm and missed, with image diagonals of 100 mm."""
    rows = [("p1", 4.0, "ok"), ("p2", math.nan, "missed")]
    table = pd.DataFrame(rows, columns=["case", "value", "status"]).assign(
        site="A", metric="hd95", diagonal=100.0, **{"class": "LV"}
    )
    assert score_matrix([table], ["A"], "hd95")[0, 0] == pytest.approx((4 + 100) / 2)
    with pytest.raises(ResultError, match="left out, they would improve the mean"):
        score_matrix([table.drop(columns="diagonal")], ["A"], "hd95")
    absent = table.assign(status=["ok", "both_absent"])
    assert score_matrix([absent], ["A"], "hd95")[0, 0] == 4.0


def test_a_missing_score_is_missing_in_every_number_that_needs_it() -> None:
    scores = np.array([[0.8, 0.1, 0.2], [0.7, np.nan, 0.3], [0.6, 0.7, 0.9]])
    numbers = transfer_metrics(scores).numbers.set_index(["metric", "task"])["value"]
    assert numbers["bwt", "task 1"] == pytest.approx(-0.2)
    for metric in ("bwt", "bwt_gem", "forgetting", "forgetting_max", "incremental_dice", "rem"):
        assert math.isnan(numbers[metric, "mean"]), metric
    assert numbers["mean_dice", "mean"] == pytest.approx(np.mean([0.6, 0.7, 0.9]))
    assert numbers["fwt_zero_shot", "mean"] == pytest.approx(np.mean([0.1, 0.2, 0.3]))


def test_wrong_calls() -> None:
    with pytest.raises(ResultError, match="one row per stage"):
        transfer_metrics([[0.1, 0.2]])
    with pytest.raises(ResultError, match="single_task"):
        transfer_metrics([[0.1, 0.2], [0.3, 0.4]], single_task=[0.1])
    with pytest.raises(ResultError, match="names"):
        transfer_metrics([[0.1]], ["A", "B"])
    with pytest.raises(ResultError, match="bwt"):
        transfer_metrics([[0.1]]).value("bwtt")
    with pytest.raises(ResultError, match="site"):
        score_matrix([pd.DataFrame({"case": []})], ["A"])
