"""Projections against scikit-learn, closed forms and rotated copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from toolkit.errors import ConfigError, DataError, LayerError, ResultError
from toolkit.features.store import open_features
from toolkit.measure.projection import Projection, project
from toolkit.measure.projection_planes import CHUNK, StreamingMoments, balanced_weights, principal_plane


def cloud(n: int, channels: int, seed: int = 0, classes: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(channels, channels)) * np.linspace(2, 0.1, channels)
    label = (np.arange(n) // 10) % classes
    return torch.from_numpy(rng.normal(size=(n, channels)) @ mixing.T + 3 * rng.normal(size=(classes, channels))[label])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streamed_moments_equal_numpy(offset: float) -> None:
    rows = cloud(2 * CHUNK + 77, 6) + offset
    streamed = StreamingMoments(6)
    for part in rows.float().split(5000):
        streamed.update(part)
    expected = rows.float().double().numpy()
    np.testing.assert_allclose(streamed.mean, expected.mean(0), rtol=1e-7)
    np.testing.assert_allclose(streamed.covariance(), np.cov(expected.T), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        StreamingMoments(rows.shape[1]).update(rows).covariance(unbiased=False),
        np.cov(rows.numpy().T, ddof=0),
        rtol=1e-7,
        atol=1e-9,
    )


def test_weights_are_repetitions() -> None:
    rows, times = cloud(40, 5), torch.arange(40) % 3 + 1
    repeated = rows.repeat_interleave(times, 0)
    np.testing.assert_allclose(
        StreamingMoments(rows.shape[1]).update(rows, times).covariance(unbiased=False),
        StreamingMoments(repeated.shape[1]).update(repeated).covariance(unbiased=False),
        rtol=1e-10,
    )
    weights = balanced_weights(torch.tensor([0, 0, 0, 1]))
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


def test_pca_equals_scikit_learn(make_store: Callable[..., Any]) -> None:
    rows = cloud(500, 8)
    result = project(make_store(rows), "head_input", components=3, balanced=False)
    reference = PCA(3, svd_solver="full").fit(rows.float().double().numpy())
    np.testing.assert_allclose(result.explained[0], reference.explained_variance_ratio_, rtol=1e-6)
    expected = reference.transform(rows.numpy())
    signs = np.sign((expected * result.coordinates[0].numpy()).sum(0))
    np.testing.assert_allclose(result.coordinates[0], expected * signs, atol=2e-4)
    largest = result.axes[0].abs().argmax(1)
    assert (result.axes[0].gather(1, largest[:, None]) > 0).all()


def test_lda_plane_equals_scikit_learn(make_store: Callable[..., Any]) -> None:
    store = make_store(cloud(600, 6, classes=3), classes=3)
    labels = store.cases["class"].to_numpy()
    result = project(store, "head_input", method="lda")
    reference = LinearDiscriminantAnalysis(solver="eigen", priors=[1 / 3] * 3)
    reference.fit(store.rows("head_input").double().numpy(), labels)
    angles = subspace_angles(reference.scalings_[:, :2], result.axes[0].T.numpy())
    assert angles.max() < 1e-3
    two_classes = project(make_store(cloud(400, 5, classes=2), classes=2), "head_input", method="lda")
    np.testing.assert_allclose(two_classes.axes[0] @ two_classes.axes[0].T, np.eye(2), atol=1e-10)


def test_head_plane_by_hand(make_store: Callable[..., Any]) -> None:
    head = torch.tensor([[1.0, 0, 5, 0], [0, 2, 5, 0], [0, 0, 5, 0]])  # channel 2 is common to all
    store = make_store(cloud(100, 4), head=head)
    result = project(store, "head_input", method="head")
    np.testing.assert_allclose(result.axes[0][:, 2:], 0, atol=1e-12)
    with pytest.raises(ResultError, match="head"):
        project(make_store(cloud(100, 4)), "head_input", method="head")
    with pytest.raises(ResultError, match="4 channels, this layer has 5"):
        project(make_store(cloud(100, 5), head=head), "head_input", method="head")


def test_bases_over_stages(make_store: Callable[..., Any]) -> None:
    rows = cloud(300, 6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64))[0]
    stages = [make_store(rows), make_store(rows @ turn + 2)]
    aligned = project(stages, "head_input", basis="per_stage")
    one, two = (c - c.mean(0) for c in aligned.coordinates)
    torch.testing.assert_close(one, two, atol=2e-3, rtol=0)
    frozen = project(stages, "head_input", basis="stage1", balanced=False)
    alone = project(stages[0], "head_input", balanced=False)
    torch.testing.assert_close(frozen.coordinates[0], alone.coordinates[0])
    torch.testing.assert_close(frozen.axes[0], frozen.axes[1])
    shift = (rows @ turn + 2).mean(0) - rows.mean(0)
    moved = frozen.coordinates[1].mean(0) - frozen.coordinates[0].mean(0)
    torch.testing.assert_close(moved.double(), frozen.axes[0] @ shift, atol=1e-3, rtol=0)
    shared = project(stages, "head_input", balanced=False)
    pooled = PCA(2, svd_solver="full").fit(torch.cat([rows, rows @ turn + 2]).numpy())
    assert subspace_angles(pooled.components_.T, shared.axes[0].T.numpy()).max() < 1e-3


def test_isotropic_features_show_their_share(make_store: Callable[..., Any]) -> None:
    rows = torch.randn(40_000, 32, generator=torch.Generator().manual_seed(0))
    result = project(make_store(rows), "head_input")
    assert float(result.explained.sum()) == pytest.approx(2 / 32, rel=0.1)
    assert result.table()["explained_variance"].sum() == pytest.approx(float(result.explained.sum()))


def test_balance_ignores_class_sizes(make_store: Callable[..., Any]) -> None:
    rows = cloud(300, 5, classes=3)
    store = make_store(rows, classes=3)
    repeated = store.cases["class"].to_numpy() == 1
    index = np.concatenate([np.arange(300), np.flatnonzero(repeated)])
    more = make_store(rows[index], table=store.cases.iloc[index])
    torch.testing.assert_close(project(store, "head_input").axes, project(more, "head_input").axes, atol=1e-5, rtol=0)


def test_a_stored_layer_is_projected_in_pieces(
    make_store: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than are read at once: never a whole layer in memory, and the same numbers to the last bit."""
    import zarr

    memory = make_store(cloud(36_000, 16, classes=3), classes=3)
    memory.save(tmp_path / "rows.zarr")
    stored, expected, reads = open_features(tmp_path / "rows.zarr"), project(memory, "head_input"), []
    take = zarr.Array.__getitem__

    def counted(array: zarr.Array, key: Any) -> Any:
        reads.append(len(values := take(array, key)))  # type: ignore[arg-type]
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    projection = project(stored, "head_input")
    assert reads == [16_384, *[16_384, 16_384, 3_232] * 2]  # the width, the fit, the coordinates
    torch.testing.assert_close(projection.coordinates[0], expected.coordinates[0], rtol=0, atol=0)
    torch.testing.assert_close(projection.explained, expected.explained, rtol=0, atol=0)
    assert [len(piece) for piece in stored.batches("head_input", 10_000)] == [10_000] * 3 + [6_000]


