"""Neighbours, fuzzy weights and pictures against brute force, scikit-learn and umap-learn."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness as reference_trustworthiness
from sklearn.neighbors import NearestNeighbors

from toolkit.errors import ConfigError, ResultError
from toolkit.measure.embedding import balanced_sample, fuzzy_weights, nearest, neighbour_overlap, place, trustworthiness
from toolkit.measure.projection import project

LAYER = "head_input"


def blobs(n: int, seed: int = 0, channels: int = 10) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    centres = 6 * np.random.default_rng(99).normal(size=(3, channels))
    return torch.from_numpy(centres[(np.arange(n) // 10) % 3] + rng.normal(size=(n, channels))).float()


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_neighbours_are_exact(offset: float) -> None:
    base, queries = blobs(500) + offset, blobs(60, seed=1) + offset
    index, distances = nearest(queries, base, 7)
    expected, places = (
        NearestNeighbors(n_neighbors=7, algorithm="brute").fit(base.double()).kneighbors(queries.double())
    )
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    assert (index.numpy() == places).mean() > 0.99
    assert torch.equal(nearest(base, base, 3)[0][:, 0], torch.arange(500))
    with pytest.raises(ResultError, match="do not have"):
        nearest(queries, base[:5], 7)


def test_fuzzy_weights_sum_to_log2_k() -> None:
    distances = nearest(blobs(100), blobs(300, seed=1), 15)[1]
    weights = fuzzy_weights(distances)
    np.testing.assert_allclose(weights.sum(1), math.log2(15), rtol=1e-6)
    assert (weights[:, 0] == 1).all()
    assert (weights.diff(dim=1) <= 0).all()
    assert torch.isfinite(fuzzy_weights(torch.zeros(3, 15))).all()


def test_placing_known_points() -> None:
    base = torch.tensor([[0.0, 0], [1, 0], [10, 10], [11, 10]])
    embedding = torch.tensor([[0.0, 0], [2, 0], [50, 50], [52, 50]])
    placed = place(torch.tensor([[0.5, 0.0]]), base, embedding, 2)
    torch.testing.assert_close(placed, torch.tensor([[1.0, 0.0]]))


def test_picture_scores() -> None:
    rows = blobs(120)
    points = rows[:, :2].contiguous()
    expected = reference_trustworthiness(rows.numpy(), points.numpy(), n_neighbors=15)
    assert trustworthiness(rows, points) == pytest.approx(expected, rel=1e-6)
    assert trustworthiness(rows, rows) == 1
    assert neighbour_overlap(points, points @ torch.tensor([[0.0, 2], [-2, 0]])) == pytest.approx(1)
    noise = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    assert neighbour_overlap(points, noise) < 0.3


def test_sample_is_balanced() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    chosen = balanced_sample(labels, 120, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [55, 55, 10]
    assert torch.equal(chosen, balanced_sample(labels, 120, seed=0))
    assert not torch.equal(chosen, balanced_sample(labels, 120, seed=1))


def test_tsne_shows_a_sample_of_all_stages(make_store: Callable[..., Any]) -> None:
    stages = [make_store(blobs(300, seed), classes=3) for seed in range(2)]
    result = project(stages, LAYER, method="tsne", fit_rows=240, perplexity=15.0)
    assert [len(c) for c in result.coordinates] == [120, 120]
    assert result.basis == "shared"
    assert result.settings["trustworthiness"] > 0.85
    assert result.explained.isnan().all()
    assert result.points()["class"].value_counts().tolist() == [80, 80, 80]


def test_wrong_pictures(make_store: Callable[..., Any]) -> None:
    store = make_store(blobs(60), classes=3)
    with pytest.raises(ConfigError, match="neighbors"):
        project(store, LAYER, method="umap", neighbors=5)
    with pytest.raises(ConfigError, match="2 components"):
        project(store, LAYER, method="tsne", components=3)
    with pytest.raises(ConfigError, match="per_stage"):
        project(store, LAYER, method="umap", basis="per_stage")
    with pytest.raises(ConfigError, match="perplexity"):
        project(store, LAYER, method="tsne", perplexity=90.0)
    with pytest.raises(ResultError, match="15 neighbours"):
        project(make_store(blobs(12)), LAYER, method="umap")
    with pytest.raises(ResultError, match="same"):  # scikit-learn 1.x ends the process on these
        project(make_store(torch.ones(60, 4)), LAYER, method="tsne", perplexity=5.0)


@pytest.mark.slow
def test_umap_is_fitted_once_and_later_stages_are_placed(make_store: Callable[..., Any]) -> None:
    first, later = blobs(240), blobs(240, seed=5)
    stages = [make_store(rows, classes=3) for rows in (first, later)]
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads()
    result = project(stages, LAYER, method="umap", epochs=60, stability_seeds=1)
    assert torch.get_num_threads() == threads  # numba has its own idea of the process's threads
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert random.getstate() == state[2]
    assert result.basis == "stage1"
    assert result.settings["trustworthiness"] > 0.85
    assert 0.1 < result.settings["stability"] <= 1
    alone = project(stages[0], LAYER, method="umap", epochs=60)
    assert torch.equal(alone.coordinates[0], result.coordinates[0])  # later stages do not move the picture

    import umap  # already imported by project, which keeps its import-time warnings to itself

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = umap.UMAP(n_neighbors=15, n_epochs=60, random_state=0, n_jobs=1).fit(first.numpy())
        theirs = torch.from_numpy(own.transform(later.numpy()))
    ours = result.coordinates[1]
    assert trustworthiness(later, ours) > trustworthiness(later, theirs) - 0.05
