"""`predict`: labels, probabilities or logits of one image, whatever form it comes in."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.case import Case
from toolkit.data.normalise import DEFAULT
from toolkit.errors import ConfigError, DataError, choose
from toolkit.features.modules import device_of, dims_and_channels
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import as_batches, files_of, read_items
from toolkit.inference.memory import Passes, defaults_of
from toolkit.inference.network import Predictor
from toolkit.inference.volumes import same_size, stack

OUTPUTS = ("labels", "probabilities", "logits")


def predict(
    model: nn.Module,
    image: Any,
    *,
    output: str = "labels",
    batch_size: int = 8,
    normalisation: str = DEFAULT,
    **passes: Unpack[Passes],
) -> Tensor:
    """Segment one image, or a stack of slices with a 2D network, as every call that takes a model runs it.

    The image is padded on both ends with each channel's minimum to what the network takes, cut into windows where it
    exceeds the network's patch, and the result lies on the image's own grid. The network is given back as it was.

    Args:
        model: any network that gives logits (B, K, *S).
        image: a case; an array or tensor (C, *S), (B, C, *S), or without channel axis (*S) or (slices, *S) for a
            one-channel network, normalised as in training; a path to a NIfTI volume or a picture, which is
            normalised here (several NIfTI paths: one a channel); or anything else that `toolkit.extract` takes.
        output: "labels", "probabilities" (softmax over the classes, or the sigmoid of each output) or "logits".
        batch_size: slices or windows in one pass.
        normalisation: rule for files, see `toolkit.data.normalise`.
        patch_size: window; None = the one that the network was trained with here, if any; "whole" = one pass.
        overlap: of neighbouring windows, as a share of their side.
        divisor: what the sides must be multiples of; None = the network's attribute, else found by trying.
        precision: "bf16" or "16" for autocast; None = the network's own.
        select: where the logits are in the network's output, as a name, an index or a function; None = the rule of
            `toolkit.features.logits.find_logits`.
        activation: "softmax" (exclusive classes) or "sigmoid" (each output by itself, or one foreground output);
            None = what the network was trained for here, else softmax of several outputs.

    Returns:
        On the CPU: labels (*S), uint8 (wider above 256 classes), or masks (K, *S) uint8 of overlapping regions; else
        float32 (K, *S); with a first axis B (or slices) if the input had one. NIfTI volumes come in the axes closest
        to right-anterior-superior (slices first for a 2D network).

    Raises:
        DataError: an image that does not fit the network, a file that cannot be read, or logits that hold NaN.
        ConfigError: an unknown setting, or one output that nothing says to be a logit.
        LayerError: logits that cannot be told from other outputs.

    Example:
        >>> tk.predict(model, image, output="probabilities").shape
        torch.Size([4, 32, 32])
    """
    choose("output", output, OUTPUTS, where="predict(output=...)")
    predictor = Predictor(model, **passes)
    by_files = output == "labels" and defaults_of(predictor.model).files is not None
    if by_files and (paths := files_of(image)[0] if isinstance(image, Case) else _paths_of(image)):
        return torch.from_numpy(np.ascontiguousarray(_labels_of_files(predictor, paths)))
    items, several = _opened(predictor.model, image, normalisation)
    parts = []
    with untouched(predictor.model, mode="eval"), torch.inference_mode():
        limit = functools.partial(predictor.affordable, "predict", windows=batch_size)
        for batch in as_batches(items, predictor.model, batch_size=batch_size, limit=limit):
            logits = predictor.logits(batch.image, at_once=batch_size)
            if output == "labels":
                logits = predictor.activation.labels(logits, batch.classes)
            elif output == "probabilities":
                logits = predictor.activation.probabilities(logits)
            parts.append(logits.cpu())
    if len({part.shape[1:] for part in parts}) != 1:
        what = "There is no image to predict." if not parts else "The images have several sizes."
        raise DataError(what, where="predict(image=...)", fix="Call it once per size.")
    result = torch.cat(parts).clone()
    return result if several else result[0]


def _opened(network: nn.Module, image: Any, normalisation: str) -> tuple[Any, bool]:
    """What `as_batches` reads, and whether the input is a batch or stack of images."""
    dims, channels = dims_and_channels(network)
    if paths := _paths_of(image):
        files = defaults_of(network).files
        read: Any = files.items(paths) if files else read_items(paths, dims, channels, normalisation=normalisation)
        items = list(read)
        first = items[0]
        if isinstance(first, Case) or first.get("position") is not None:
            return items, first.position is not None if isinstance(first, Case) else True
        return items, _is_stack(first["image"], dims, channels)
    if isinstance(image, (Tensor, np.ndarray)):
        return image, _is_stack(image, dims, channels)
    return image, isinstance(image, Iterable) and not hasattr(image, "keys")


def _is_stack(image: Tensor | np.ndarray, dims: int | None, channels: int | None) -> bool:
    """Whether an array is a batch of images, or a stack of slices of one channel."""
    spatial = image.ndim - 2 if dims is None else dims
    stacked = image.ndim == spatial + 1 and channels == 1 and image.shape[0] != 1
    return stacked or image.ndim > spatial + 1


def _paths_of(image: Any) -> list[str]:
    """The files of one image: its path, or one path a channel; none if it is something else."""
    paths = [image] if isinstance(image, (str, os.PathLike)) else image
    files = isinstance(paths, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in paths)
    return [os.fspath(path) for path in paths] if files else []


def _labels_of_files(predictor: Predictor, paths: Sequence[str]) -> np.ndarray:
    """Labels on the files' own grid by the framework that reads them, which has its own settings."""
    if predictor.given:
        what = f"Files are predicted as this network's framework does; {', '.join(predictor.given)} has no effect."
        raise ConfigError(what, where="predict or evaluate", fix="Leave it out.")
    with untouched(predictor.model, mode="eval") as model:
        return defaults_of(model).files.predict(model, paths)  # type: ignore[union-attr]


def predict_volumes(
    predictor: Predictor, volumes: Sequence[Sequence[Case]], *, batch_size: int = 16
) -> Iterator[np.ndarray]:
    """Labels of each volume in turn (masks with a first axis of regions, if they may overlap).

    Consecutive slices of one size share a pass, across volumes too.
    """
    if defaults_of(predictor.model).files is not None:
        yield from (_labels_of_files(predictor, files_of(cases[0])[0]) for cases in volumes)
        return
    waiting = iter(volumes)
    due = next(waiting, None)
    maps: list[np.ndarray] = []
    device, size = device_of(predictor.model), None
    for cases in same_size([case for volume in volumes for case in volume], batch_size):
        image = torch.from_numpy(np.stack([case.image_array() for case in cases])).to(device)
        if image.shape[1:] != size:
            size = image.shape[1:]
            predictor.affordable("evaluate", image[:1], min(batch_size, sum(map(len, volumes))))
        with untouched(predictor.model, mode="eval"), torch.inference_mode():
            logits = predictor.logits(image, at_once=len(cases))
            predictor.activation.check(logits.shape[1], cases[0].classes)
            maps += list(predictor.activation.labels(logits, cases[0].classes).cpu().numpy())
        while due is not None and len(maps) >= len(due):
            yield stack(maps[: len(due)], due, regions=predictor.activation.overlapping(logits.shape[1]))
            maps = maps[len(due) :]
            due = next(waiting, None)
