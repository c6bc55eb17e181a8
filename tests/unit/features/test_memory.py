"""Memory is said before it is taken, the batch follows it, and what cannot fit is refused with a remedy."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import toolkit as tk
from toolkit.features import memory

IMAGES = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 2, 1)).eval()


EACH = (10 + 10 + 2) * 64 * 64 * 4  # bytes of the three outputs of one image


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(size))


def test_the_activations_of_one_image_are_counted() -> None:
    assert memory.activation_bytes(net(), IMAGES[:1]) == pytest.approx(EACH)
    table = tk.layers(net(), IMAGES[:1]).set_index("name")["mb"]
    assert table.sum() * 1e6 == pytest.approx(EACH, abs=3)


def test_enough_memory_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, EACH * 2 * 8 * 4 + 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.grad_cam(net(), IMAGES, "0", 1)


def test_a_quarter_of_what_is_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, EACH * 2 * 8 * 2)
    with pytest.warns(
        tk.ToolkitWarning, match=r"grad_cam needs about 0\.00 GB an image of size \(64, 64\), at most 8 at once"
    ):
        tk.grad_cam(net(), IMAGES, "0", 1)


def test_the_batch_follows_the_memory_and_the_maps_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen, model = tk.grad_cam(net(), IMAGES, "0", 1), [], net()
    model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    with_free(monkeypatch, EACH * 2 * 3)
    with pytest.warns(tk.ToolkitWarning, match="2 instead of 6 at once"):
        maps = tk.grad_cam(model, IMAGES, "0", 1, batch_size=6)
    assert max(seen) == 2
    torch.testing.assert_close(maps["0"], whole["0"])


def test_what_cannot_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_free(monkeypatch, EACH * 2)
    for call in (
        lambda: tk.grad_cam(net(), IMAGES, "0", 1),
        lambda: tk.attribute(net(), IMAGES, "saliency", 1),
        lambda: tk.extract(net(), IMAGES, "0", pool="global", out=tmp_path / "f.zarr"),
    ):
        with pytest.raises(tk.ConfigError, match="are free") as error:
            call()
        assert "smaller" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_free_memory_is_a_sane_number() -> None:
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**62
