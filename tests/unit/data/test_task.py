"""Tasks from arrays: splits by subject, cases in order, spacing kept or unknown, joined labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from toolkit import Task, join_tasks, registry, task_from_arrays, task_from_table
from toolkit.data.images import write_label_picture
from toolkit.errors import ConfigError, DataError

CLASSES = ["background", "low", "high"]


def arrays(count: int, size: tuple[int, ...] = (16, 16)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(0)
    return (
        [random.normal(size=size).astype(np.float32) for _ in range(count)],
        [random.integers(0, 3, size).astype(np.uint8) for _ in range(count)],
    )


def test_case_goes_straight_into_a_network():
    images, labels = arrays(3)
    case = task_from_arrays(images, labels, classes=CLASSES, splits="train").cases("train")[0]
    assert case.image.dtype == torch.float32
    assert case.label.dtype == torch.uint8
    assert torch.nn.Conv2d(1, 4, 3, padding=1)(case.image[None]).shape == (1, 4, 16, 16)
    expected = np.clip(images[0], *np.percentile(images[0], (0.5, 99.5)))
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(case.image[0].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(case.label.numpy(), labels[0])


def test_changing_what_a_case_gave_changes_nothing():
    images, labels = arrays(2)
    case = task_from_arrays(images, labels, classes=CLASSES, splits="train").cases()[0]
    before = case.image
    case.image.zero_()
    case.label.zero_()
    assert torch.equal(case.image, before)
    assert case.label.any()


def test_derived_splits_keep_subjects_together_and_are_stable():
    images, labels = arrays(40)
    subjects = [f"person{index // 2}" for index in range(40)]
    sites = ["x"] * 20 + ["y"] * 20
    tasks = [task_from_arrays(images, labels, classes=CLASSES, subjects=subjects, sites=sites) for _ in range(2)]
    where: dict[str, set[str]] = {}
    for case in tasks[0].cases():
        where.setdefault(case.subject, set()).add(case.split)
    assert all(len(splits) == 1 for splits in where.values())
    for site in ("x", "y"):
        assert [len(tasks[0].cases(split, site)) for split in ("train", "val", "test")] == [12, 4, 4]
    assert [case.split for case in tasks[0].cases()] == [case.split for case in tasks[1].cases()]


def test_a_subject_seen_at_two_sites_stays_in_one_split():
    images, labels = arrays(40)
    subjects = [f"person{index % 20}" for index in range(40)]
    sites = ["x"] * 20 + ["y"] * 20
    task = task_from_arrays(images, labels, classes=CLASSES, subjects=subjects, sites=sites)
    for one, other in zip(task.cases(site="x"), task.cases(site="y"), strict=True):
        assert (one.subject, one.split) == (other.subject, other.split)


def test_a_subject_in_two_splits_is_refused():
    images, labels = arrays(4)
    with pytest.raises(DataError, match="'ann' is in two splits: train and test"):
        task_from_arrays(
            images,
            labels,
            classes=CLASSES,
            subjects=["ann", "bob", "ann", "bob"],
            splits=["train", "train", "test", "train"],
        )


def test_named_splits_must_fit():
    images, labels = arrays(3)
    make = {"classes": CLASSES, "ids": ["a", "b", "c"]}
    task = task_from_arrays(images, labels, splits={"train": ["a", "c"], "test": ["b"]}, **make)
    assert [case.id for case in task.cases("train")] == ["a", "c"]
    assert task.splits == ("train", "test")
    with pytest.raises(ConfigError, match="do not exist: d"):
        task_from_arrays(images, labels, splits={"train": ["a", "b", "c", "d"]}, **make)
    with pytest.raises(ConfigError, match="1 cases are in no split, for example c"):
        task_from_arrays(images, labels, splits={"train": ["a", "b"]}, **make)
    with pytest.raises(DataError, match="in the split 'holdout'"):
        task_from_arrays(images, labels, splits="holdout", **make)


def test_sites_and_splits_are_listed_when_a_name_is_wrong():
    images, labels = arrays(4)
    task = task_from_arrays(images, labels, classes=CLASSES, sites=["b", "a", "b", "a"], splits="train")
    assert task.sites == ("b", "a")
    assert [case.id for case in task.cases(site=["a"])] == ["case001", "case003"]
    with pytest.raises(ConfigError, match="b, a"):
        task.cases("train", site="c")
    with pytest.raises(ConfigError, match="train, val, test"):
        task.cases("validation")


def test_spacing_is_kept_and_unknown_stays_unknown():
    images, labels = arrays(2)
    known = task_from_arrays(images, labels, classes=CLASSES, spacing=(1.25, 1.5), splits="train")
    assert [case.spacing for case in known.cases()] == [(1.25, 1.5)] * 2
    mixed = task_from_arrays(images, labels, classes=CLASSES, spacing=[(2.0, 2.0), None], splits="train")
    assert [case.spacing for case in mixed.cases()] == [(2.0, 2.0), None]
    unknown = task_from_arrays(images, labels, classes=CLASSES, splits="train").cases()[0]
    assert (unknown.spacing, unknown.slice_spacing, unknown.affine) == (None, None, None)


def test_stacks_are_cut_into_slices():
    images, labels = arrays(2, (5, 16, 12))
    task = task_from_arrays(images, labels, classes=CLASSES, dims=2, spacing=(8.0, 1.5, 1.4), splits="train")
    assert len(task) == 10
    case = task.cases()[7]
    assert (case.id, case.volume, case.position) == ("case001/slice02", "case001", 2)
    assert (case.spacing, case.slice_spacing) == ((1.5, 1.4), 8.0)
    np.testing.assert_array_equal(case.label.numpy(), labels[1][2])
    # normalised as a volume, not slice by slice
    assert abs(float(torch.stack([c.image for c in task.cases()[5:]]).mean())) < 1e-5
    assert abs(float(case.image.mean())) > 1e-4


def test_channels_come_first_and_must_agree():
    images, labels = arrays(2)
    colour = [np.stack([image] * 3) for image in images]
    assert task_from_arrays(colour, labels, classes=CLASSES, splits="train").channels == 3
    with pytest.raises(DataError, match=r"'case001' has 1 channel\(s\), that of 'case000' 3"):
        task_from_arrays([colour[0], images[1]], labels, classes=CLASSES, splits="train")
    with pytest.raises(DataError, match="channels first"):
        task_from_arrays([np.moveaxis(colour[0], 0, -1).reshape(1, 16, 16, 3)], labels[:1], classes=CLASSES)


def test_batches_of_tensors_are_accepted():
    images, labels = torch.randn(4, 1, 16, 16), torch.randint(0, 3, (4, 1, 16, 16))
    task = task_from_arrays(images, labels, classes=CLASSES, splits="train")
    assert (task.dims, task.channels, task.patch_size) == (2, 1, (16, 16))
    assert torch.equal(task.cases()[2].label, labels[2, 0].to(torch.uint8))


BAD = {
    "nan": (lambda i, x: (np.where(i > 0, np.nan, i), x), "NaN"),
    "shape": (lambda i, x: (i, x[:, 1:]), r"\(16, 16\) and its label \(16, 15\)"),
    "float labels": (lambda i, x: (i, x / 2), "no whole numbers"),
    "255": (lambda i, x: (i, (x > 1).astype(np.uint8) * 255), "no class: 255"),
    "text": (lambda i, x: (i.astype(str), x), "not real numbers"),
    "axes": (lambda i, x: (i[0], x), r"has shape \(16,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused_at_once(name):
    images, labels = arrays(2)
    change, message = BAD[name]
    images[1], labels[1] = change(images[1], labels[1])
    with pytest.raises(DataError, match=message):
        task_from_arrays(images, labels, classes=CLASSES, splits="train")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({0: "a", 2: "b"}, "without gaps"),
        ({1: "a", 2: "b"}, "without gaps"),
        (["a", "a"], "share a name"),
        ({"x": "a"}, "whole numbers"),
        (["a"], "without gaps"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    images, labels = arrays(1)
    with pytest.raises(ConfigError, match=message):
        task_from_arrays(images, labels, classes=classes)


def test_wrong_lengths_and_ids_are_refused():
    images, labels = arrays(3)
    with pytest.raises(ConfigError, match="'image': 3, 'label': 2"):
        task_from_arrays(images, labels[:2], classes=CLASSES)
    with pytest.raises(ConfigError, match=r"different lengths.*'site': 1"):
        task_from_arrays(images, labels, classes=CLASSES, sites=["a"])
    with pytest.raises(DataError, match="Two cases are called 'a'"):
        task_from_arrays(images, labels, classes=CLASSES, ids=["a", "b", "a"], splits="train")
    with pytest.raises(DataError, match="no rows"):
        task_from_arrays([], [], classes=CLASSES)
    with pytest.raises(DataError, match="spacing of 3 numbers"):
        task_from_arrays(images, labels, classes=CLASSES, spacing=(1, 1, 1))
    with pytest.raises(ConfigError, match="zscore-clip"):
        task_from_arrays(images, labels, classes=CLASSES, normalisation="zscor")


def test_content_hash_follows_the_content():
    images, labels = arrays(3)
    make = {"classes": CLASSES, "splits": "train"}
    first = task_from_arrays(images, labels, **make).content_hash()
    assert task_from_arrays([image.copy() for image in images], labels, **make).content_hash() == first
    changed = [images[0], images[1], images[2].copy()]
    changed[2][3, 3] += 1
    assert task_from_arrays(changed, labels, **make).content_hash() != first
    assert task_from_arrays(images, labels, **{**make, "sites": "other"}).content_hash() != first
    assert task_from_arrays(images, labels, **make, label_values={0: 0, 1: 1, 2: 2}).content_hash() == first
    assert task_from_arrays(images, labels, **make, label_values={0: 0, 1: 2, 2: 1}).content_hash() != first


def test_memory_is_bounded_and_freed(monkeypatch):
    from toolkit.data import source

    memory = source.Memory(limit=3 * 16 * 16 * 5)  # room for three images with their labels
    monkeypatch.setattr(source, "MEMORY", memory)
    images, labels = arrays(6)
    task = task_from_arrays(images, labels, classes=CLASSES, splits="train")
    for case in task.cases():
        assert case.image.shape == (1, 16, 16)
    assert memory.held == memory.limit
    del task, case
    import gc

    gc.collect()
    assert memory.held == 0


def joinable() -> tuple[Task, Task]:
    images, labels = arrays(4)
    first = task_from_arrays(images, labels, classes=["background", "RV", "LV"], splits="train", name="one", sites="h1")
    second = task_from_arrays(
        images,
        [(x == 1).astype(np.uint8) for x in labels],
        classes=["background", "LV"],
        splits="train",
        spacing=(1.0, 1.0),
        name="two",
        sites="h2",
        patch_size=(32, 16),
    )
    return first, second


def test_join_keeps_only_the_shared_classes():
    first, second = joinable()
    both = join_tasks([first, second], classes={"LV": {"one": 2, "two": "LV"}})
    assert both.classes == {0: "background", 1: "LV"}
    assert both.sites == ("h1", "h2")
    assert both.patch_size == (32, 16)
    for joined, own in zip(both.cases(site="h1"), first.cases(), strict=True):
        assert joined.id == f"one/{own.id}"
        np.testing.assert_array_equal(joined.label.numpy(), (own.label.numpy() == 2).astype(np.uint8))
        assert torch.equal(joined.image, own.image)
        assert joined.spacing is None
        assert joined.classes == both.classes
    for joined, own in zip(both.cases(site="h2"), second.cases(), strict=True):
        np.testing.assert_array_equal(joined.label.numpy(), own.label.numpy())
        assert joined.spacing == (1.0, 1.0)
    assert set(both.loader("train", batch_size=8).batch(0)["label"].unique().tolist()) == {0, 1}


def test_join_can_merge_classes_and_be_joined_again():
    first, second = joinable()
    heart = join_tasks([first, second], classes={"heart": {"one": ["RV", "LV"], "two": 1}}, name="heart")
    np.testing.assert_array_equal(heart.cases()[0].label.numpy(), (first.cases()[0].label.numpy() > 0))
    third = task_from_arrays(*arrays(2), classes=["background", "x", "y"], splits="test", name="three", sites="h1")
    all_three = join_tasks([heart, third], classes={"organ": {"heart": "heart", "three": "y"}})
    assert all_three.sites == ("heart/h1", "h2", "three/h1") or all_three.sites == ("heart/h1", "heart/h2", "three/h1")
    np.testing.assert_array_equal(all_three.cases()[0].label.numpy(), heart.cases()[0].label.numpy())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"LV": {"one": 2}}, "no entry for the task 'two'"),
        ({"LV": {"one": 3, "two": 1}}, "cannot become"),
        ({"LV": {"one": 0, "two": 1}}, "cannot become"),
        ({"LV": {"one": "MYO", "two": 1}}, "cannot become"),
        ({"LV": {"one": 2, "two": 1}, "RV": {"one": 2, "two": 1}}, "cannot become"),
    ],
)
def test_join_refuses_classes_that_are_not_shared(classes, message):
    with pytest.raises(ConfigError, match=message):
        join_tasks(joinable(), classes=classes)


def test_join_refuses_tasks_that_do_not_fit():
    first, _ = joinable()
    with pytest.raises(ConfigError, match="share a name"):
        join_tasks([first, first], classes={})
    other = task_from_arrays(*arrays(2, (8, 8, 8)), classes=CLASSES, splits="train", name="volumes")
    with pytest.raises(ConfigError, match="differ in dims"):
        join_tasks([first, other], classes={})
    with pytest.raises(ConfigError, match="at least two"):
        join_tasks([first], classes={})


def test_array_tasks_cannot_be_rebuilt_and_say_so():
    first, second = joinable()
    assert registry.describe(first) is None
    assert join_tasks([first, second], classes={"LV": {"one": 2, "two": 1}}).toolkit_config is None


def test_a_named_task_is_rebuilt_from_json(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    from toolkit import load_task

    task = load_task("phantom-cardiac")
    config = json.loads(json.dumps(registry.describe(task)))
    again = registry.build("task", config)
    assert again.content_hash() == task.content_hash()
    assert repr(again) == repr(task)


def test_the_first_patients_of_every_site_are_chosen():
    images, labels = arrays(8)
    subjects, sites = ["a", "b", "a", "c", "d", "e", "f", "d"], ["x"] * 4 + ["y"] * 4
    task = task_from_arrays(images, labels, classes=CLASSES, subjects=subjects, sites=sites, splits="test")
    assert [case.subject for case in task.cases("test", patients=2)] == ["a", "b", "a", "d", "e", "d"]
    assert [case.subject for case in task.cases(site="y", patients=1)] == ["d", "d"]
    assert len(task.cases(patients=9)) == 8


def test_content_hash_follows_what_is_read_of_the_same_files(tmp_path):
    """A mask of 100 and 200 is foreground from 128 on in one row and from 50 on in the other."""
    for name in ("a", "b"):
        write_label_picture(tmp_path / f"{name}.png", np.arange(256).reshape(16, 16) % 200)
    row = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "b.png"), "split": "train"}

    def make(**options):
        return task_from_table([{**row, **options}], classes=["background", "lesion"])

    first, second = make(threshold=128), make(threshold=50)
    assert not torch.equal(first.cases()[0].label, second.cases()[0].label)
    assert first.content_hash() == make(threshold=128).content_hash() != second.content_hash()
    assert "1: a" in first.difference(second.contents())
    assert make(threshold=np.int64(50)).content_hash() == make(threshold=50.0).content_hash() == second.content_hash()
