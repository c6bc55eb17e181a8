"""The loader is a pure function of seed and step; crops, padding and augmentation do what they say."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from toolkit import Augmentation, task_from_arrays
from toolkit.errors import ConfigError, DataError

SCRIPT = """
import pickle, sys, hashlib
task = pickle.load(open(sys.argv[1], "rb"))
loader = task.loader("train", batch_size=3, patch_size=(16, 16), seed=5, augmentation="standard")
for step in (7, 0):
    batch = loader.batch(step)
    print(hashlib.sha256(batch["image"].numpy().tobytes() + batch["label"].numpy().tobytes()).hexdigest(), *batch["case"])
"""


def same(first: dict, second: dict) -> bool:
    return (
        torch.equal(first["image"], second["image"])
        and torch.equal(first["label"], second["label"])
        and first["case"] == second["case"]
    )


@pytest.mark.parametrize("augmentation", ["none", "standard"])
def test_batches_are_the_same_in_any_order(striped, augmentation):
    task = striped()
    settings = {"batch_size": 3, "patch_size": (16, 16), "seed": 5, "augmentation": augmentation}
    first, second = task.loader("train", **settings), task.loader("train", **settings)
    forwards = {step: first.batch(step) for step in range(9)}
    for step in (8, 3, 3, 0, 5):
        assert same(second.batch(step), forwards[step])


def test_batches_are_the_same_in_another_process(striped, tmp_path):
    import hashlib

    task = striped()
    path = tmp_path / "task.pickle"
    path.write_bytes(pickle.dumps(task))
    run = subprocess.run(
        [sys.executable, "-c", "import torch; torch.set_num_threads(1)\n" + SCRIPT, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    loader = task.loader("train", batch_size=3, patch_size=(16, 16), seed=5, augmentation="standard")
    lines = run.stdout.splitlines()
    for line, step in zip(lines, (7, 0), strict=True):
        batch = loader.batch(step)
        digest = hashlib.sha256(batch["image"].numpy().tobytes() + batch["label"].numpy().tobytes()).hexdigest()
        assert line.split() == [digest, *batch["case"]]


def test_the_global_random_state_is_not_touched(striped):
    import random

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    batch = striped().loader("train", batch_size=4, augmentation="standard").batch(2)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    again = striped().loader("train", batch_size=4, augmentation="standard").batch(2)
    assert same(batch, again)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    striped().loader("train", batch_size=4, augmentation="standard").batch(3)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_epoch_shows_every_case_once_and_epochs_differ(striped):
    loader = striped(count=12).loader("train", batch_size=4)
    assert len(loader) == 3
    first = [case for batch in loader for case in batch["case"]]
    second = [case for batch in loader for case in batch["case"]]
    assert Counter(first) == Counter(second) == Counter(case.id for case in loader.cases)
    assert first != second
    assert [case for batch in loader.epoch(0) for case in batch["case"]] == first


def test_batches_are_full_and_the_rest_of_an_epoch_is_dropped(striped):
    loader = striped(count=10).loader("train", batch_size=4)
    assert len(loader) == 2
    assert all(len(batch["case"]) == 4 for batch in loader)


def test_a_small_set_is_repeated_with_other_augmentation(striped):
    loader = striped(count=2).loader("train", batch_size=5, augmentation="standard")
    assert len(loader) == 1
    batch = loader.batch(0)
    assert sorted(Counter(batch["case"]).values()) in ([2, 3],)
    first, second = [i for i, case in enumerate(batch["case"]) if case == "case000"][:2]
    assert not torch.equal(batch["image"][first], batch["image"][second])


def test_unshuffled_batches_follow_the_cases(striped):
    loader = striped(count=6).loader("train", batch_size=2, shuffle=False)
    assert [batch["case"] for batch in loader] == [[f"case00{i}", f"case00{i + 1}"] for i in (0, 2, 4)]


def test_seeds_differ(striped):
    batches = [striped().loader("train", batch_size=8, seed=seed).batch(0)["case"] for seed in (0, 1, 2)]
    assert len({tuple(cases) for cases in batches}) == 3


def test_augmentation_differs_between_samples_and_epochs(striped):
    loader = striped(count=4).loader("train", batch_size=4, augmentation="standard", shuffle=False)
    first, second = loader.batch(0), loader.batch(1)
    assert first["case"] == second["case"]
    for row in range(4):
        assert not torch.equal(first["image"][row], second["image"][row])
    changes = first["image"] - torch.stack([case.image for case in loader.cases])
    assert len({round(float(change.mean()), 3) for change in changes}) == 4


def test_shapes_and_types(striped):
    batch = striped().loader("train", batch_size=3, patch_size=(16, 8), augmentation="standard").batch(0)
    assert batch["image"].shape == (3, 1, 16, 8)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (3, 1, 16, 8)
    assert batch["label"].dtype == torch.int64


@pytest.mark.parametrize("augmentation", ["none", "standard", "geometry", "intensity"])
def test_labels_stay_within_the_classes(striped, augmentation):
    loader = striped(count=8).loader("train", batch_size=8, patch_size=(24, 16), augmentation=augmentation)
    for step in range(4):
        assert set(loader.batch(step)["label"].unique().tolist()) <= {0, 1, 2}


def test_crops_are_windows_of_the_image(striped):
    """In `striped` pixel (i, j) of case n is 24 i + j + 10000 n, so a crop tells where it was cut."""
    loader = striped().loader("train", batch_size=10, patch_size=(8, 10))
    corners = set()
    for step in range(8):
        batch = loader.batch(step)
        for image, label in zip(batch["image"][:, 0], batch["label"][:, 0], strict=True):
            case, rest = divmod(int(image[0, 0]), 10_000)
            row, column = divmod(rest, 24)
            corners.add((row, column))
            rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
            expected = (rows + row) * 24 + columns + column + 10_000 * case
            assert torch.equal(image, expected.float())
            assert torch.equal(label, (rows + row) * 3 // 20)
    assert len(corners) > 40
    assert {row for row, _ in corners} >= {0, 12}


def test_small_images_are_padded_with_their_minimum_and_background(striped):
    batch = striped(count=4).loader("train", batch_size=4, patch_size=(32, 32), shuffle=False).batch(0)
    for row in range(4):
        image, label = batch["image"][row, 0], batch["label"][row, 0]
        low = 10_000.0 * row
        assert float(image.min()) == low
        inside = slice(6, 26), slice(4, 28)
        assert torch.equal(image[inside], torch.arange(480).reshape(20, 24).float() + low)
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[inside] = False
        assert (image[outside] == low).all()
        assert (label[outside] == 0).all()


def test_foreground_crops_contain_every_class_evenly():
    """Two single voxels of different classes in a large volume: plain crops rarely meet them."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[3, 5, 30], label[33, 20, 10] = 1, 2
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    task = task_from_arrays([image] * 4, [label] * 4, classes=["b", "x", "y"], splits="train", dims=3)
    loader = task.loader("train", batch_size=4, patch_size=(8, 8, 8), foreground=1.0)
    seen = Counter(
        value for step in range(25) for row in loader.batch(step)["label"] for value in row.unique().tolist()
    )
    assert seen[1] + seen[2] == 100
    assert 30 <= seen[1] <= 70
    none = task.loader("train", batch_size=4, patch_size=(8, 8, 8), foreground=0.0)
    assert sum(int(none.batch(step)["label"].any()) for step in range(5)) <= 3


