"""Collapse diagnostics against scikit-learn, loops and spaces whose values are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_similarity

from toolkit.errors import DataError, LayerError, ResultError
from toolkit.measure.collapse import Collapse, collapse, effective_rank, mean_cosine, participation_ratio, uniformity


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_loops_and_libraries() -> None:
    rows = normal(60, 7) + 0.5
    values = rows.numpy()
    cosines = cosine_similarity(values)
    assert mean_cosine(rows) == pytest.approx(cosines[~np.eye(60, dtype=bool)].mean())
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    assert uniformity(rows) == pytest.approx(np.log(np.exp(-2 * pdist(units, "sqeuclidean")).mean()))
    spectrum = np.linalg.svd(values - values.mean(0), compute_uv=False)
    share = spectrum / spectrum.sum()
    assert effective_rank(rows) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    eigen = np.linalg.eigvalsh(np.cov(values.T))
    assert participation_ratio(rows) == pytest.approx(eigen.sum() ** 2 / (eigen**2).sum())


def test_known_spaces() -> None:
    line = torch.outer(normal(50), normal(6, seed=1))
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert participation_ratio(line) == pytest.approx(1)
    corners = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert effective_rank(corners) == pytest.approx(5)
    assert participation_ratio(corners) == pytest.approx(5)
    assert mean_cosine(corners) == pytest.approx(-10 / 90)
    same = torch.ones(10, 4)
    assert (effective_rank(same), participation_ratio(same)) == (0, 0)
    assert uniformity(same) == pytest.approx(0, abs=1e-6)
    assert mean_cosine(same) == pytest.approx(1)
    sphere = uniformity(normal(1500, 64))
    assert sphere == pytest.approx(-4 + 8 / 64, abs=0.02)  # |u-v|^2 = 2 - 2 cos, cos ~ N(0, 1/C)


def test_separated_and_mixed_classes(make_store: Callable[..., Any]) -> None:
    label = (torch.arange(300) // 10) % 3
    centres = 8 * torch.eye(3, 6, dtype=torch.float64)
    apart = collapse(make_store(normal(300, 6) + centres[label], classes=3), "head_input").values
    mixed = collapse(make_store(normal(300, 6), classes=3), "head_input").values
    assert apart["linear_probe"] > 0.98
    assert apart["silhouette"] > 0.4
    assert abs(mixed["linear_probe"] - 1 / 3) < 0.1
    assert abs(mixed["silhouette"]) < 0.05
    alone = collapse(make_store(normal(30, 6)), "head_input").values
    assert math.isnan(alone["linear_probe"])
    assert math.isnan(alone["silhouette"])


def test_active_band_and_histogram(make_store: Callable[..., Any]) -> None:
    rows = torch.tensor([[0.0], [5.0], [15.0]])
    result = collapse(make_store(rows, cases=3), "head_input", tau=0.5)
    assert result.values["active_pairs"] == pytest.approx(1 / 3)  # 5 < 9.2 <= 10, 15
    assert result.values["active_pairs_normalised"] == 0  # squared: 25, 100, 225
    assert int(result.histogram.sum()) == 3
    assert float(result.edges[-1]) == 15


def test_draw_is_even_and_repeatable(make_store: Callable[..., Any], tmp_path: Path) -> None:
    store = make_store(normal(4000, 3), cases=7)
    one, two = (collapse(store, "head_input", max_rows=500) for _ in range(2))
    assert one.values == pytest.approx(two.values, rel=0, abs=0, nan_ok=True)
    assert one.rows == 500
    again = Collapse.load(one.save(tmp_path / "collapse.tkr"))
    assert again.table()["diagnostic"].tolist() == one.table()["diagnostic"].tolist()
    assert again.values["uniformity"] == one.values["uniformity"]


def test_wrong_calls(make_store: Callable[..., Any]) -> None:
    with pytest.raises(LayerError, match="head_input"):
        collapse(make_store(normal(10, 3)), "encoder")
    with pytest.raises(ResultError, match="2 rows are too few"):
        collapse(make_store(normal(2, 3)), "head_input")
    with pytest.raises(DataError, match="NaN"):
        collapse(make_store(torch.full((5, 3), torch.nan)), "head_input")


def test_slices_of_one_patient_do_not_tell_the_probe_its_answers(make_store: Callable[..., Any]) -> None:
    """What tells the classes apart is drawn anew for each of 8 patients: between patients there is chance, 1/2."""
    patient, label = np.repeat(np.arange(8), 12), np.tile([0, 1], 48)
    random = np.random.default_rng(0)
    rows = random.normal(size=(8, 2, 16))[patient, label] + 0.05 * random.normal(size=(96, 16))
    table = pd.DataFrame({"case": [f"slice{k // 2}" for k in range(96)], "subject": [f"p{k}" for k in patient]})
    table = table.assign(**{"class": label}, class_name=[f"class {k}" for k in label])
    found = collapse(make_store({"a": rows}, table=table), "a").values["linear_probe"]
    assert 0.2 < found < 0.8
    alone = table.assign(**{"class": patient % 2})[:24]  # two patients, each of one class: nothing to train on
    assert np.isnan(collapse(make_store({"a": rows[:24]}, table=alone), "a").values["linear_probe"])
