"""`predict`: labels, probabilities or logits of one image, whatever form it comes in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.images import PictureSource
from toolkit.data.normalise import DEFAULT
from toolkit.data.volumes import SUFFIXES, NiftiSource
from toolkit.errors import ConfigError, DataError
from toolkit.features.inputs import device_of, dims_and_channels
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.training.window import Select, autocast, labels_of, logits_of, window_logits

OUTPUTS = ("labels", "probabilities", "logits")


def predict(
    model: nn.Module,
    image: Any,
    *,
    output: str = "labels",
    patch_size: Sequence[int] | None = None,
    batch_size: int = 8,
    precision: str = "32",
    normalisation: str = DEFAULT,
    select: Select = logits_of,
) -> Tensor:
    """Segment one image, or a stack of slices with a 2D network, with a sliding window where that is needed.

    The image is padded with its minimum to what the network takes and the result cropped back. The network is given
    back as it was.

    Args:
        model: any network that gives logits (B, K, *S).
        image: a case; an array or tensor (C, *S), (B, C, *S), or without channel axis (*S) or (slices, *S) for a
            one-channel network, normalised as in training; or a path to a NIfTI volume or a picture, which is
            normalised here (several NIfTI paths: one a channel).
        output: "labels", "probabilities" (softmax over the classes) or "logits".
        patch_size: window of the sliding window; None = the whole image in one pass.
        batch_size: slices or windows in one pass.
        precision: "32", or "bf16"/"16" for autocast.
        normalisation: rule for files, see `toolkit.data.normalise`.
        select: finds the logits in the network's output.

    Returns:
        On the CPU: labels uint8 (*S), or float32 (K, *S); with a first axis B (or slices) if the input had one.
        NIfTI volumes come in the axes closest to right-anterior-superior (slices first for a 2D network).

    Raises:
        DataError: an image that does not fit the network, or a file that cannot be read.
        ConfigError: unknown `output`.
    """
    if output not in OUTPUTS:
        raise ConfigError(f"output cannot be {output!r}.", fix=f"One of {', '.join(OUTPUTS)}.")
    network = unwrap(model)
    batch, several = image_batch(network, image, normalisation)
    device = device_of(network)
    parts = []
    with untouched(network, mode="eval"), torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(batch), batch_size):
            piece = batch[start : start + batch_size].to(device)
            logits = window_logits(network, piece, patch_size, select=select, windows_at_once=batch_size)
            parts.append(_as_output(logits, output).cpu())
    result = torch.cat(parts).clone()
    return result if several else result[0]


def image_batch(network: nn.Module, image: Any, normalisation: str = DEFAULT) -> tuple[Tensor, bool]:
    """An input as a float batch (B, C, *S), and whether it held several images.

    Raises:
        DataError: it does not fit the network.
    """
    dims, channels = dims_and_channels(network)
    if hasattr(image, "image_array"):
        array = torch.from_numpy(np.array(image.image_array()))
    elif _is_path(image) or (isinstance(image, (list, tuple)) and image and all(map(_is_path, image))):
        paths = [Path(image)] if _is_path(image) else [Path(path) for path in image]
        array = _read(paths, dims or 3, channels, normalisation)
    elif isinstance(image, (Tensor, np.ndarray)):
        array = torch.as_tensor(image).detach()
    else:
        raise DataError(
            f"An image of type {type(image).__name__} is not understood.",
            fix="Pass a case, an array or tensor, or a path.",
        )
    array = array.float()
    if not torch.isfinite(array).all():
        raise DataError("The image holds NaN or infinite values.", fix="Clean or normalise it first.")
    return _with_axes(array, dims if dims is not None else array.ndim - 2, channels)


def _with_axes(array: Tensor, dims: int, channels: int | None) -> tuple[Tensor, bool]:
    shape = tuple(array.shape)
    if array.ndim == dims and channels in (1, None):
        return array[None, None], False
    if array.ndim == dims + 1 and channels in (shape[0], None):
        return array[None], False
    if array.ndim == dims + 1 and channels == 1:
        return array[:, None], True
    if array.ndim == dims + 2 and channels in (shape[1], None):
        return array, True
    raise DataError(
        f"An image of shape {shape} does not fit a {dims}D network with {channels} input channel(s).",
        fix="Images are channel-first: (C, *S), or (B, C, *S) for several.",
    )


def _read(paths: list[Path], dims: int, channels: int | None, normalisation: str) -> Tensor:
    if all(path.name.lower().endswith(SUFFIXES) for path in paths):
        volume = NiftiSource(images=tuple(paths), dims=dims, normalisation=normalisation).pair().image
        array = torch.from_numpy(np.array(volume))
        return array if dims == 3 else array.transpose(0, 1)
    if len(paths) > 1 or dims == 3:
        raise DataError("Several files, or a 3D network, need NIfTI.", where=", ".join(map(str, paths)))
    source = PictureSource(image=paths[0], channels=channels, normalisation=normalisation)
    return torch.from_numpy(np.array(source.pair().image))


def _as_output(logits: Tensor, output: str) -> Tensor:
    if output == "labels":
        return labels_of(logits)
    if output == "logits":
        return logits.float()
    return logits.float().softmax(1) if logits.shape[1] > 1 else logits.float().sigmoid()


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))
