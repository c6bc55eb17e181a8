"""Every official layout is read from small files written in it, and absent data give a list of what to do."""

from __future__ import annotations

import json
import re

import numpy as np
import official_layouts as official
import pytest

import toolkit
from toolkit import load_task
from toolkit.data.manifest import find_manifest, manifest_names
from toolkit.data.sets import DATA_SETS
from toolkit.errors import ConfigError, DataError

PACKS = {"cardiac_acdc", "cardiac_sunnybrook", "hippocampus_msd04", "nuclei_dsb2018"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_data_set_has_a_builder():
    described = {n for n in manifest_names() if not find_manifest(n).generated}
    assert {n for n in described if n in DATA_SETS or not find_manifest(n).table_path.is_file()} == PACKS | set(
        official.BUILDERS
    )


@pytest.mark.parametrize("name", sorted(official.BUILDERS))
def test_official_layout(name, place):
    written = official.BUILDERS[name](place / name)
    task = load_task(name)
    cases = {case.id: case for case in task.cases()}
    assert set(cases) == set(written)
    for case_id, label in written.items():
        case = cases[case_id]
        np.testing.assert_array_equal(case.label.numpy(), label)
        assert tuple(case.image.shape) == (task.channels, *label.shape)
        assert bool(np.isfinite(case.image.numpy()).all())
        assert case.site in task.sites
        assert (case.spacing is None) == (task.manifest.spacing == "unknown")
    assert task.content_hash() == load_task(name).content_hash()


@pytest.mark.parametrize("name", sorted(official.BUILDERS))
def test_absent_data_say_what_to_do(name, place):
    manifest = find_manifest(name)
    with pytest.raises(DataError) as caught:
        load_task(name)
    text = str(caught.value)
    for part in (*manifest.access.steps, manifest.licence, *manifest.files, "TOOLKIT_DATA", str(place / name)):
        assert part in text
    for fact, doubt in manifest.unconfirmed.items():
        assert f"{fact}: {doubt}" in text


@pytest.mark.parametrize("name", sorted(official.BUILDERS))
def test_an_empty_folder_says_what_is_expected(name, place):
    (place / name).mkdir()
    with pytest.raises(DataError) as caught:
        load_task(name)
    assert caught.value.fix


def test_spacing_and_orientation_of_oblique_volumes(place):
    official.BUILDERS["acdc"](place / "acdc")
    case = load_task("acdc").cases("train")[0]
    assert case.spacing == pytest.approx((1.5, 1.25))
    assert case.slice_spacing == pytest.approx(8)
    # The voxel stored first lies at the matrix's last column; it is read at the far end of the first axis.
    np.testing.assert_allclose(case.affine @ [8, 0, 0, 1], official.OBLIQUE @ [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(case.affine @ [0, 3, 2, 1], official.OBLIQUE @ [8, 3, 2, 1], atol=1e-6)


def test_published_acdc_lists(place):
    manifest = find_manifest("acdc")
    official.BUILDERS["acdc"](place / "acdc")
    task = load_task("acdc")
    assert {s: {c.subject for c in task.cases(s)} for s in task.splits} == {
        "train": {"patient001"},
        "val": {"patient005"},
        "test": {"patient007"},
    }
    assert {c.group for c in task.cases()} == {"DCM"}
    few = load_task("acdc", split_list="ten_subjects_0")
    assert {c.subject: c.split for c in few.cases()} == {"patient001": "train", "patient007": "test"}
    assert few.toolkit_config == {"name": "load_task", "arguments": {"name": "acdc", "split_list": "ten_subjects_0"}}
    with pytest.raises(ConfigError, match=r"no split list 'twenty'.*\n.*\n.*ten_subjects_4"):
        load_task("acdc", split_list="twenty")
    large = manifest.split_lists["large"]
    assert [len(large[s]) for s in ("train", "val", "test")] == [70, 10, 20]
    # Split 1 of the publication: patients 002 and 022 train and validate; here they only train.
    second = manifest.split_lists["ten_subjects_1"]
    assert {"patient002", "patient022"} <= set(second["train"])
    assert second["val"] == ("patient011", "patient071", "patient095")


def test_the_corrupted_hearts_are_made_by_the_line_that_is_told(place):
    """The line in the message of `load_task("acdc_c")` gives the case names and sites that its manifest states."""
    official.BUILDERS["acdc"](place / "acdc")
    with pytest.raises(DataError) as caught:
        load_task("acdc_c")
    line = re.search(r"toolkit\.with_artefacts\(.*\)", str(caught.value))[0]
    task, stated = eval(line, {"toolkit": toolkit}), find_manifest("acdc_c")
    assert task.sites == stated.sites
    assert task.classes == stated.classes
    stems = [f"patient007_{phase}_{copy}" for phase in ("ED", "ES") for copy in range(3)]
    assert {c.volume for c in task.cases()} == {f"{site}/{stem}" for site in task.sites for stem in stems}
    official.BUILDERS["acdc_c"](place / "acdc_c")
    assert {c.id for c in load_task("acdc_c").cases()} <= {c.id for c in task.cases()}
    clean = {c.id: c for c in load_task("acdc").cases("test")}
    for case in task.cases(site="spike")[:5]:
        image = case.image.numpy()
        assert 0 <= image.min() < image.max() <= 1  # the extremes may lie in the padding to 192 x 192
        twin = re.sub(r"spike/(.*)_\d(/.*)", r"\1\2", case.id)
        np.testing.assert_array_equal(case.label.numpy(), clean[twin].label.numpy())


def test_acdc_lists_are_the_published_ones(golden):
    stored = json.loads((golden / "latent_augmentation" / "acdc_splits.json").read_text())
    lists = find_manifest("acdc").split_lists
    names = {"train": "train", "validate": "val", "test": "test"}
    published = {"large": stored["large"], **{f"ten_subjects_{k}": s for k, s in stored["ten_subjects"].items()}}
    for name, parts in published.items():
        for theirs, ours in names.items():
            overlap = set(parts["train"]) if theirs == "validate" else set()
            assert lists[name][ours] == tuple(f"patient{i}" for i in parts[theirs] if i not in overlap)


def test_synapse_test_cases():
    lists = find_manifest("synapse").split_lists["published"]
    expected = "0001 0002 0003 0004 0008 0022 0025 0029 0032 0035 0036 0038"
    assert lists["test"] == tuple(f"case{number}" for number in expected.split())
    assert len(set(lists["train"]) | set(lists["test"])) == 30


def test_sites_and_groups_of_mnms(place):
    official.BUILDERS["mnms"](place / "mnms")
    task = load_task("mnms")
    assert {c.subject: c.site for c in task.cases()} == {"A0S9V9": "A", "B1C2D3": "B", "E4F5G6": "D"}
    assert {c.volume for c in task.cases(site="B")} == {"B1C2D3_ED", "B1C2D3_ES"}


def test_slices_of_one_scan_are_one_volume(place):
    official.BUILDERS["synapse"](place / "synapse")
    task = load_task("synapse")
    assert [(c.volume, c.position) for c in task.cases("train")] == [("case0005", 0), ("case0005", 1), ("case0005", 10)]
    assert [(c.volume, c.position) for c in task.cases("test")] == [("case0001", i) for i in range(3)]


def test_dicom_slices_are_sorted_by_position_and_placed(place):
    official.BUILDERS["nci_isbi"](place / "nci_isbi")
    case = load_task("nci_isbi").cases(site="BMC")[0]
    stored = official.itk_as_read(official.random_image((6, 5, 4), 1)).astype(np.float64)
    image = case.image[0].numpy()
    assert np.corrcoef(image.ravel(), stored.ravel())[0, 1] > 0.999  # clipped and scaled, in the same order
    assert case.spacing == pytest.approx((0.5, 0.6, 3.0))
    # ITK's origin (4, -5, 6) points left, back and up: (-4, 5, 6) here, at the far corner of the first two axes.
    np.testing.assert_allclose(case.affine @ [5, 4, 0, 1], [-4, 5, 6, 1], atol=1e-5)


def test_validation_is_held_out_of_training_by_subject(place):
    for number in range(20):
        official.picture_pair(
            place / "glas" / f"train_{number}.bmp", place / "glas" / f"train_{number}_anno.bmp", (16, 16), 0, "numbered"
        )
    task = load_task("glas")
    assert {split: len(task.cases(split)) for split in task.splits} == {"train": 18, "val": 2}
    assert [c.id for c in task.cases("val")] == [c.id for c in load_task("glas").cases("val")]


def test_patches_of_a_section_stay_together(place):
    official.BUILDERS["digestpath_patch"](place / "digestpath_patch")
    cases = load_task("digestpath_patch").cases()
    assert len({c.split for c in cases if c.subject == "a"}) == 1
    assert {c.subject for c in cases} == {"a", "b", "c", "d"}


def test_persons_of_glas_are_held_out_together(place):
    folder = place / "glas"
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for number in range(30):
        stem = f"train_{number}"
        official.picture_pair(folder / f"{stem}.bmp", folder / f"{stem}_anno.bmp", (16, 16), 0, "numbered")
        lines.append(f"{stem},{number % 10}, {'benign' if number % 2 else 'malignant'}, healthy")
    (folder / "Grade.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = load_task("glas")
    held = {int(case.id.removeprefix("train_")) for case in task.cases("val")}
    assert len(held) == 3  # one person of ten
    assert len({number % 10 for number in held}) == 1
    assert {case.id: case.group for case in task.cases()}["train_4"] == "malignant"


def test_images_without_lesion_are_background_everywhere(place):
    official.BUILDERS["digestpath_wsi"](place / "digestpath_wsi")
    task = load_task("digestpath_wsi")
    groups = {case.id: case.group for case in task.cases()}
    assert groups == {"a": "positive", "b": "positive", "c": "positive", "d": "negative"}
    assert task.verify().set_index("case").notes["d"] == "no lesion"
