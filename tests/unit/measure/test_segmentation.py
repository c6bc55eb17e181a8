"""Segmentation metrics against a brute-force reference, hand-computed tables and the papers' own numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from golden_cases import golden_case
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import ConfigError, DataError, ResultError
from toolkit.measure.segmentation import METRICS, aggregate, segmentation_metrics


def values(table: pd.DataFrame, name: object = 1) -> dict[str, float]:
    part = table[table["class"] == name]
    return dict(zip(part["metric"], part["value"], strict=True))


def brute_force_distances(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    def border(mask: np.ndarray) -> list[tuple[int, ...]]:
        found = []
        for index in itertools.product(*map(range, mask.shape)):
            if not mask[index]:
                continue
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                other = list(index)
                other[axis] += step
                if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                    found.append(index)
                    break
        return found

    def distance(p: tuple[int, ...], q: tuple[int, ...]) -> float:
        return math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(p, q, spacing, strict=True)))

    one, two = border(first), border(second)
    forth = [min(distance(p, q) for q in two) for p in one]
    back = [min(distance(p, q) for q in one) for p in two]
    return np.array(forth + back)


def linear_percentile(numbers: np.ndarray, percent: float) -> float:
    ordered = sorted(numbers)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9, 11), (1.0, 1.0)), ((8, 10), (0.7, 2.5)), ((4, 7, 6), (8.0, 1.25, 1.5)), ((5, 5, 5), (1.0, 1.0, 3.0))],
)
def test_against_brute_force(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    reference = (rng.random(shape) < 0.35).astype(np.uint8)
    prediction = (rng.random(shape) < 0.25).astype(np.uint8)
    got = values(segmentation_metrics(prediction, reference, spacing))
    distances = brute_force_distances(prediction > 0, reference > 0, spacing)
    both, either = (prediction & reference).sum(), (prediction | reference).sum()
    assert got["hd95"] == pytest.approx(linear_percentile(distances, 95), abs=1e-9)
    assert got["assd"] == pytest.approx(distances.mean(), abs=1e-9)
    assert got["iou"] == pytest.approx(both / either)
    assert got["dice"] == pytest.approx(2 * both / (prediction.sum() + reference.sum()))


def test_single_voxels_by_hand() -> None:
    prediction, reference = np.zeros((5, 9), int), np.zeros((5, 9), int)
    prediction[1, 1], reference[4, 5] = 2, 2
    table = segmentation_metrics(prediction, reference, (2.0, 0.5), {1: "RV", 2: "LV"})
    assert values(table, "LV") == pytest.approx({"dice": 0, "iou": 0, "hd95": math.sqrt(36 + 4), "assd": math.sqrt(40)})
    assert (table.loc[table["class"] == "RV", "status"] == "both_absent").all()
    assert table["value"][table["class"] == "RV"].isna().all()
    assert set(table.loc[table["metric"] == "hd95", "unit"]) == {"mm"}
    assert table.loc[table["metric"] == "hd95", "diagonal"].iloc[0] == pytest.approx(math.hypot(10, 4.5))


TRUTH = {
    # prediction holds it, reference holds it: status and dice, iou, hd95, assd
    (True, True): ("ok", (1.0, 1.0, 0.0, 0.0)),
    (False, True): ("missed", (0.0, 0.0, math.nan, math.nan)),
    (True, False): ("spurious", (0.0, 0.0, math.nan, math.nan)),
    (False, False): ("both_absent", (math.nan,) * 4),
}


@pytest.mark.parametrize(("in_prediction", "in_reference"), TRUTH)
@pytest.mark.parametrize("dims", [2, 3])
def test_truth_table(in_prediction: bool, in_reference: bool, dims: int) -> None:
    organ = np.zeros((6,) * dims, np.uint8)
    organ[(slice(2, 4),) * dims] = 3
    empty = np.zeros_like(organ)
    table = segmentation_metrics(
        organ if in_prediction else empty, organ if in_reference else empty, None, {0: "background", 3: "LV"}
    )
    status, expected = TRUTH[in_prediction, in_reference]
    assert list(table["metric"]) == list(METRICS)
    assert set(table["status"]) == {status}
    np.testing.assert_array_equal(table["value"], expected)
    assert table["unit"].iloc[2] == ("pixels" if dims == 2 else "voxels")


@pytest.mark.parametrize(
    "case",
    ["metric_overlap", "metric_outlier", "metric_perfect", "metric_pred_only", "metric_ref_only", "metric_both_empty"],
)
def test_golden_selfreg_legacy(case: str) -> None:
    numbers = golden_case("selfreg", case).numbers()
    prediction, reference = (numbers[f"{case}__{name}"] for name in ("prediction", "reference"))
    got = values(segmentation_metrics(prediction, reference, (9.0, 9.0, 9.0), [1], legacy=True))
    for metric, name in (("dice", "dice"), ("iou", "jaccard"), ("hd95", "hd95"), ("assd", "assd")):
        assert got[metric] == pytest.approx(float(numbers[f"{case}__{name}"]), rel=1e-9, abs=1e-9)


def test_golden_latent_augmentation_dice() -> None:
    numbers = golden_case("latent_augmentation", "dice_volume").numbers()
    table = segmentation_metrics(
        numbers["prediction"], numbers["label"], classes=[1, 2, 3], legacy="latent_augmentation"
    )
    got = table.loc[table["metric"] == "dice", "value"]
    np.testing.assert_allclose(got, numbers["dice"], rtol=0, atol=1e-9)
    empty = np.zeros((2, 4, 4), int)
    assert values(segmentation_metrics(empty, empty, classes=[1], legacy="latent_augmentation"))["dice"] == 0


def test_golden_med_disseg_overlap() -> None:
    numbers = golden_case("med_disseg", "metrics").numbers()
    for probability, target, expected in zip(
        numbers["metric_prob"], numbers["metric_target"], numbers["metric_values"], strict=True
    ):
        prediction, reference = (probability[0] > 0.5).astype(int), (target[0] > 0.5).astype(int)
        got = values(segmentation_metrics(prediction, reference, classes=[1], legacy="med_disseg"))
        assert (got["iou"], got["dice"]) == pytest.approx(tuple(expected[:2]), rel=1e-9, abs=1e-12)


def test_tensor_and_whole_floats_are_the_same() -> None:
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 3, (2, 7, 8))
    expected = segmentation_metrics(prediction, reference)
    pd.testing.assert_frame_equal(expected, segmentation_metrics(torch.from_numpy(prediction), reference.astype(float)))
    pd.testing.assert_frame_equal(expected, segmentation_metrics(torch.from_numpy(prediction).bfloat16(), reference))
    assert list(dict.fromkeys(expected["class"])) == [1, 2]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.integers(0, 3), penalty=st.sampled_from(["diagonal", 60.0]))
def test_missing_an_organ_never_improves_a_number(seed: int, missing: int, penalty: str | float) -> None:
    rng = np.random.default_rng(seed)
    cases = [(rng.integers(0, 3, (6, 7)), rng.integers(0, 3, (6, 7))) for _ in range(4)]
    classes = {0: "background", 1: "a", 2: "b"}

    def score(pairs: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
        tables = [segmentation_metrics(p, r, (1.0, 3.0), classes) for p, r in pairs]
        return aggregate(pd.concat(tables), penalty).set_index(["class", "metric"])

    before = score(cases)
    cases[missing] = (np.where(cases[missing][0] == 1, 0, cases[missing][0]), cases[missing][1])
    after = score(cases)
    for name, metric in before.index:
        change = after.loc[(name, metric), "value"] - before.loc[(name, metric), "value"]
        worse = change >= -1e-12 if metric in ("hd95", "assd") else change <= 1e-12
        assert worse, (name, metric, change)
    assert after.loc[("a", "dice"), "missed"] == 1
    assert after.loc[("mean", "dice"), ["ok", "missed", "spurious", "both_absent"]].sum() == 8


def test_aggregate_by_hand() -> None:
    organ, empty = np.zeros((3, 4), int), np.zeros((3, 4), int)
    organ[1, 1:3] = 1
    pairs = [("A", organ, organ), ("A", empty, organ), ("A", empty, empty), ("B", organ, empty)]
    table = pd.concat(
        [segmentation_metrics(p, r, classes=[1]).assign(site=site) for site, p, r in pairs], ignore_index=True
    )
    got = aggregate(table, by=["site"]).set_index(["site", "class", "metric"])
    row = got.loc[("A", 1, "dice")]
    assert (row["value"], row["cases"]) == (0.5, 2)
    assert tuple(row[["ok", "missed", "spurious", "both_absent"]]) == (1, 1, 0, 1)
    assert got.loc[("A", 1, "hd95"), "value"] == pytest.approx(2.5)
    assert got.loc[("A", 1, "hd95"), "penalty"] == "image diagonal"
    assert got.loc[("B", "mean", "hd95"), "value"] == pytest.approx(5.0)
    assert math.isnan(aggregate(table, "undefined").set_index(["class", "metric"]).loc[(1, "hd95"), "value"])
    everywhere_absent = aggregate(segmentation_metrics(empty, empty, classes=[1]))
    assert everywhere_absent["value"].isna().all()


def test_bad_input_says_so() -> None:
    organ = np.ones((4, 4), int)
    with pytest.raises(DataError, match="different shapes"):
        segmentation_metrics(organ, np.ones((4, 5), int))
    with pytest.raises(DataError, match="whole numbers"):
        segmentation_metrics(np.full((4, 4), 0.3), organ)
    with pytest.raises(DataError, match="whole numbers"):
        segmentation_metrics(np.full((4, 4), np.nan), organ)
    with pytest.raises(DataError, match="2 or 3 axes"):
        segmentation_metrics(organ[None, None], organ)
    with pytest.raises(DataError, match=r"\[255\]"):
        segmentation_metrics(organ * 255, organ, classes={0: "background", 1: "tumour"})
    with pytest.raises(ConfigError, match="spacing"):
        segmentation_metrics(organ, organ, (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="spacing"):
        segmentation_metrics(organ, organ, (1.0, 0.0))
    with pytest.raises(ConfigError, match="legacy"):
        segmentation_metrics(organ, organ, legacy="nobody")


def test_aggregate_refuses_what_would_mislead() -> None:
    first, second = np.zeros((4, 40), int), np.zeros((4, 40), int)
    first[0, 0] = second[0, 30] = 1
    table = segmentation_metrics(first, second, (1.0, 1.0))
    with pytest.raises(ConfigError, match="below the longest"):
        aggregate(table, 10.0)
    with pytest.raises(ConfigError, match="no penalty policy"):
        aggregate(table, "zero")
    with pytest.raises(ResultError, match="mixes units"):
        aggregate(pd.concat([table, segmentation_metrics(first, second)]))
    with pytest.raises(ResultError, match="mixes rules"):
        aggregate(pd.concat([table, segmentation_metrics(first, second, legacy=True)]))
    with pytest.raises(ResultError, match="lacks the columns"):
        aggregate(table.drop(columns="status"))
