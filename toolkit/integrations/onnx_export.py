"""`export_onnx`: a network with named layers as further outputs, in ONNX, checked against onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ResultError
from toolkit.features.capture import capture
from toolkit.features.logits import find_logits
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.files import replacing
from toolkit.inference.layers import trial_image
from toolkit.inference.network import Predictor


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    layers: str | Sequence[str] = (),
    *,
    example: Any = None,
    aliases: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Write a network in evaluation mode as ONNX: input `image`, outputs `logits` and each layer under its name.

    The batch may have any size, the spatial size is that of the example. Where onnxruntime is installed the file is run
    on two other images and compared with the network before it takes its place.

    Args:
        model: any network that gives logits (B, K, *S).
        path: the `.onnx` file.
        layers: names, globs or aliases of `toolkit.layers` whose activations become outputs; none = the logits only.
        example: an input of the size to export for; None = a usual size for the network's first convolution.
        aliases: overrides of layer aliases.
        tolerance: largest difference to the network, as a share of each output's largest value.

    Raises:
        ConfigError: the packages `onnx` and `onnxscript` are missing.
        LayerError: a layer that does not exist.
        ResultError: onnxruntime computes something else from the file.

    Example:
        >>> file = tk.export_onnx(model, "model.onnx", layers="bottleneck", example=image)
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {' and '.join(missing)}.", fix="pip install onnx onnxscript onnxruntime")
    network = unwrap(model)
    image = trial_image(Predictor(network), example)
    whole = _WithLayers(network, [layers] if isinstance(layers, str) else list(layers), dict(aliases or {}))
    with untouched(network), torch.no_grad():
        whole.eval()
        whole(image)  # fixes the order of the outputs
        with replacing(path, parents=True) as temporary:
            with _quiet():
                torch.onnx.export(
                    whole,
                    (torch.cat([image, image]),),  # a batch of one would be taken for a constant
                    str(temporary),
                    dynamo=True,
                    verbose=False,
                    external_data=False,
                    input_names=["image"],
                    output_names=["logits", *whole.names],
                    dynamic_shapes={"image": {0: torch.export.Dim.DYNAMIC}},
                )
            if importlib.util.find_spec("onnxruntime") is not None:
                _check(temporary, whole, image, tolerance)
    return Path(path)


class _WithLayers(nn.Module):
    """The network with the wanted layers behind its logits."""

    def __init__(self, model: nn.Module, layers: list[str], aliases: dict[str, str]) -> None:
        super().__init__()
        self.model, self.layers, self.aliases = model, layers, aliases
        self.names: list[str] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with capture(self.model, self.layers, aliases=self.aliases) as tape:
            logits = find_logits(self.model(image), image)
        self.names = list(tape)
        return (logits, *tape.values())


def _check(path: Path, whole: _WithLayers, image: Tensor, tolerance: float) -> None:
    import onnxruntime

    images = torch.randn(2, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    computed = session.run(None, {"image": images.numpy()})
    expected = [value.cpu().numpy() for value in whole(images.to(image.device))]
    for name, ours, theirs in zip(["logits", *whole.names], expected, computed, strict=True):
        difference = float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-12))
        if not difference <= tolerance:
            raise ResultError(
                f"onnxruntime computes another {name!r}: the largest difference is {difference:.2g} of its largest value.",
                where=path,
                fix="Export in float32 (model.float()), or pass a larger tolerance if that is meant.",
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that it does not need, and of the mode of our wrapper."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
