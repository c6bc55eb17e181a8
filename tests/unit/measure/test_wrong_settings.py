"""Invalid settings and shapes are refused with an error that names the fix, and nothing else in the process notices a call."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import ConfigError, ResultError
from toolkit.features.arrays import MemoryArrays
from toolkit.features.store import Features
from toolkit.measure.collapse import collapse
from toolkit.measure.drift import drift
from toolkit.measure.projection import project
from toolkit.measure.similarity import channel_similarity
from toolkit.measure.statistics import compare_scores

ROWS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
SCORES = np.random.default_rng(0).normal(0.8, 0.05, (6, 3))


@pytest.mark.parametrize(
    "scores",
    [SCORES[:, 0], SCORES[:1], SCORES[:0], SCORES[:, :0], np.where(SCORES > 0.8, np.nan, SCORES), SCORES * np.inf],
)
def test_scores_that_no_mean_can_be_taken_of(scores: np.ndarray) -> None:
    for given in ({"plain": scores}, {"plain": scores, "other": scores}):
        with pytest.raises(ResultError) as error:
            compare_scores(given, "plain")
        assert "'plain'" in error.value.what
        assert error.value.fix


def test_settings_of_measures(make_store: Callable[..., Features]) -> None:
    store = make_store(ROWS, classes=2)
    for call, word in (
        (lambda: compare_scores({"plain": SCORES}, "plain", confidence=95), "confidence=95"),
        (lambda: compare_scores({"plain": SCORES}, "plain", bootstrap=0), "bootstrap=0"),
        (lambda: collapse(store, "head_input", tau=0), "tau=0"),
        (lambda: collapse(store, "head_input", bins=0), "bins=0"),
        (lambda: project(store, "head_input", method="umap", neighbours=1), "neighbours is at least 2"),
        (lambda: channel_similarity(torch.randn(2, 6, 8), "").panel(part="third"), "second half"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert word in str(error.value)


def test_one_store_is_one_stage(make_store: Callable[..., Features]) -> None:
    with pytest.raises(ResultError, match="at least two stages; there are 1"):
        drift(make_store(ROWS), "head_input")  # type: ignore[arg-type]


def test_a_store_without_rows_still_has_its_columns(tmp_path: Any) -> None:
    nothing = MemoryArrays({("layer", "rows"): torch.zeros(0, 4)}, {"cases": [], "images": []})
    empty = Features(["layer"], nothing, {})
    for store in (empty, Features.load(empty.save(tmp_path / "empty store.zarr"))):
        assert list(store.cases)[:3] == ["case", "volume", "subject"]
        assert store.table().empty
        for call in (
            lambda s=store: drift([s, s], "layer"),
            lambda s=store: project(s, "layer"),
            lambda s=store: s.figure(tmp_path / "empty.svg"),
        ):
            with pytest.raises(ResultError, match="row"):
                call()
    assert not (tmp_path / "empty.svg").exists()


def test_libraries_that_draw_from_the_global_state_are_not_noticed(
    make_store: Callable[..., Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn import metrics

    def drawing(*_: Any) -> float:
        return random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002

    monkeypatch.setattr(metrics, "silhouette_score", drawing)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    collapse(make_store(ROWS, classes=2), "head_input")
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
