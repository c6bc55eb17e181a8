"""Augmentation by a callable on the sample: transforms of MONAI and batchgenerators, or a function of one's own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import DataError

Transform = Callable[..., Any]


def transformed(transform: Transform, batch: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """A batch whose samples went through a transform one by one, each with all its random numbers from its own seed.

    Args:
        transform: called with {"image": (C, *S) float32, "label": (1, *S) int64, "case": id}; returns such a dict.
            batchgenerators' transforms are called as they want it, with `data` and `seg`, or `image` and `segmentation`.
        batch: image (B, C, *S), label (B, 1, *S), case.
        seeds: one a sample, below 2**32.
    """
    samples = []
    for image, label, case, seed in zip(batch["image"], batch["label"], batch["case"], seeds, strict=True):
        with _seeded(transform, seed):
            moved = _called(transform, {"image": image, "label": label, "case": case})
        samples.append(_checked(moved, image, label, case))
    images, labels = zip(*samples, strict=True)
    return {**batch, "image": torch.stack(images), "label": torch.stack(labels)}


@contextlib.contextmanager
def _seeded(transform: Transform, seed: int) -> Iterator[None]:
    """Seed the transform (MONAI's keep a state of their own) and, for the block, the process's generators."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002 - what libraries draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        if callable(own := getattr(transform, "set_random_state", None)):
            own(seed=seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])


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
    if not isinstance(moved, Mapping) or not {"image", "label"} <= set(moved):
        raise _unusable(case, f"returned {type(moved).__name__}", "Return the dict with its image and label.")
    new, classes = (torch.as_tensor(moved[key]).as_subclass(Tensor) for key in ("image", "label"))
    if new.shape != image.shape or classes.shape != label.shape:
        what = f"made {tuple(new.shape)} and {tuple(classes.shape)} of {tuple(image.shape)} and {tuple(label.shape)}"
        raise _unusable(case, what, "Keep channels and size; patch_size says how large the samples are.")
    if not torch.equal(classes, classes.round()):
        raise _unusable(
            case, "mixed classes of the label", 'Move labels by nearest neighbour: mode=("bilinear", "nearest").'
        )
    return new.float(), classes.long()


def _unusable(case: str, what: str, fix: str) -> DataError:
    return DataError(f"The augmentation {what}.", where=f"case {case!r}", fix=fix)
