"""Official data sets with a piece missing or damaged: each is refused with a message that names it, or found by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import official_layouts as official
import pytest

from toolkit import load_task
from toolkit.data.images import fill, read_polygons
from toolkit.data.volumes import read_itk
from toolkit.errors import ConfigError, DataError


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def acdc_without_frame(folder: Path) -> None:
    (folder / "training/patient001/patient001_frame12.nii.gz").unlink()


def acdc_without_label(folder: Path) -> None:
    (folder / "training/patient001/patient001_frame01_gt.nii.gz").unlink()


def acdc_without_phase(folder: Path) -> None:
    edit(folder / "training/patient001/Info.cfg", "ES: 12\n", "")


def acdc_words_for_frames(folder: Path) -> None:
    edit(folder / "training/patient001/Info.cfg", "ES: 12", "ES: ../12")


def acdc_binary_info(folder: Path) -> None:
    (folder / "training/patient001/Info.cfg").write_bytes(b"\xff\xfe\x00ED")


def acdc_empty_info(folder: Path) -> None:
    (folder / "training/patient001/Info.cfg").write_bytes(b"")


def acdc_patients_of_no_list(folder: Path) -> None:
    for path in sorted((folder / "training").iterdir()):
        for file in path.iterdir():
            file.rename(file.with_name(file.name.replace("patient", "person")))
        path.rename(path.with_name(path.name.replace("patient", "person")))


def acdc_other_grid(folder: Path) -> None:
    official.save_nifti(
        folder / "training/patient001/patient001_frame01_gt.nii.gz", np.zeros((9, 8, 3), np.uint8), np.eye(4)
    )


def acdc_cut_off(folder: Path) -> None:
    path = folder / "training/patient001/patient001_frame01.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


def mnms_without_table(folder: Path) -> None:
    next(folder.glob("*.csv")).unlink()


def mnms_two_tables(folder: Path) -> None:
    (folder / "copy.csv").write_bytes(next(folder.glob("*.csv")).read_bytes())


def mnms_frame_beyond(folder: Path) -> None:
    edit(next(folder.glob("*.csv")), "A,x,1,0,4", "A,x,1,0,9")


def mnms_no_frame(folder: Path) -> None:
    edit(next(folder.glob("*.csv")), "A,x,1,0,4", "A,x,1,,4")


def mnms_unknown_vendor(folder: Path) -> None:
    edit(next(folder.glob("*.csv")), "A0S9V9,A,", "A0S9V9,Q,")


def mnms_without_image(folder: Path) -> None:
    next(folder.rglob("A0S9V9_sa.nii.gz")).unlink()


def decathlon_no_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("{not json")


def decathlon_deep_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("[" * 100_000)


def decathlon_without_list(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"test": []}')


def decathlon_outside(folder: Path) -> None:
    entry = {"image": "../secret.nii.gz", "label": "labelsTr/hippocampus_001.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({"training": [entry]}))


def decathlon_twice(folder: Path) -> None:
    table = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({"training": table["training"] * 2}))


def decathlon_file_gone(folder: Path) -> None:
    next((folder / "labelsTr").iterdir()).unlink()


def decathlon_soft_label(folder: Path) -> None:
    path = folder / "labelsTr" / "hippocampus_001.nii.gz"
    official.save_nifti(path, np.full((6, 7, 5), 0.5, np.float32))


def saml_without_label(folder: Path) -> None:
    (folder / "HK" / "Case01_segmentation.nii.gz").unlink()


def saml_third_zone(folder: Path) -> None:
    official.save_nifti(folder / "HK/Case00_segmentation.nii.gz", np.full((6, 5, 4), 3, np.uint8))


def synapse_pickle(folder: Path) -> None:
    np.savez(folder / "train_npz/case0005_slice000.npz", image=np.array([{}], dtype=object), label=np.zeros((2, 2)))


def synapse_no_hdf5(folder: Path) -> None:
    (folder / "test_vol_h5/case0001.npy.h5").write_bytes(b"\x89HDF\r\n" + b"0" * 99)


def synapse_cut_off(folder: Path) -> None:
    path = folder / "test_vol_h5/case0001.npy.h5"
    path.write_bytes(path.read_bytes()[:-700])


def synapse_without_array(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]


def synapse_external_link(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]
        file["image"] = h5py.ExternalLink("elsewhere.h5", "/image")


def synapse_external_storage(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]
        file.create_dataset("image", (3, 12, 9), "f4", external=[("/etc/hostname", 0, 3 * 12 * 9 * 4)])


def synapse_text_array(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]
        file["image"] = "a text"


def synapse_giant(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]
        file.create_dataset("image", (2**11, 2**11, 2**11), "f4", chunks=True)


def synapse_four_axes(folder: Path) -> None:
    with h5py.File(folder / "test_vol_h5/case0001.npy.h5", "a") as file:
        del file["image"]
        file["image"] = np.zeros((1, 3, 12, 9), np.float32)


def monuseg_xml(folder: Path, text: str) -> None:
    next((folder / "train/Annotations").iterdir()).write_text(text)


def region(*corners: tuple[object, object]) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
    return f"<A><Region><Vertices>{vertices}</Vertices></Region></A>"


def monuseg_entities(folder: Path) -> None:
    monuseg_xml(folder, '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><A>&x;</A>')


def monuseg_cut_off(folder: Path) -> None:
    monuseg_xml(folder, "<Annotations><Annot")


def monuseg_no_regions(folder: Path) -> None:
    monuseg_xml(folder, "<Annotations/>")


def monuseg_two_corners(folder: Path) -> None:
    monuseg_xml(folder, region((1, 1), (3, 3)))


def monuseg_no_number(folder: Path) -> None:
    monuseg_xml(folder, region((1, 1), ("two", 3), (4, 4)))


def monuseg_nan(folder: Path) -> None:
    monuseg_xml(folder, region((1, 1), ("nan", 3), (4, 4)))


def monuseg_other_picture(folder: Path) -> None:
    monuseg_xml(folder, region((900, 900), (910, 900), (900, 910)))


def monuseg_outline_gone(folder: Path) -> None:
    next((folder / "train/Annotations").iterdir()).unlink()


def kvasir_missing_listed(folder: Path) -> None:
    (folder / "images/cju0.jpg").unlink()


def kvasir_two_lists(folder: Path) -> None:
    (folder / "val.txt").write_text("cju0.jpg\n")


def kvasir_other_size(folder: Path) -> None:
    official.save_picture(folder / "masks/cju0.jpg", np.zeros((20, 20), np.uint8))


def glas_without_mask(folder: Path) -> None:
    (folder / "train_1_anno.bmp").unlink()


def dicom_slice_missing(folder: Path) -> None:
    series = folder / "images/Prostate3T-01-0001"
    for file in series.iterdir():
        file.unlink()
    series.rmdir()
    official.save_series(series, official.random_image((6, 5, 4), 0), skip=1)


def dicom_two_series(folder: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.zeros((1, 5, 6), np.int16))
    image.SetMetaData("0020|000e", "1.2.3.99")
    SimpleITK.WriteImage(image, str(folder / "images/Prostate3T-01-0001/other.dcm"))


def dicom_none(folder: Path) -> None:
    for file in (folder / "images/Prostate3T-01-0001").iterdir():
        file.write_bytes(b"no dicom")


def mhd_without_raw(folder: Path) -> None:
    (folder / "TrainingData/Case00.raw").unlink()


def mhd_label_elsewhere(folder: Path) -> None:
    official.save_itk(folder / "TrainingData/Case00_segmentation.mhd", np.zeros((6, 5, 3), np.uint8))


BAD = {
    acdc_without_frame: "missing, for example training/patient001/patient001_frame12.nii.gz",
    acdc_without_label: "missing, for example .*frame01_gt.nii.gz",
    acdc_without_phase: "names no frame for ES",
    acdc_words_for_frames: "names no frame for ES",
    acdc_binary_info: "is not a text",
    acdc_empty_info: "0 bytes",
    acdc_patients_of_no_list: "None of the subjects",
    acdc_other_grid: "lie at different places",
    acdc_cut_off: "not a complete NIfTI",
    mnms_without_table: "There are 0 tables",
    mnms_two_tables: "There are 2 tables",
    mnms_frame_beyond: r"\(7, 8, 2, 5\)",
    mnms_no_frame: "Row 2 names no frame for ED",
    mnms_unknown_vendor: "site 'Q', which is not listed",
    mnms_without_image: "missing, for example .*A0S9V9_sa.nii.gz",
    decathlon_no_json: "not a description of a data set",
    decathlon_deep_json: "not a description of a data set",
    decathlon_without_list: "not a list of cases .KeyError",
    decathlon_outside: "names a file elsewhere",
    decathlon_twice: "names an image twice",
    decathlon_file_gone: "missing, for example labelsTr/",
    decathlon_soft_label: "does not list: 0.5",
    saml_without_label: "missing, for example HK/Case01_segmentation.nii.gz",
    saml_third_zone: "does not list: 3",
    synapse_pickle: "Object arrays cannot be loaded",
    synapse_no_hdf5: "not a readable HDF5",
    synapse_cut_off: "not a readable HDF5",
    synapse_without_array: "no array called image",
    synapse_external_link: "lies in another file",
    synapse_external_storage: "lies in another file",
    synapse_text_array: "no array of numbers",
    synapse_giant: "gives image the shape",
    synapse_four_axes: "4 spatial axes",
    monuseg_entities: "document type or entities",
    monuseg_cut_off: "not an XML file of outlines",
    monuseg_no_regions: "has no regions",
    monuseg_two_corners: "has 2 corners",
    monuseg_no_number: "not an XML file of outlines",
    monuseg_nan: "no numbers",
    monuseg_other_picture: "lies outside the picture",
    monuseg_outline_gone: "missing, for example train/Annotations/.*xml",
    kvasir_missing_listed: "names? 1 images that are not there",
    kvasir_two_lists: "is in train and in val",
    kvasir_other_size: "and its label",
    glas_without_mask: "missing, for example train_1_anno.bmp",
    dicom_slice_missing: "3 to 6 mm apart",
    dicom_two_series: "2 DICOM series",
    dicom_none: "0 DICOM series",
    mhd_without_raw: "SimpleITK cannot read",
    mhd_label_elsewhere: "different shapes",
}
SETS = {
    "acdc": "acdc",
    "mnms": "mnms",
    "decathlon": "msd_hippocampus",
    "saml": "prostate_saml",
    "synapse": "synapse",
    "monuseg": "monuseg",
    "kvasir": "kvasir_seg",
    "glas": "glas",
    "dicom": "nci_isbi",
    "mhd": "promise12",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda make: make.__name__)
def test_bad_data_sets_are_refused(spoil, place):
    name = SETS[spoil.__name__.split("_")[0]]
    folder = place / name
    official.BUILDERS[name](folder)
    spoil(folder)
    before = sorted(str(path) for path in place.rglob("*"))
    with pytest.raises(DataError, match=BAD[spoil]) as caught:  # noqa: PT012 - headers or voxels
        for case in load_task(name).cases():
            case.label_array()
    assert caught.value.where
    assert sorted(str(path) for path in place.rglob("*")) == before


def test_labels_without_upper_case_are_found_in_bmc(place):
    official.BUILDERS["prostate_saml"](place / "prostate_saml")
    case = next(c for c in load_task("prostate_saml").cases(site="BMC") if c.id == "BMC_01")
    assert "Case01_Segmentation" in case.source


def test_dicom_without_simpleitk_says_what_to_install(place, monkeypatch):
    official.BUILDERS["promise12"](place / "promise12")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ConfigError, match="need the package SimpleITK"):
        load_task("promise12")


def test_hdf5_without_h5py_says_what_to_install(place, monkeypatch):
    official.BUILDERS["acdc_slices"](place / "acdc_slices")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match="need the package h5py"):
        load_task("acdc_slices")


def test_itk_and_nibabel_place_the_same_volume_in_the_same_world(tmp_path):
    """An oblique volume written by nibabel and read through SimpleITK: the other library is the check."""
    array = official.random_image((6, 7, 5), 3)
    official.save_nifti(tmp_path / "v.nii.gz", array)
    values, geometry = read_itk(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(values, official.as_read(array))
    stored = nibabel.load(tmp_path / "v.nii.gz")
    np.testing.assert_allclose(geometry.affine @ [5, 0, 0, 1], stored.affine @ [0, 0, 0, 1], atol=1e-4)
    np.testing.assert_allclose(geometry.affine @ [0, 6, 4, 1], stored.affine @ [5, 6, 4, 1], atol=1e-4)


def test_polygons_are_filled_as_matplotlib_does(tmp_path):
    from matplotlib.path import Path as Outline

    random = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(random.uniform(0, 2 * np.pi, 17))
        radius = random.uniform(3, 14, 17)
        corners = np.stack([20 + radius * np.cos(angles), 15 + radius * np.sin(angles)], axis=1)
        rows, columns, inside = fill(corners, (30, 40))
        mask = np.zeros((30, 40), bool)
        mask[rows, columns] = inside
        y, x = np.mgrid[:30, :40] + 0.5
        expected = Outline(corners).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(30, 40)
        np.testing.assert_array_equal(mask, expected)


def test_overlapping_outlines_keep_the_first(tmp_path):
    path = tmp_path / "o.xml"
    one, two = region((0, 0), (4, 0), (4, 4), (0, 4)), region((2, 2), (9, 2), (9, 9), (2, 9))
    path.write_text(f"<R>{one}{two}</R>")
    objects = read_polygons(path, (8, 8))
    assert objects[3, 3] == 1
    assert objects[7, 7] == 2
    assert int((objects == 1).sum()) == 16
    assert int((objects == 2).sum()) == 36 - 4
