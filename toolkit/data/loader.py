"""`Loader`: batches that depend on the seed and the step alone, so there is no state to save and nothing to resume."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.augment import Augmentation, apply
from toolkit.data.case import Case
from toolkit.data.randomness import keyed_random
from toolkit.errors import DataError
from toolkit.process_state import guarded_random_state, seed_all

Transform = Callable[..., Any]
_NOISE = 2**20  # places in the sequence of noise where an image's window may begin


@dataclasses.dataclass(eq=False)
class Loader:
    """Batches `{"image": (B, C, *P) float32, "label": (B, 1, *P) int64, "case": ids}`.

    `batch(step)` is a pure function of the loader's settings and `step`: epoch `step // len(loader)` has its own
    permutation of the cases, and every place in it its own crop and augmentation. An epoch has full batches only;
    a set smaller than a batch is repeated (with other crops and augmentations) until the batch is full. Iterating
    gives one epoch; a second `for` gives the next epoch, so no two epochs are alike.

    Images smaller than the patch are padded with their minimum (label 0); larger ones are cropped at random, a
    share `foreground` of the crops around a voxel of a random class of the case.

    Its settings are those of `Task.loader`.
    """

    cases: Sequence[Case]  # with labels
    channels: int  # of the images
    batch_size: int
    patch_size: tuple[int, ...]  # of every sample
    seed: int  # base of all random numbers
    augmentation: Augmentation | None  # of a batch
    transform: Transform | None  # of each sample, see `transformed`; its random numbers are keyed like all others
    flips: tuple[int, ...]  # axes that may be mirrored
    shuffle: bool  # False keeps the order of `cases` in every epoch
    foreground: float  # share of crops that are placed on foreground
    limits: tuple[float, float] | None  # that augmented images are clipped to, for normalisations with a fixed range
    next_epoch: int = 0  # the one that the next `for` gives

    def __post_init__(self) -> None:
        self.ahead = self.transform is None  # threads may prepare batches in any order; transforms share generators
        self._order: tuple[int, np.ndarray] | None = None
        self._points: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return max(1, len(self.cases) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        return self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The batches of one epoch, counted from 0."""
        return (self.batch(step) for step in range(epoch * len(self), (epoch + 1) * len(self)))

    def batch(self, step: int) -> dict[str, Any]:
        """Batch number `step`, the same whenever and wherever it is asked for.

        Raises:
            DataError: a case's file is damaged, has no label or has another number of channels.
        """
        batch = self.finish(self.draw(step))
        if self.transform is None:
            return batch
        first = int(step) * self.batch_size
        keys = (keyed_random("transform", self.seed, first + row) for row in range(len(batch["case"])))
        return transformed(self.transform, batch, [int(key.integers(2**32)) for key in keys])

    def draw(self, step: int) -> dict[str, Any]:
        """The first half of `batch(step)`, cheap and on the CPU: crops with their margins, and what was drawn for them.

        Every entry has one row a sample, so that a share of a batch is finished like the whole, on any device.
        """
        epoch, place = divmod(int(step), len(self))
        first = place * self.batch_size
        cases = [self.cases[index] for index in self._permutation(epoch)[first : first + self.batch_size]]
        size = tuple(side + 2 * extra for side, extra in zip(self.patch_size, self._margin, strict=True))
        image = np.empty((len(cases), self.channels, *size), dtype=np.float32)
        label = np.zeros((len(cases), 1, *size), dtype=np.uint8)
        numbers, starts, fresh = [], [], []
        for row, case in enumerate(cases):
            random = keyed_random("sample", self.seed, epoch, first + row)
            self._fill(case, image[row], label[row, 0], random)
            if self.augmentation:
                numbers.append(random.random(self.augmentation.drawn(len(size))))
                if self.augmentation.noise:
                    starts.append(int(random.integers(_NOISE)))
                    sign = 1.0 if random.random() < 0.5 else -1.0
                    if math.prod(self._noise_shape) <= _NOISE // 2:
                        numbers[-1][-1] *= sign  # of the deviation, which is the same as of the noise
                    else:
                        fresh.append(random.standard_normal(self._noise_shape, dtype=np.float32))
        drawn: dict[str, Any] = {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}
        drawn["case"] = [case.id for case in cases]
        if self.augmentation:
            drawn["numbers"] = np.stack(numbers)
            drawn["spacing"] = np.asarray([case.spacing or (1.0,) * len(size) for case in cases])
            if fresh:
                drawn["noise"] = torch.from_numpy(np.stack(fresh))
            elif starts:
                drawn["noise_starts"] = starts
        return drawn

    def finish(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The second half of `batch(step)`: the augmentation, on the device that the drawn image lies on."""
        image, label = drawn["image"], drawn["label"]
        batch: dict[str, Any] = {"case": drawn["case"]}
        if self.augmentation:
            if self.augmentation.label_before:
                inner = [slice(extra, extra + side) for extra, side in zip(self._margin, self.patch_size, strict=True)]
                batch["label_before"] = label[(slice(None), slice(None), *inner)].long()
            noise = drawn.get("noise")
            if "noise_starts" in drawn:
                sequence, count = _noise_sequence(str(image.device)), math.prod(self._noise_shape)
                windows = [sequence[start : start + count] for start in drawn["noise_starts"]]
                noise = torch.stack(windows).view(-1, *self._noise_shape)
            image, label = apply(self.augmentation, drawn, noise, self.patch_size, self.flips)
            if self.limits is not None:
                image = image.clamp(*self.limits)
        return {"image": image, "label": label.long(), **batch}

    @property
    def _margin(self) -> tuple[int, ...]:
        return self.augmentation.margin(self.patch_size) if self.augmentation else (0,) * len(self.patch_size)

    @property
    def _noise_shape(self) -> tuple[int, ...]:
        return (self.channels, *self.patch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self._order
        if order is None or order[0] != epoch:
            count, repeats = len(self.cases), range(-(-self.batch_size // len(self.cases)))
            keys = [keyed_random("order", self.seed, epoch, repeat) for repeat in repeats]
            orders = [key.permutation(count) if self.shuffle else np.arange(count) for key in keys]
            order = self._order = (epoch, np.concatenate(orders))
        return order[1]

    def _fill(self, case: Case, image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> None:
        """Write one crop, with its margin, into the rows of the batch."""
        pixels, classes = case.image_array(), case.label_array()
        if pixels.shape[0] != self.channels or pixels.ndim != image.ndim:
            wanted = f"the task says {self.channels} channel(s) and {image.ndim - 1} spatial axes"
            fix = "Convert the images so that all have the same channels, or leave the odd ones out."
            what = f"The case {case.id!r} has an image of shape {pixels.shape}; {wanted}."
            raise DataError(what, where=case.source, fix=fix)
        starts = self._starts(case, classes, random)
        into, out_of = [], []
        for start, extra, side, length in zip(starts, self._margin, label.shape, classes.shape, strict=True):
            low = start - extra
            into.append(slice(max(0, -low), max(0, min(side, length - low))))
            out_of.append(slice(max(0, low), max(0, min(length, low + side))))
        if any(part.start > 0 or part.stop < side for part, side in zip(into, label.shape, strict=True)):
            image[...] = pixels.min(axis=tuple(range(1, pixels.ndim)), keepdims=True)
        image[(slice(None), *into)] = pixels[(slice(None), *out_of)]
        label[tuple(into)] = classes[tuple(out_of)]

    def _starts(self, case: Case, classes: np.ndarray, random: np.random.Generator) -> list[int]:
        """First voxel of the crop along each axis (negative where the image is smaller than the patch)."""
        draws = random.random(len(self.patch_size) + 3)
        slack = [length - side for length, side in zip(classes.shape, self.patch_size, strict=True)]
        point: np.ndarray | None = None
        if max(slack) > 0 and draws[0] < self.foreground:
            point = self._foreground_point(case, classes, draws[1], draws[2])
        starts = []
        for axis, room in enumerate(slack):
            low, high = 0, room
            if room <= 0:
                low = high = -(-room // 2)
            elif point is not None:
                low = max(0, int(point[axis]) - self.patch_size[axis] + 1)
                high = min(room, int(point[axis]))
            starts.append(low + int(draws[3 + axis] * (high - low + 1)))
        return starts

    def _foreground_point(self, case: Case, classes: np.ndarray, which: float, where: float) -> np.ndarray | None:
        """A voxel of a random foreground class of the case, or None if it has none."""
        points = self._points.get(case.id)
        if points is None:
            points = self._points[case.id] = _sampled_foreground(classes, case.id)
        if not len(points):
            return None
        present = np.unique(points[:, -1])
        own = points[points[:, -1] == present[int(which * len(present))]]
        return own[int(where * len(own)), :-1]


@functools.cache
def _noise_sequence(device: str) -> Tensor:
    """Standard normal numbers whose windows, with a sign, are an image's noise; two images share one in two millions.

    Drawing fresh numbers for every image would cost as much as the rest of the augmentation.
    """
    noise = keyed_random("noise").standard_normal(_NOISE + _NOISE // 2, dtype=np.float32)
    return torch.from_numpy(noise).to(device)


def _sampled_foreground(classes: np.ndarray, name: str, limit: int = 500) -> np.ndarray:
    """Up to `limit` voxels of every foreground class: rows (*position, class), the same on every call."""
    rows = [np.empty((0, classes.ndim + 1), dtype=np.int32)]
    for value in np.unique(classes[classes > 0]):
        places = np.flatnonzero(classes == value)
        if len(places) > limit:
            places = places[np.sort(keyed_random("points", name, int(value)).permutation(len(places))[:limit])]
        position = np.stack(np.unravel_index(places, classes.shape), axis=1)
        rows.append(np.concatenate([position, np.full((len(places), 1), value)], axis=1).astype(np.int32))
    return np.concatenate(rows)


def transformed(transform: Transform, batch: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """A batch whose samples went through a transform one by one, each with all its random numbers from its own seed.

    The transform takes {"image": (C, *S) float32, "label": (1, *S) int64, "case": id} and returns such a dict;
    batchgenerators' are called as they want it, with `data` and `seg`, or `image` and `segmentation`.
    """
    samples = []
    for image, label, case, seed in zip(batch["image"], batch["label"], batch["case"], seeds, strict=True):
        with guarded_random_state():
            seed_all(seed)
            if callable(own := getattr(transform, "set_random_state", None)):
                own(seed=seed)  # MONAI's transforms keep a state of their own
            moved = _called(transform, {"image": image, "label": label, "case": case})
        samples.append(_checked(moved, image, label, case))
    images, labels = zip(*samples, strict=True)
    return {**batch, "image": torch.stack(images), "label": torch.stack(labels)}


def _called(transform: Transform, sample: dict[str, Any]) -> Any:
    library = type(transform).__module__.partition(".")[0]
    if library == "batchgenerators":  # arrays with a batch axis
        moved = transform(data=sample["image"][None].numpy(), seg=sample["label"][None].float().numpy())
        return {"image": moved["data"][0], "label": moved["seg"][0]}
    if library == "batchgeneratorsv2":
        moved = transform(image=sample["image"], segmentation=sample["label"])
        return {"image": moved["image"], "label": moved["segmentation"]}
    return transform(sample)


def _checked(moved: Any, image: Tensor, label: Tensor, case: str) -> tuple[Tensor, Tensor]:
    where = f"case {case!r}"
    if not isinstance(moved, Mapping) or not {"image", "label"} <= set(moved):
        what = f"The augmentation returned {type(moved).__name__}."
        raise DataError(what, where=where, fix="Return the dict with its image and label.")
    new, classes = (torch.as_tensor(moved[key]).as_subclass(Tensor) for key in ("image", "label"))
    if new.shape != image.shape or classes.shape != label.shape:
        made, given = (tuple(new.shape), tuple(classes.shape)), (tuple(image.shape), tuple(label.shape))
        fix = "Keep channels and size; patch_size says how large the samples are."
        what = f"The augmentation made {made[0]} and {made[1]} of {given[0]} and {given[1]}."
        raise DataError(what, where=where, fix=fix)
    if not torch.equal(classes, classes.round()):
        fix = 'Move labels by nearest neighbour: mode=("bilinear", "nearest").'
        raise DataError("The augmentation mixed classes of the label.", where=where, fix=fix)
    return new.float(), classes.long()
