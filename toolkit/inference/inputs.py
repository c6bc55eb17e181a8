"""Whatever the user has (cases, arrays, paths, dicts, a loader) as batches of images of one size."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.dataset import unpacked
from toolkit.data.first_reading import check as check_first_reading
from toolkit.data.geometry import Geometry
from toolkit.data.normalise import DEFAULT, normalise
from toolkit.data.reading import dims_of
from toolkit.data.rows import stem_of
from toolkit.data.source import decoding
from toolkit.data.table import cases_of_rows
from toolkit.errors import DataError
from toolkit.features.modules import device_of, dims_and_channels, unwrap
from toolkit.inference.memory import Files, defaults_of

_PER_ITEM = ("id", "site", "subject", "volume", "spacing", "affine", "geometry", "position")
_LISTS = ("ids", "sites", "subjects", "volumes", "spacing", "affine", "geometries", "positions")


@dataclasses.dataclass
class InputBatch:
    """Images of one size, with what is known about each of them."""

    image: Tensor  # (B, C, *S) float32 on the network's device
    label: Tensor | None  # (B, 1, *S) int64, or None if any image of the batch has none
    ids: list[str]  # names of the images, unique within one call
    sites: list[str]  # domain of each image, "" if unknown
    subjects: list[str]  # person of each image (its volume if unknown)
    volumes: list[str]  # stack of each image (its id if unknown)
    spacing: list[tuple[float, ...] | None]  # mm per axis
    affine: list[np.ndarray | None]  # 4x4
    geometries: list[Geometry | None]  # how to write a result in the file's own axes
    positions: list[int | None]  # index of the slice in its volume
    classes: dict[int, str] | None  # class names by index

    def __len__(self) -> int:
        return len(self.ids)

    def label_of(self, index: int) -> Tensor | None:
        """(1, 1, *S) label of one image, or None."""
        return None if self.label is None else self.label[index : index + 1]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size."""
        return tuple(self.image.shape[2:])


class Part(list[Any]):
    """Inputs `first`, `first` + 1, ... of a longer list: images without a name are named by their place in that."""

    first = 0


def _one(image: Tensor, label: Tensor | None, id: str, **known: Any) -> InputBatch:
    """A batch of one image (C, *S) with its label (*S) and what is known of it, by the names of `_PER_ITEM`."""
    volume = known.get("volume") or id
    told: list[Any] = [[id], [known.get("site", "")], [known.get("subject") or volume], [volume]]
    told += [*([known.get(name)] for name in _PER_ITEM[4:]), known.get("classes")]
    return InputBatch(image[None], None if label is None else label[None, None], *told)


def as_batches(
    inputs: Any,
    model: nn.Module,
    *,
    batch_size: int = 8,
    label: Any = None,
    limit: Callable[[Tensor, int], int] | None = None,
) -> Iterator[InputBatch]:
    """Iterate over any kind of input in batches; neighbours of one size share a batch.

    Inputs and label are what `toolkit.extract` takes; the network says dims and channels (its first convolution) and the
    device; `limit` says how many images like one (1, C, *S) a batch may hold instead of so many, see
    `Predictor.affordable`.
    """
    network = unwrap(model)
    dims, channels = dims_and_channels(network)
    device = device_of(network)
    waiting: list[InputBatch] = []
    known: dict[Any, int] = {}  # images that a batch may hold, by their size and how many there are

    def batches() -> Iterator[InputBatch]:
        most = len(waiting)
        if limit is not None and waiting:
            key = waiting[0].image.shape, most
            most = known[key] = known.get(key) or limit(joined(waiting[:1], device).image, most)
        for start in range(0, len(waiting), most or 1):
            yield joined(waiting[start : start + most], device)
        waiting.clear()

    for item in _items(inputs, dims, channels, label, files=defaults_of(network).files):
        _check(item, dims, channels)
        alike = waiting and (item.image.shape, item.label is None) == (waiting[0].image.shape, waiting[0].label is None)
        if waiting and (not alike or len(waiting) == batch_size):
            yield from batches()
        waiting.append(item)
    yield from batches()


def _items(
    inputs: Any,
    dims: int | None,
    channels: int | None,
    label: Any,
    index: int = 0,
    *,
    nested: bool = False,
    files: Files | None = None,
) -> Iterator[InputBatch]:
    name = f"image{index:04d}"
    inputs = unpacked(inputs)
    if isinstance(inputs, (Tensor, np.ndarray)):
        yield from _from_array({"image": inputs, "label": label, "id": name}, dims, channels)
    elif isinstance(inputs, (str, os.PathLike)):
        path, marks = os.fspath(inputs), None if label is None else os.fspath(label)
        own = files.items([path], marks) if files is not None else read_items([path], dims, channels, marks)
        yield from _items(own, dims, channels, None, index)
    elif isinstance(inputs, Mapping):
        if "image" not in inputs:
            raise DataError(f"A dict needs the key 'image'; this one has {sorted(map(str, inputs))}.")
        yield from _from_array({"label": label, "id": name, **inputs}, dims, channels)
    elif hasattr(inputs, "image") and hasattr(inputs, "id"):
        if files is None:
            yield _from_case(inputs)
        else:
            yield from _items(files.items(*files_of(inputs)), dims, channels, None, index)
    elif label is None and _is_pair(inputs, dims, nested):
        yield from _from_array(unpacked({"image": inputs[0], "label": inputs[1], "id": name}), dims, channels)
    elif isinstance(inputs, Iterable):
        for position, (one, one_label) in enumerate(_with_labels(inputs, label), getattr(inputs, "first", 0)):
            yield from _items(one, dims, channels, one_label, index + position, nested=True, files=files)
    else:
        fix = "Pass a case, a tensor or array, a path (NIfTI, PNG, NPY), a dict with 'image', or a list of these; "
        fix += "of a task, its cases: task.cases('test')."
        raise DataError(f"An input of type {type(inputs).__name__} is not understood.", fix=fix)