def test_streamed_stages_are_those_in_another_order(make_store: Callable[..., Any], tmp_path: Path) -> None:
    data, turn = cloud(600, 5, classes=2), torch.linalg.qr(cloud(5, 5, seed=3))[0]
    first, order = make_store(data, classes=2), torch.randperm(600, generator=torch.Generator().manual_seed(0))
    table = first.cases.iloc[order.numpy()].reset_index(drop=True)
    make_store((data @ turn)[order], classes=2, table=table).save(tmp_path / "second.zarr")
    second = open_features(tmp_path / "second.zarr")
    one, two = project([first, second], "head_input", basis="per_stage").coordinates
    torch.testing.assert_close(one - one.mean(0), two - two.mean(0), rtol=0, atol=1e-3)  # a rotation, undone


def test_a_changed_store_is_refused_in_pieces_too(make_store: Callable[..., Any], tmp_path: Path) -> None:
    import zarr

    make_store(cloud(50, 4)).save(tmp_path / "rows.zarr")
    zarr.open_group(str(tmp_path / "rows.zarr"), mode="r+")["layer0/rows"][7, 1] += 1
    with pytest.raises(ResultError, match="not what was written"):
        project(open_features(tmp_path / "rows.zarr"), "head_input")


def test_points_and_round_trip(make_store: Callable[..., Any], tmp_path: Path) -> None:
    stages = [make_store(cloud(60, 4, seed), classes=2) for seed in range(2)]
    result = project(stages, "head_input", standardise=True)
    points = result.points()
    assert list(points.columns) == ["stage", "case", "class", "class_name", "x1", "x2"]
    assert len(points) == 120
    assert points.loc[points["class"] == 1, "class_name"].unique().tolist() == ["RV"]
    again = Projection.load(result.save(tmp_path / "projection.tkr"))
    assert again.points().equals(points)
    raw = project(stages, "head_input")
    deviation = stages[0].rows("head_input").var(0).mean().sqrt()
    torch.testing.assert_close(raw.coordinates[1] / deviation, result.coordinates[1], rtol=1e-4, atol=1e-5)


def test_wrong_calls(make_store: Callable[..., Any]) -> None:
    store, other = make_store(cloud(50, 4)), make_store(cloud(50, 5))
    with pytest.raises(LayerError, match="head_input"):
        project(store, "head")
    with pytest.raises(ResultError, match=r"\[4, 5\]"):
        project([store, other], "head_input")
    with pytest.raises(ConfigError, match="tsnee"):
        project(store, "head_input", method="tsnee")
    with pytest.raises(ConfigError, match="neighbours"):
        project(store, "head_input", neighbours=3)
    with pytest.raises(ResultError, match="two classes"):
        project(store, "head_input", method="lda")
    with pytest.raises(ResultError, match="5 components"):
        project(store, "head_input", components=5)
    with pytest.raises(ResultError, match="no features"):
        project([], "head_input")
    with pytest.raises(ResultError, match="too few"):
        project(make_store(cloud(1, 4)), "head_input")
    store.rows("head_input")[3, 2] = torch.nan
    with pytest.raises(DataError, match="row 3"):
        project(store, "head_input")
    with pytest.raises(DataError, match="NaN"):
        principal_plane(StreamingMoments(store.rows("head_input").shape[1]).update(store.rows("head_input")))
