"""The embedded task: recorded bytes, a cache that heals itself, spacing and groups from the generator."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from toolkit import load_task, registry
from toolkit.data.generated import GENERATORS, GeneratedSource, generator, index_rows
from toolkit.data.manifest import find_manifest
from toolkit.data.rows import table_of
from toolkit.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", GENERATORS)
def test_the_index_table_belongs_to_this_generator(name):
    """After a change of the generator: python scripts/phantom_index.py"""
    manifest, task = find_manifest(name), generator(name)
    rows = table_of(manifest.table_path)
    assert {row["generator"] for row in rows} == {task.version}
    assert manifest.sites == task.sites
    listed = {site: {split: [] for split in task.subjects[site]} for site in task.sites}
    for row in rows:
        listed[row["site"]][row["split"]].append(int(row["subject"]))
    assert listed == task.subjects


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_bytes_are_the_recorded_ones(name):
    rows = index_rows(find_manifest(name))
    for row in rows[:: len(rows) // 3]:
        made = generator(name).generate(row["site"], int(row["subject"]), 0)
        assert row["slices"] == ("" if name == "phantom-glands" else str(len(made.image)))
        assert made.group == row["group"]
        source = GeneratedSource(generator=name, site=row["site"], subject=int(row["subject"]), version="t")
        assert source.fingerprint() == row["sha256"]
        again = source.stack()  # now from the cache
        np.testing.assert_array_equal(again.image, made.image)
        np.testing.assert_array_equal(again.label, made.label)
        assert again.spacing == made.spacing


def test_a_damaged_cache_is_made_again(tmp_path):
    source = GeneratedSource(generator="phantom-cardiac", site="A", subject=1, version="t", classes=(0, 1, 2, 3))
    first = source.stack()
    (path,) = (tmp_path / "cache" / "phantom-cardiac" / "t").iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:1000], whole[:2000] + b"\0" * 50 + whole[2050:]):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(source.stack().image, first.image)
    np.testing.assert_array_equal(source.read_raw().image[0], first.image)


def test_a_cached_pack_with_other_arrays_is_neither_used_nor_hashed() -> None:
    whole = load_task("phantom-cardiac")
    source = whole.cases("test")[0].reader
    first, known = source.pair(), whole.content_hash()
    (path,) = Path(os.environ["TOOLKIT_CACHE"]).rglob(f"{source.site}_{source.subject:04d}_seed{source.seed}.npz")
    with np.load(path) as arrays:
        stored = dict(arrays)
    changed = {
        "a voxel": {
            "image": np.where(np.arange(stored["image"].size).reshape(stored["image"].shape) == 9, 1, stored["image"])
        },
        "a label": {"label": np.where(stored["label"] == 1, 2, stored["label"])},
        "labels that wrap round": {"label": stored["label"].astype(np.int16) + 256},
        "another order": {"image": stored["image"][::-1], "label": stored["label"][::-1]},
        "numbers of another kind": {"image": stored["image"].astype(np.float64) + 1e-3},
    }
    for what, arrays in changed.items():
        np.savez_compressed(path, **{**stored, **arrays})
        fresh = load_task("phantom-cardiac")
        pair = fresh.cases("test")[0].reader.pair()
        np.testing.assert_array_equal(pair.image, first.image, err_msg=what)
        np.testing.assert_array_equal(pair.label, first.label, err_msg=what)
        assert fresh.content_hash() == known


def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("TOOLKIT_CACHE", str(blocker))
    source = GeneratedSource(generator="phantom-cardiac", site="B", subject=0, version="t")
    assert source.stack().image.shape[1:] == (96, 96)


def test_a_task_of_volumes():
    task = load_task("phantom-hippocampus")
    case = task.cases("test", site="B")[0]
    made = generator(task.name).generate("B", generator(task.name).subjects["B"]["test"][0])
    np.testing.assert_array_equal(case.label.numpy(), made.label)
    assert case.spacing == made.spacing
    assert (case.slice_spacing, case.volume) == (None, case.id)
    assert task.loader("train", batch_size=2).batch(0)["image"].shape == (2, 1, *task.patch_size)


def test_a_task_of_colour_tiles():
    task = load_task("phantom-glands")
    case = task.cases("val", site="C")[0]
    made = generator(task.name).generate("C", generator(task.name).subjects["C"]["val"][0])
    np.testing.assert_array_equal(case.label.numpy(), made.label)
    assert case.image.shape == made.image.shape == (3, 128, 128)
    assert (case.spacing, case.slice_spacing, case.position) == (None, None, None)


def test_the_task():
    task = load_task("phantom-cardiac")
    hearts = generator(task.name)
    assert task.sites == hearts.sites
    case = task.cases("test", site=task.sites[0])[0]
    made = hearts.generate(task.sites[0], hearts.subjects[task.sites[0]]["test"][0])
    np.testing.assert_array_equal(case.label.numpy(), made.label[0])
    assert (case.slice_spacing, *case.spacing) == made.spacing
    assert case.image.shape == (1, 96, 96)
    splits = {case.subject: case.split for case in task.cases()}
    assert all(splits[case.subject] == case.split for case in task.cases())


def test_an_unknown_generator_is_refused():
    with pytest.raises(ConfigError, match="phantom-cardiac"):
        GeneratedSource(generator="os", site="A", subject=0).stack()


def test_another_normalisation_than_the_manifest_says() -> None:
    task = load_task("phantom-cardiac", normalisation="range:2,98")
    image = task.cases("test")[0].image
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    plain = load_task("phantom-cardiac")
    assert plain.normalisation != task.normalisation == "range:2,98"
    assert plain.content_hash() != task.content_hash()
    again = registry.build("task", task.toolkit_config)
    assert again.content_hash() == task.content_hash()
    with pytest.raises(ConfigError, match="Unknown normalisation"):
        load_task("phantom-cardiac", normalisation="unit")
