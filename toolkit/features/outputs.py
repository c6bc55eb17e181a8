"""Running a network and finding the tensor that counts among what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError, ToolkitError
from toolkit.features.modules import unwrap


def forward(network: nn.Module, image: Tensor) -> Any:
    """What the network returns for a batch (B, C, *S).

    A network in double or half precision gets the image in its own.

    Raises:
        DataError: the network itself fails on this input; says with which words, and on which size.
    """
    with failure_explained(network, image):
        return unwrap(network)(in_own_precision(network, image))


def in_own_precision(network: nn.Module, image: Tensor) -> Tensor:
    """The image in the precision of the network's first floating-point parameter."""
    parameters = getattr(unwrap(network), "parameters", tuple)  # a plain function has none
    kinds = (parameter.dtype for parameter in parameters())
    return image.to(next((kind for kind in kinds if kind.is_floating_point), image.dtype))


@contextlib.contextmanager
def failure_explained(network: nn.Module, image: Tensor) -> Iterator[None]:
    """Turn an exception of the network itself into a DataError that says on which input it happened."""
    try:
        yield
    except (ToolkitError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError) as error:
        fix = (
            "Call the network on this input yourself. Often the size is at fault: a side that the network cannot "
            "halve as often as it wants, or that leaves one voxel for an instance norm at the bottom."
        )
        if isinstance(error, TypeError) and "forward() missing" in str(error):
            fix = "A network is called with the image alone: wrap yours in a module that holds its other inputs."
        raise DataError(
            f"The network failed on an input of shape {tuple(image.shape)}: {type(error).__name__}: {error}",
            where=type(unwrap(network)).__name__,
            fix=fix,
        ) from error


def logits_of(network: nn.Module, image: Tensor) -> Tensor:
    """The main output (B, K, *S) for a batch, in single precision: sums of many half-precision logits would be coarse.

    Raises:
        DataError: the network fails on this input.
        LayerError: it returns no floating-point tensor.
    """
    return main_output(forward(network, image), image).float()


def main_output(output: Any, image: Tensor | None = None) -> Tensor:
    """The tensor that counts in a list, tuple or dict of outputs: the one of the highest resolution, the first of equals.

    Args:
        output: what a network returned.
        image: its input (B, C, *S). An output with one axis more is a stack of equally large outputs, as deep
            supervision gives in training mode (MONAI's DynUNet: (B, n, K, *S)); the first of the stack counts.

    Raises:
        LayerError: no floating-point tensor anywhere in the output.
    """
    tensors = _tensors(output)
    if not tensors:
        raise LayerError(
            f"The network returned {type(output).__name__} without a floating-point tensor.",
            fix="Its logits must be a tensor, or be found in a list, tuple, dict or dataclass.",
        )
    chosen = max(tensors, key=lambda t: t.shape[2:].numel() if t.ndim > 2 else 0)
    if image is None or chosen.ndim != image.ndim + 1:
        return chosen
    batch_first = chosen.shape[0] == image.shape[0]
    return chosen[:, 0] if batch_first else chosen[0]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = output.values()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif not isinstance(output, (list, tuple)):
        return []
    return [tensor for item in output for tensor in _tensors(item)]
