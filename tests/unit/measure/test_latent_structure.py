"""Gaussianity, classifier variability and regularizer health against closed forms, nulls and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from scipy.optimize import minimize
from scipy.special import logsumexp

import toolkit as tk
from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.measure.classifier_variability import (
    ClassifierVariability,
    _fit,
    classifier_variability,
    k_variance,
    normalised_margins,
)
from toolkit.measure.gaussianity import Gaussianity, effective_rows, gaussianity
from toolkit.measure.pairing import rows_of
from toolkit.measure.regularizer_health import RegularizerHealth, regularizer_health

LAYER = "head_input"


def normal(n: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed))


def test_normal_rows_lie_at_the_null(make_store: Callable[..., Any]) -> None:
    found = gaussianity(make_store(normal(2000, 8), cases=200), LAYER, null_draws=100).table().iloc[0]
    assert found["T"] == pytest.approx(1.05246, rel=0.5)
    assert found["T_over_N"] < found["null_95"]
    assert found["null"] * 2000 == pytest.approx(1.05246, rel=1e-4)
    assert found["n_eff"] == pytest.approx(2000, rel=0.1)
    assert found["excess_kurtosis"] == pytest.approx(0, abs=0.15)
    assert found["eig_min"] > 0.8


def test_shifted_rows_have_the_closed_form(make_store: Callable[..., Any]) -> None:
    """For N(m, 1) in one channel the characteristic function is e^{imt - t²/2}: E = ∫ w 2 (1 - cos mt) e^{-t²}."""
    rows = normal(20_000, 1) + 1.5
    found = gaussianity(make_store(rows), LAYER, null_draws=2).table().iloc[0]
    expected = integrate.quad(lambda t: math.exp(-t * t / 2) * math.exp(-t * t) * 2 * (1 - math.cos(1.5 * t)), -3, 3)[0]
    assert found["T_over_N"] == pytest.approx(expected, rel=0.03)
    assert found["mean_norm"] == pytest.approx(1.5, abs=0.03)
    shape = gaussianity(make_store(rows), LAYER, null_draws=2, standardise=True).table().iloc[0]
    assert shape["T_over_N"] < 0.01 * expected


def test_the_null_of_standardised_rows_is_that_of_estimated_moments(make_store: Callable[..., Any]) -> None:
    """Baringhaus and Henze 1988, d = 1, beta = 1; the grid ends at 3, beyond which the window holds 0.0068."""
    expected = (2 * math.pi) ** 0.5 * (1 - 3**-0.5 * (1 + 1 / 3 + 3 / 18)) - 0.0068
    rows = normal(4000, 1)
    table = gaussianity(make_store(rows, classes=2), LAYER, null_draws=300, directions=16, standardise=True).table()
    plain = gaussianity(make_store(rows, classes=2), LAYER, null_draws=300, directions=16).table()
    assert float(table["null"][0]) * 4000 == pytest.approx(expected, rel=0.12)
    assert float(table["null_95"][0]) < 0.6 * float(plain["null_95"][0])
    # half of the rows: what the common mean and deviation take out is half of it
    assert float(table["null"][1]) * 2000 == pytest.approx((expected + 1.05246) / 2, rel=0.06)


def test_effective_rows() -> None:
    clusters = torch.arange(50).repeat_interleave(20)
    same = normal(50, 4).repeat_interleave(20, 0)
    assert effective_rows(same, clusters) == pytest.approx(50)
    assert effective_rows(normal(1000, 4), clusters) == pytest.approx(1000, rel=0.25)
    half = (same + normal(1000, 4, seed=1)) / 2**0.5
    assert effective_rows(half, clusters) == pytest.approx(1000 / (1 + 19 * 0.5), rel=0.2)
    assert effective_rows(normal(30, 2), torch.arange(30)) == 30


def test_rows_of_one_patient_are_one_cluster_however_many_slices_it_has(make_store: Callable[..., Any]) -> None:
    """Ten patients of two slices, all rows of a patient equal: worth ten rows, not the twenty of its slices."""
    case = np.arange(400) % 20
    rows = normal(10, 4)[case // 2]
    table = pd.DataFrame(
        {
            "case": [f"slice{c}" for c in case],
            "volume": [f"scan{c // 2}" for c in case],
            "subject": [f"patient{c // 2}" for c in case],
            "class": 0,
            "class_name": "background",
            "index": np.arange(400),
        }
    )
    found = gaussianity(make_store(rows, table=table), LAYER, null_draws=1, directions=8).table().iloc[0]
    assert found["n_eff"] == pytest.approx(10)
    for column in ("subject", "volume"):  # without patients volumes count, without those the cases
        table[column] = ""
    found = gaussianity(make_store(rows, table=table), LAYER, null_draws=1, directions=8).table().iloc[0]
    assert 10 < found["n_eff"] <= 20.0001


def test_groups_and_round_trip(make_store: Callable[..., Any], tmp_path: Path) -> None:
    store = make_store(normal(300, 4), classes=3)
    result = gaussianity(store, LAYER, null_draws=3, directions=32)
    assert result.table()["group"].tolist()[0] == "all"
    assert len(result.table()) == 4
    again = Gaussianity.load(result.save(tmp_path / "gaussianity.tkr"))
    assert torch.equal(again.by_direction, result.by_direction)
    assert result.figure(tmp_path / "gaussianity.png").stat().st_size > 1000
    with pytest.raises(ResultError, match="at least 8"):
        gaussianity(make_store(normal(7, 4)), LAYER)
    with pytest.raises(ConfigError, match="directions"):
        tk.gaussianity(store, LAYER, directions=0)


def clusters(n: int, spread: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    centres = 3 * np.eye(3, 6)
    return torch.from_numpy(centres[(np.arange(n) // 10) % 3] + spread * rng.normal(size=(n, 6))).float()


def test_noisier_features_give_a_more_variable_classifier(make_store: Callable[..., Any], tmp_path: Path) -> None:
    options = {"bootstraps": 6, "rows": 150}
    near, far = (make_store(clusters(600, spread), classes=3) for spread in (0.5, 3.0))
    clean = classifier_variability(near, LAYER, far, **options)
    noisy = classifier_variability(far, LAYER, near, **options)
    assert (clean.angles < noisy.angles).all()
    assert clean.source_disagreement < 0.01 < noisy.source_disagreement
    assert clean.source_accuracy > 0.99
    assert clean.target_disagreement > clean.source_disagreement
    torch.testing.assert_close(clean.weights.sum(1), torch.zeros(6, 6, dtype=torch.float64))
    pairs = [
        float(torch.rad2deg(torch.arccos(torch.cosine_similarity(a, b, dim=0))))
        for i, a in enumerate(noisy.weights[:, 1])
        for b in noisy.weights[i + 1 :, 1]
    ]
    assert float(noisy.angles[1]) == pytest.approx(np.mean(pairs))
    again = ClassifierVariability.load(clean.save(tmp_path / "heads.tkr"))
    assert again.table().equals(clean.table())
    assert clean.figure(tmp_path / "heads.png").stat().st_size > 1000


def test_wrong_calls_of_the_classifier(make_store: Callable[..., Any]) -> None:
    store = make_store(clusters(60, 1.0), classes=3)
    with pytest.raises(ResultError, match="two classes"):
        classifier_variability(make_store(normal(40, 6)), LAYER)
    with pytest.raises(ConfigError, match="bootstraps"):
        classifier_variability(store, LAYER, bootstraps=1)
    with pytest.raises(ResultError, match="5 channels"):
        classifier_variability(store, LAYER, make_store(normal(60, 5), classes=3), bootstraps=2, rows=30)


def test_health_of_regularizers(tmp_path: Path) -> None:
    history = pd.DataFrame(
        {
            "step": [0, 10, 20, 30],
            "event": ["train"] * 3 + ["validation"],
            "segreg/gradient_ratio": [0.1, 0.3, 0.2, math.nan],
            "selfreg/gradient_ratio": [0.0, 1e-9, 2.0, math.nan],
            "seconds/gradient_ratio": [1.0, 1.0, 1.0, math.nan],
        }
    )
    result = regularizer_health(history)
    table = result.table().set_index("regularizer")
    columns = ["steps", "first", "median", "last", "largest", "dead"]
    assert table[columns].to_numpy()[0].tolist() == pytest.approx([3, 0.1, 0.2, 0.2, 0.3, 0])
    assert table["verdict"].to_dict() == {"segreg": "ok", "selfreg": "dead"}
    assert table.loc["selfreg", "dominant"] == pytest.approx(1 / 3)
    again = RegularizerHealth.load(result.save(tmp_path / "health.tkr"))
    assert again.table().equals(result.table())
    assert result.figure(tmp_path / "health.png").stat().st_size > 1000
    with pytest.raises(ResultError, match="no gradient ratio"):
        regularizer_health(history[["step", "event"]])


def test_k_variance_is_the_transport_distance_of_two_halves() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 1))
    chosen = keyed_random("k-variance", "a").choice(40, 40, replace=False)
    expected = stats.wasserstein_distance(rows[chosen[:20], 0], rows[chosen[20:], 0])
    assert k_variance(rows, ("a",)) == pytest.approx(expected)
    assert k_variance(rows * 3, ("a",)) == pytest.approx(3 * expected)
    assert math.isnan(k_variance(rows[:1], ("a",)))
    assert k_variance(np.zeros((9, 3)), ("a",)) == 0


def test_margins_by_hand_and_their_scale() -> None:
    weights, biases = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]), np.array([0.0, 0.0, -10.0])
    values, places = np.array([[2.0, 0.0], [0.5, 0.0], [-3.0, 1.0]]), np.array([0, 1, 1])
    # scores: (2, -2, -10), (.5, -.5, -10), (-3, 3, -8); the two first weight vectors are 2 apart
    found = normalised_margins(values, places, weights, biases, spread=0.5)
    assert found.tolist() == pytest.approx([4 / 1, -1 / 1, 6 / 1])
    scaled = normalised_margins(values * 7, places, weights / 7 * 3, biases * 3, spread=3.5)
    assert scaled.tolist() == pytest.approx(found.tolist())


def test_tighter_classes_have_a_larger_margin(make_store: Callable[..., Any]) -> None:
    labels = torch.arange(600) // 10 % 3
    centres = 3 * torch.eye(3)[labels]
    found = [
        classifier_variability(make_store(centres + sd * normal(600, 3), classes=3), LAYER, bootstraps=3, rows=300)
        for sd in (0.3, 1.5)
    ]
    assert found[0].source_margin > 2 * found[1].source_margin > 0
    table = found[0].table().set_index(["measure", "of"])["value"]
    assert table["normalised margin", "source"] == found[0].source_margin
    assert math.isnan(table["normalised margin", "target"])


def test_the_head_of_two_classes_is_the_multinomial_one(make_store: Callable[..., Any]) -> None:
    """Mean cross-entropy plus penalty / 2 times all squared weights, minimised by scipy on the same rows."""
    store = make_store(clusters(200, 2.0), classes=2)
    (values, labels), known = (rows_of(store, LAYER).numpy(), store.cases["class"].to_numpy()), np.array([0, 1])
    weights, biases = _fit(values, labels, known, 80, 0.1, (0, 0))
    random = keyed_random("classifier variability", 0, 0)
    index = np.concatenate([random.choice(np.flatnonzero(labels == one), 40) for one in known])
    x, y = values[index].astype(float), labels[index]

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:-2].reshape(2, -1), flat[-2:]
        scores = x @ w.T + b
        return float((logsumexp(scores, axis=1) - scores[np.arange(80), y]).mean() + 0.05 * (w**2).sum())

    best = minimize(loss, np.zeros(weights.size + 2), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(weights, best[:-2].reshape(2, -1), atol=2e-4)
    np.testing.assert_allclose(biases, best[-2:] - best[-2:].mean(), atol=2e-4)