def files_of(case: Any) -> tuple[list[str], str | None]:
    """The image files of a case, one a channel, and its label's, for a network that reads files by itself."""
    reader = getattr(case, "reader", None)
    images: Sequence[Path] = getattr(reader, "images", ())
    if not images or getattr(case, "index", None) is not None:
        what = "This network reads and prepares volume files by itself; this case is not one."
        fix = "Pass the path of the volume, or cases of toolkit.task_from_nnunet(folder)."
        raise DataError(what, where=case.id, fix=fix)
    label = getattr(reader, "label", None)
    return [str(path) for path in images], None if label is None else str(label)


def _is_pair(inputs: Any, dims: int | None, nested: bool) -> bool:
    """Whether two arrays are an image and its label, as data loaders yield them, and not two images.

    Two arrays in a tuple, or as one item of a loader or a list, are a pair. A list of two arrays by itself is one if
    the second holds whole numbers and the first does not.
    """
    several = isinstance(inputs, (list, tuple)) and not isinstance(inputs, Part) and len(inputs) == 2
    if dims is None or not several or not all(isinstance(one, (Tensor, np.ndarray)) for one in inputs):
        return False
    image, label = inputs
    if min(image.ndim, label.ndim) < dims or image.shape[-dims:] != label.shape[-dims:]:
        return False
    return nested or isinstance(inputs, tuple) or (_is_whole(label) and not _is_whole(image))


def _is_whole(array: Tensor | np.ndarray) -> bool:
    values = torch.as_tensor(array)
    return not values.is_floating_point() or bool(torch.equal(values, values.round()))


def _with_labels(inputs: Iterable[Any], labels: Any) -> Iterator[tuple[Any, Any]]:
    """Every input with its label, None if there are none at all."""
    if labels is None:
        yield from ((one, None) for one in inputs)
        return
    if not isinstance(labels, Iterable) or isinstance(labels, (str, os.PathLike)):
        raise DataError("Several inputs need one label each.", fix="Pass label=[...], in the order of the inputs.")
    try:
        yield from zip(inputs, labels, strict=True)
    except ValueError as error:
        if "zip()" not in str(error):
            raise  # of the user's own generator
        what = f"There are not as many labels as inputs ({error})."
        raise DataError(what, fix="Pass one label per input, in the same order.") from error


def _from_case(case: Any) -> InputBatch:
    has_label = case.has_label if hasattr(case, "has_label") else getattr(case, "label", None) is not None
    label = torch.as_tensor(case.label).long() if has_label else None
    known = {name: value for name in (*_PER_ITEM, "classes") if (value := getattr(case, name, None)) is not None}
    return _one(torch.as_tensor(case.image).float(), label, **known)


def _from_array(fields: Mapping[str, Any], dims: int | None, channels: int | None) -> Iterator[InputBatch]:
    """Items of a dict of arrays: one image, or a batch of them with one entry per image in every list."""
    image = _tensor(fields["image"]).float()
    label = None if fields.get("label") is None else _whole(_tensor(fields["label"]), fields)
    if label is not None and label.ndim == 0:
        raise DataError(f"The label is the single number {label.item()}.", fix="Give a label map of the image's size.")
    ids = fields.get("case", fields.get("id"))
    dims, shape = image.ndim - 2 if dims is None else dims, tuple(image.shape)
    if image.ndim == dims:
        image = image[None]
    elif image.ndim == dims + 1 and channels == 1 and image.shape[0] != 1:
        if dims == 2 and shape[2] in (3, 4) and min(shape[:2]) >= 16:  # else H very narrow one-channel images
            fix = "Images are channel-first and this network takes one channel: average the colours, pass (1, H, W)."
            raise DataError(f"An array of shape {shape} looks like a colour picture with its channels last.", fix=fix)
        image = image[:, None]  # a stack of one-channel images
    listed = isinstance(ids, (list, tuple))
    if image.ndim == dims + 1:
        yield _item(image, label, fields, dims, str(ids[0] if listed else ids), None)
        return
    if image.ndim != dims + 2:
        what = f"An image of shape {shape} does not fit a {dims}D network with {channels} input channel(s)."
        raise DataError(what, fix=f"Pass (C, *S) or (B, C, *S) with {dims} spatial axes.")
    if label is not None and len(label) != len(image):
        raise DataError(f"There are {len(image)} images and {len(label)} labels.")
    for i in range(len(image)):
        name = str(ids[i]) if listed else f"{ids}/{i:03d}" if len(image) > 1 else str(ids)
        yield _item(image[i], None if label is None else label[i], fields, dims, name, i)


