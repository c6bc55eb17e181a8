"""The choice of metrics changes which rows are given, never their values, and skips the distances."""

import numpy as np
import pytest

from toolkit.errors import ConfigError
from toolkit.measure import segmentation


def test_overlap_alone_equals_the_full_table_and_measures_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, reference = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    prediction[1:4, 1:4], reference[2:5, 1:4] = 1, 1
    full = segmentation.segmentation_metrics(prediction, reference, classes={1: "organ"})
    monkeypatch.setattr(segmentation, "surface_distances", None)
    some = segmentation.segmentation_metrics(prediction, reference, classes={1: "organ"}, metrics=("dice", "iou"))
    assert list(some["metric"]) == ["dice", "iou"]
    assert list(some["value"]) == list(full["value"][:2])
    assert some["value"].iloc[0] == pytest.approx(2 * 6 / 18)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match="dicee"):
        segmentation.segmentation_metrics(np.zeros((2, 2)), np.zeros((2, 2)), metrics=("dicee",))
