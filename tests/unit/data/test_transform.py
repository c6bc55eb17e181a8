"""Transforms of other libraries as augmentation: seeded by the step, checked, and no trace in the process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised

import toolkit as tk


def task(count: int = 6) -> tk.Task:
    drawn = np.random.default_rng(0)
    images = [drawn.random((16, 16)).astype(np.float32) for _ in range(count)]
    labels = [(image > 0.7).astype(np.uint8) for image in images]
    return tk.task_from_arrays(images, labels, classes={0: "background", 1: "x"}, normalisation="none")


def monais() -> Any:
    return Compose(
        [
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            RandAffined(["image", "label"], prob=1.0, rotate_range=0.5, mode=("bilinear", "nearest")),
            RandGaussianNoised("image", prob=1.0),
        ]
    )


def from_global_state(sample: dict[str, Any]) -> dict[str, Any]:
    factor = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
    return {**sample, "image": sample["image"] * factor}


def batch(augmentation: Any, step: int, seed: int = 0) -> dict[str, Any]:
    return task().loader(batch_size=2, patch_size=(16, 16), seed=seed, augmentation=augmentation).batch(step)


@pytest.mark.parametrize("transform", [monais, lambda: from_global_state], ids=["monai", "function"])
def test_batches_depend_on_seed_and_step_alone(transform: Any) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]  # noqa: NPY002
    used = transform()
    late = [batch(used, step) for step in (5, 0, 1)]
    fresh = batch(transform(), 0)
    assert torch.equal(late[1]["image"], fresh["image"])
    assert torch.equal(late[1]["label"], fresh["label"])
    assert not torch.equal(batch(used, 0, seed=1)["image"], fresh["image"])
    plain = batch("none", 0)
    assert not torch.equal(plain["image"], fresh["image"])
    assert type(fresh["image"]) is torch.Tensor
    assert fresh["label"].dtype == torch.int64
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # type: ignore[union-attr]  # noqa: NPY002
    assert state[2] == random.getstate()


def test_the_samples_of_a_batch_and_of_two_epochs_differ() -> None:
    factors: list[float] = []

    def kept(sample: dict[str, Any]) -> dict[str, Any]:
        factors.append(random.random())
        return sample

    loader = task().loader(batch_size=2, patch_size=(16, 16), augmentation=kept)
    assert not loader.ahead
    for step in range(2 * len(loader)):
        loader.batch(step)
    assert len(set(factors)) == len(factors) == 4 * len(loader)


def test_batchgenerators_are_called_as_they_want_it() -> None:
    first = type("T", (), {"__module__": "batchgenerators.x", "__call__": lambda self, **given: mirrored(given)})
    second = type("T", (), {"__module__": "batchgeneratorsv2.x", "__call__": lambda self, **given: turned(given)})

    def mirrored(given: dict[str, Any]) -> dict[str, Any]:
        assert given["data"].shape == given["seg"].shape == (1, 1, 16, 16)
        return {name: value[..., ::-1].copy() for name, value in given.items()}

    def turned(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value.flip(-1) for name, value in given.items()}

    plain = batch("none", 0)
    for kind in (first, second):
        moved = batch(kind(), 0)
        assert torch.equal(moved["image"], plain["image"].flip(-1))
        assert torch.equal(moved["label"], plain["label"].flip(-1))


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (lambda sample: None, "returned NoneType"),
        (lambda sample: {**sample, "image": sample["image"][:, 1:]}, r"made \(1, 15, 16\)"),
        (lambda sample: {**sample, "label": sample["label"] * 0.5}, "mixed classes"),
    ],
)
def test_what_a_transform_may_return(transform: Any, said: str) -> None:
    with pytest.raises(tk.DataError, match=said):
        batch(transform, 0)


def test_a_callable_has_no_threads() -> None:
    with pytest.raises(tk.ConfigError, match="runs in the training's thread"):
        tk.TrainConfig(augmentation=len, workers=2)
