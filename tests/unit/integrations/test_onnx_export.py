"""What onnxruntime computes from an exported network is what the network computes, at every named layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from toolkit.errors import ConfigError, LayerError, ResultError
from toolkit.integrations.onnx_export import export_onnx


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.5), nn.Conv2d(4, 3, 1)
    )


@pytest.mark.slow
def test_layers_are_outputs_and_batches_may_have_any_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network().train()
    path = export_onnx(
        model, tmp_path / "deep" / "net.onnx", layers=["0", "head_input"], example=torch.zeros(1, 1, 12, 16)
    )
    assert model.training
    assert capfd.readouterr().out == ""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "0", "head_input"]
    images = torch.randn(5, 1, 12, 16)
    logits, first, head_input = session.run(None, {"image": images.numpy()})
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(first, model[0](images), atol=1e-5)
        np.testing.assert_allclose(head_input, model[:4](images), atol=1e-5)
        np.testing.assert_allclose(logits, model(images), atol=1e-5)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LayerError, match="encoder"):
        export_onnx(network(), tmp_path / "net.onnx", layers="encoder.1")
    run = onnxruntime.InferenceSession.run

    def wrong(self: Any, *values: Any) -> list[np.ndarray]:
        return [value + 1 for value in run(self, *values)]

    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime.InferenceSession, "run", wrong)
        with pytest.raises(ResultError, match="onnxruntime computes another 'logits'"):
            export_onnx(network(), tmp_path / "net.onnx", example=torch.zeros(1, 1, 8, 8))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install onnx"):
        export_onnx(network(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
