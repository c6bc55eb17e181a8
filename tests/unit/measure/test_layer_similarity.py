"""Layer-by-layer similarity: exact on one batch, unbiased over batches, invariant as each method promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_distances
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from toolkit.errors import ConfigError, DataError, LayerError, ResultError
from toolkit.measure.distances import linear_cka, procrustes
from toolkit.measure.layer_similarity import METHODS, LayerSimilarity, layer_similarity


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def layers() -> dict[str, torch.Tensor]:
    shallow = normal(200, 5)
    deep = torch.tanh(shallow @ normal(5, 9, seed=1)) + 0.3 * normal(200, 9, seed=2)
    return {"encoder.1": shallow, "encoder.2": deep, "bottleneck": deep @ normal(9, 4, seed=3)}


def test_one_batch_is_the_full_estimate(layers: dict[str, torch.Tensor], make_store: Callable[..., Any]) -> None:
    store = make_store(layers)
    rounded = [rows.float() for rows in layers.values()]
    expected = {
        "linear_cka": lambda a, b: linear_cka(a, b, debiased=True),
        "rbf_cka": lambda a, b: exact_distances.rbf_cka(a, b, debiased=True),
        "procrustes": lambda a, b: 1 - procrustes(a, b),
        "rsa": lambda a, b: spearmanr(pdist(a.double(), "correlation"), pdist(b.double(), "correlation")).statistic,
    }
    for method, function in expected.items():
        result = layer_similarity(store, method=method, batch=10_000)
        table = [[float(function(a, b)) for b in rounded] for a in rounded]
        np.testing.assert_allclose(result.matrix, table, rtol=1e-5, atol=1e-7, err_msg=method)
        np.testing.assert_allclose(result.matrix.diagonal(), 1, atol=1e-6)
        assert result.table().shape == (9, 4)


def test_minibatches_agree_in_expectation(layers: dict[str, torch.Tensor], make_store: Callable[..., Any]) -> None:
    store = make_store(layers)
    full = layer_similarity(store, batch=200).matrix
    means = torch.stack([layer_similarity(store, batch=20, seed=seed).matrix for seed in range(30)])
    error = means.std(0) / 30**0.5
    assert ((means.mean(0) - full).abs() <= 4 * error + 0.005).all()


def test_invariances(layers: dict[str, torch.Tensor], make_store: Callable[..., Any]) -> None:
    turned = {
        name: 3 * rows @ torch.linalg.qr(normal(rows.shape[1], rows.shape[1], seed=5))[0] + 1
        for name, rows in layers.items()
    }
    one, two = make_store(layers), make_store(turned)
    for method in METHODS[:3]:
        result = layer_similarity(one, two, method=method, batch=50)
        np.testing.assert_allclose(result.matrix.diagonal(), 1, atol=1e-4, err_msg=method)
        same = layer_similarity(one, one, method=method, batch=50)
        np.testing.assert_allclose(result.matrix, same.matrix, atol=1e-4, err_msg=method)


@pytest.mark.parametrize("method", METHODS)
def test_small_layers_count_and_constant_ones_are_undefined(method: str, make_store: Callable[..., Any]) -> None:
    rows = normal(60, 5)
    constant = torch.arange(5.0).expand(60, 5) + 0.3
    found = layer_similarity(make_store({"a": rows, "tiny": rows * 1e-5, "flat": constant}), method=method, batch=20)
    assert found.matrix[:2, :2].flatten().tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert torch.cat((found.matrix[2], found.matrix[:, 2])).isnan().all()


def test_unrelated_layers_are_unlike(make_store: Callable[..., Any]) -> None:
    result = layer_similarity(make_store({"a": normal(600, 8), "b": normal(600, 8, seed=1)}), batch=100)
    assert abs(float(result.matrix[0, 1])) < 0.03


def test_rows_are_matched_and_result_kept(
    layers: dict[str, torch.Tensor], make_store: Callable[..., Any], tmp_path: Path
) -> None:
    store = make_store(layers)
    order = np.random.default_rng(0).permutation(200)
    shuffled = make_store({n: r[order] for n, r in layers.items()}, table=store.cases.iloc[order])
    result = layer_similarity(store, shuffled, layers_b=["bottleneck"])
    assert result.matrix.shape == (3, 1)
    assert float(result.matrix[2, 0]) == pytest.approx(1)
    again = LayerSimilarity.load(result.save(tmp_path / "layers.tkr"))
    assert torch.equal(again.matrix, result.matrix)
    constant = layer_similarity(make_store({"a": normal(50, 3), "dead": torch.ones(50, 3)}))
    assert constant.matrix[0, 1].isnan()


def test_wrong_calls(layers: dict[str, torch.Tensor], make_store: Callable[..., Any]) -> None:
    store = make_store(layers)
    with pytest.raises(ConfigError, match="cca"):
        layer_similarity(store, method="cca")
    with pytest.raises(ConfigError, match="at least 4"):
        layer_similarity(store, batch=3)
    with pytest.raises(LayerError, match=r"encoder\.2"):
        layer_similarity(store, layers_a=["encoder.3"])
    with pytest.raises(ResultError, match="cases differ"):
        layer_similarity(store, make_store(layers, cases=8))
    with pytest.raises(ResultError, match="too few"):
        layer_similarity(make_store({"a": normal(3, 2)}))
    with pytest.raises(DataError, match="second store"):
        layer_similarity(store, make_store({"encoder.1": layers["encoder.1"] * torch.nan}))