def test_flips_only_where_they_are_allowed():
    image = np.linspace(0, 1, 32, dtype=np.float32)[:, None] + np.zeros((32, 32), np.float32)
    label = (image > 0.5).astype(np.uint8)
    strength = Augmentation(rotation=0, scale=0, translation=0, gain=0, offset=0, gamma=0, noise=0)
    slopes = {}
    for flips in ((), (0,), (1,)):
        task = task_from_arrays(
            [image] * 40, [label] * 40, classes=["b", "x"], splits="train", flips=flips, normalisation="none"
        )
        batch = task.loader("train", batch_size=40, augmentation=strength).batch(0)
        slopes[flips] = {bool(row[0, -1, 0] > row[0, 0, 0]) for row in batch["image"]}
        # the label is mirrored with its image
        assert torch.equal(batch["label"], (batch["image"] > 0.5).long())
    assert slopes == {(): {True}, (0,): {True, False}, (1,): {True}}


def test_no_strength_leaves_the_image_alone(striped):
    nothing = Augmentation(rotation=0, scale=0, translation=0, flips=False, gain=0, offset=0, gamma=0, noise=0)
    plain = striped().loader("train", batch_size=4).batch(1)
    assert same(striped().loader("train", batch_size=4, augmentation=nothing).batch(1), plain)


@pytest.mark.parametrize(
    ("rule", "kept"), [("range", True), ("range:2,98", True), ("window:0,3", True), ("zscore-clip", False)]
)
def test_augmentation_keeps_a_fixed_range(rule, kept):
    images = np.linspace(0, 3, 8 * 256, dtype=np.float32).reshape(8, 1, 16, 16)[:, :, ::-1].copy()
    labels = [np.eye(16, dtype=np.uint8)] * 8
    task = task_from_arrays(
        images, labels, classes={0: "background", 1: "line"}, normalisation=rule, splits=["train"] * 8
    )
    strong = Augmentation(noise=0.5, offset=0.5)
    image = task.loader("train", batch_size=8, patch_size=(16, 16), augmentation=strong).batch(0)["image"]
    assert bool(image.min() >= 0 and image.max() <= 1) is kept


def test_wrong_settings_say_what_there_is(striped):
    task = striped(sites=["north"] * 6 + ["south"] * 4)
    with pytest.raises(ConfigError, match="north, south"):
        task.loader("train", "east")
    with pytest.raises(ConfigError, match="'val': 0"):
        task.loader("val")
    with pytest.raises(ConfigError, match="train, val, test"):
        task.loader("training")
    with pytest.raises(ConfigError, match="standard"):
        task.loader("train", augmentation="strong")
    with pytest.raises(ConfigError, match="2 positive numbers"):
        task.loader("train", patch_size=(8, 8, 8))
    with pytest.raises(ConfigError, match="batch_size is at least 1, not 0"):
        task.loader("train", batch_size=0)


def test_cases_without_labels_cannot_be_trained_on():
    images = [np.zeros((16, 16), np.float32)] * 4
    task = task_from_arrays(images, None, classes=["b", "x"], splits="train", dims=2)
    assert not task.cases()[0].has_label
    with pytest.raises(DataError, match="has no label"):
        task.loader("train", batch_size=2).batch(0)


def test_the_label_before_the_augmentation_is_the_plain_crop(striped):
    task = striped(size=(32, 32), flips=(0, 1))
    settings = {"batch_size": 4, "patch_size": (16, 16), "seed": 3}
    moved = task.loader("train", augmentation="geometry", **settings).batch(2)
    both = task.loader("train", augmentation="geometry-label-before", **settings).batch(2)
    plain = task.loader("train", augmentation="none", **settings).batch(2)
    assert same(moved, both)
    assert "label_before" not in moved
    assert torch.equal(both["label_before"], plain["label"])
    assert both["label_before"].dtype == torch.int64
    assert not torch.equal(both["label_before"], both["label"])