def _item(
    image: Tensor, label: Tensor | None, fields: Mapping[str, Any], dims: int, name: str, position: int | None
) -> InputBatch:
    if label is not None:
        label = label[0] if label.ndim == dims + 1 and label.shape[0] == 1 else label
    values: dict[str, Any] = {}
    for key in _PER_ITEM[1:]:
        value = fields.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            value = torch.stack(value, 1)  # torch's loader makes a tensor an axis of what is a tuple an image
        if isinstance(value, Tensor) and value.ndim > {"spacing": 1, "affine": 2}.get(key, 0):
            value = list(value.numpy()) if key == "affine" else value.tolist()
        values[key] = value[position] if isinstance(value, list) and position is not None else value
    classes = fields.get("classes")
    values["classes"] = dict(enumerate(classes)) if isinstance(classes, (list, tuple)) else classes
    return _one(image, label, name, **{key: value for key, value in values.items() if value is not None})


def _whole(label: Tensor, fields: Mapping[str, Any]) -> Tensor:
    """The label as integers; fractions would be silently cut to another class, NaN to none."""
    if label.is_floating_point() and not torch.equal(label, label.round()):  # NaN is unequal to itself
        fix = "Labels are integer maps: pass class indices, not probabilities or interpolated values."
        raise DataError("The label holds values that are not whole numbers.", where=str(fields.get("id", "")), fix=fix)
    return label.long()


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise DataError(f"An array of type {array.dtype} is not an image.", fix="Pass numbers.")
    if array.dtype.kind == "u" and array.dtype.itemsize in (2, 4):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


def _check(item: InputBatch, dims: int | None, channels: int | None) -> None:
    shape, name = tuple(item.image.shape[1:]), item.ids[0]
    if dims is not None and len(shape) != dims + 1:
        what = f"An image of shape {shape} does not fit a {dims}D network."
        raise DataError(what, where=name, fix=f"Pass (C, *S) with {dims} spatial axes.")
    if channels is not None and shape[0] != channels:
        what = f"The image has {shape[0]} channels, the network takes {channels}."
        raise DataError(what, where=name, fix="Images are channel-first: (C, *S).")
    if not item.image.numel():
        raise DataError(f"An image of shape {shape} holds no voxel.", where=name, fix="Leave it out.")
    # NaN and infinities survive a sum, which is quicker to look at than every value
    if not math.isfinite(item.image.sum().item()) and not torch.isfinite(item.image).all():
        raise DataError("The image holds NaN or infinite values.", where=name, fix="Clean or normalise it first.")
    if item.label is not None and item.label.shape[2:] != item.image.shape[2:]:
        what = f"The label has the shape {tuple(item.label.shape[2:])}, the image {shape[1:]}."
        raise DataError(what, where=name, fix="Labels are integer maps (*S) on the image's grid.")


def joined(items: list[InputBatch], device: torch.device) -> InputBatch:
    """Batches of one size as one, which has labels if all of them have."""
    labels = [item.label for item in items if item.label is not None]
    with torch.inference_mode(False):  # a caller's inference mode would make tensors that no gradient may use
        image = torch.cat([item.image for item in items]).to(device)
        label = torch.cat(labels).to(device) if len(labels) == len(items) else None
    lists = {name: [one for item in items for one in getattr(item, name)] for name in _LISTS}
    classes = next((item.classes for item in items if item.classes), None)
    return InputBatch(image, label, **lists, classes=classes)


def read_items(
    paths: Sequence[str],
    dims: int | None,
    channels: int | None = None,
    label: str | None = None,
    normalisation: str = DEFAULT,
) -> list[Any]:
    """The images of a file as cases, of a volume one a slice for a 2D network; of a `.npy` array a dict.

    Files are any that a task can be made of, `.npy` arrays (*S) or (C, *S), or several NIfTI files, one a channel.
    """
    files, marks = tuple(Path(path) for path in paths), None if label is None else Path(label)
    if files[0].suffix.lower() == ".npy":
        check_first_reading([files[0]])
        with decoding(files[0], "an array that can be read"):
            array = np.load(files[0], allow_pickle=False)
            classes = None if marks is None else np.load(marks, allow_pickle=False)
        image = normalise(array if array.ndim > 2 else array[None], normalisation)
        return [{"image": image, "label": classes, "id": files[0].stem}]
    row: dict[str, Any] = {"image": files if len(files) > 1 else files[0], "label": marks, "split": "test"}
    row |= {"case": stem_of(files[0]), "site": "", "subject": ""}
    channels = channels if channels in (1, 3) else None
    return cases_of_rows([row], dims or dims_of(row), channels, {"normalisation": normalisation}, {})[0]
