"""Channel similarity against numpy, golden numbers and hand-made channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import golden_case

from toolkit.errors import ConfigError, LayerError, ResultError
from toolkit.measure.similarity import ChannelSimilarity, channel_similarity


def test_golden() -> None:
    numbers = golden_case("selfreg", "channel_similarity").numbers()
    result = channel_similarity(torch.from_numpy(numbers["channel_similarity__x"]))
    expected = numbers["channel_similarity__matrix"]
    np.testing.assert_allclose(result.matrix, expected, atol=1e-6 * abs(expected).max())
    assert result.redundancy == pytest.approx(float(numbers["channel_similarity__redundancy"]), rel=1e-6)
    assert torch.equal(result.panel(5), result.matrix[:5, :5].clamp(0, 1))


@pytest.mark.parametrize("shape", [(3, 8, 6, 7), (2, 5, 4, 3, 6)])
def test_against_numpy(shape: tuple[int, ...], make_image_store: Callable[..., Any]) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    flat = maps.flatten(2).double().numpy()
    pearson = np.mean([np.corrcoef(image) for image in flat], axis=0)
    units = flat / np.linalg.norm(flat, axis=2, keepdims=True)
    cosine = units @ units.transpose(0, 2, 1)
    off = ~np.eye(shape[1], dtype=bool)
    for source in (maps, make_image_store(bottleneck=maps)):
        layer = "bottleneck" if source is not maps else ""
        result = channel_similarity(source, layer, form="pearson")
        np.testing.assert_allclose(result.matrix, pearson, atol=1e-12)
        np.testing.assert_allclose(result.matrices["cosine"], cosine.mean(0), atol=1e-12)
        np.testing.assert_allclose(result.matrices["absolute"], abs(cosine).mean(0), atol=1e-12)
        assert result.redundancy == pytest.approx(np.mean([c[off].mean() for c in map(np.corrcoef, flat)]))
        half = shape[1] // 2
        expected = np.mean([c[:half, :half][off[:half, :half]].mean() for c in cosine])
        table = result.table().set_index(["form", "part"])
        assert table.loc[("cosine", "first half"), "redundancy"] == pytest.approx(expected)


def test_dead_and_constant_channels() -> None:
    maps = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = 0  # dead in both images
    maps[0, 2] = 0  # dead in the first image only
    maps[:, 4] = 3.0  # constant
    result = channel_similarity(maps)
    assert result.channels.tolist() == [0, 2, 3, 4]
    assert result.dead.tolist() == [1]
    assert result.dead_per_image.tolist() == [2, 1]
    one = torch.nn.functional.cosine_similarity(maps[1, 0].flatten(), maps[1, 2].flatten(), dim=0)
    assert float(result.matrix[0, 1]) == pytest.approx(float(one), abs=1e-6)
    assert result.matrices["pearson"][3].isnan().all()
    first_image = [0, 3, 4]
    vectors = maps[0, first_image].flatten(1)
    expected = torch.corrcoef(vectors[:2])[0, 1]  # the only pair of varying channels in the first image
    assert float(result.scores["pearson"]["all"][0]) == pytest.approx(float(expected), abs=1e-6)
    assert result.redundancy == pytest.approx(float(result.scores["cosine"]["all"].mean()))
    assert result.panel(2, "second half").shape == (2, 2)


def test_invariances() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 6, 5, 5, generator=generator)
    base = channel_similarity(maps)
    scaled = channel_similarity(maps * torch.rand(1, 6, 1, 1, generator=generator).add(0.1))
    torch.testing.assert_close(base.matrix, scaled.matrix, atol=1e-6, rtol=0)
    assert torch.equal(base.matrix.diagonal(), torch.ones(6, dtype=torch.float64))
    mirrored = channel_similarity(maps.flip(-1))
    torch.testing.assert_close(base.matrix, mirrored.matrix, atol=1e-12, rtol=0)
    copies = channel_similarity(maps[:, :1].expand(2, 4, 5, 5))
    assert copies.redundancy == pytest.approx(1.0)


def test_saved_and_read_back(tmp_path: Path) -> None:
    result = channel_similarity(torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    again = ChannelSimilarity.load(result.save(tmp_path / "similarity.tkr"))
    assert torch.equal(again.matrix, result.matrix)
    assert again.table().equals(result.table())


def test_wrong_calls(make_image_store: Callable[..., Any]) -> None:
    store = make_image_store(bottleneck=torch.randn(2, 3, 4, 4))
    with pytest.raises(LayerError, match="bottleneck"):
        channel_similarity(store, "botleneck")
    with pytest.raises(ConfigError, match="spearman"):
        channel_similarity(store, "bottleneck", form="spearman")
    with pytest.raises(ResultError, match="0 of 3 channels"):
        channel_similarity(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ResultError, match="NaN"):
        channel_similarity(torch.full((2, 3, 4, 4), torch.nan))
    with pytest.raises(ResultError, match="shape"):
        channel_similarity(torch.zeros(4, 3))
    with pytest.raises(ResultError, match="moments=True"):
        channel_similarity(make_image_store(moments=False, bottleneck=torch.ones(2, 3, 4, 4)), "bottleneck")
