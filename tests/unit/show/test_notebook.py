"""The notebook's pair of pictures: the static one is shown, the interactive one is returned."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest
import torch

import toolkit as tk
from toolkit.show.notebook import both, provenance_line


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    displayed: list[Any] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return displayed


@pytest.fixture
def result() -> Any:
    torch.manual_seed(0)
    model = tk.unet(1, 3, channels=(4, 8))
    return tk.grad_cam(model, torch.randn(1, 1, 16, 16), ["bottleneck"], tk.ClassSum(1))


def test_both_shows_a_picture_and_returns_the_figure(shown: list[Any], result: Any) -> None:
    figure = both(result, width=300)
    (picture,) = shown
    assert picture.data[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.width <= 300
    assert isinstance(figure, go.Figure)


def test_provenance_is_one_escaped_line(shown: list[Any], result: Any) -> None:
    provenance_line(result)
    (line,) = shown
    assert "bottleneck" in line.data
    assert "<script" not in line.data


def test_an_object_without_provenance_is_refused(shown: list[Any]) -> None:
    with pytest.raises(tk.ResultError, match="no provenance"):
        provenance_line(3)
    assert not shown
