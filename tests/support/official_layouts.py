"""Small data sets in the layouts of the official ones: one builder per manifest, each returns what it wrote."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import official_pictures  # fills BUILDERS with the picture sets
import SimpleITK
from layout_writing import (
    BUILDERS,
    OBLIQUE,
    Written,
    as_read,
    builder,
    picture_pair,
    random_image,
    random_label,
    save_nifti,
    save_picture,
    volume_pair,
)

__all__ = [
    "BUILDERS",
    "OBLIQUE",
    "as_read",
    "itk_as_read",
    "official_pictures",
    "picture_pair",
    "random_image",
    "save_h5",
    "save_itk",
    "save_nifti",
    "save_picture",
    "save_series",
]


@builder("acdc")
def acdc(folder: Path) -> Written:
    written = {}
    for number, (patient, shape) in enumerate(
        {"patient001": (9, 8, 3), "patient005": (8, 7, 2), "patient007": (7, 9, 4)}.items()
    ):
        home = folder / "training" / patient
        home.mkdir(parents=True)
        (home / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
        save_nifti(home / f"{patient}_4d.nii.gz", random_image((*shape, 3), number))
        for phase, frame in (("ED", "01"), ("ES", "12")):
            stem = home / f"{patient}_frame{frame}"
            label = volume_pair(Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz"), shape, 4, 2 * number + int(frame))
            for index in range(shape[2]):
                written[f"{patient}_{phase}/slice{index:02d}"] = label[:, :, index]
    return written


@builder("mnms")
def mnms(folder: Path) -> Written:
    written = {}
    lines = [",External code,Vendor,VendorName,Centre,ED,ES,Pathology"]
    for number, (code, vendor, part) in enumerate(
        [("A0S9V9", "A", "Training/Labeled"), ("B1C2D3", "B", "Validation"), ("E4F5G6", "D", "Testing")]
    ):
        shape = (7, 8, 2, 5)
        lines.append(f"{number},{code},{vendor},x,1,{number},4,HCM")
        stored = random_label(shape, 4, number)
        save_nifti(folder / part / code / f"{code}_sa.nii.gz", random_image(shape, number))
        save_nifti(folder / part / code / f"{code}_sa_gt.nii.gz", stored)
        for phase, frame in (("ED", number), ("ES", 4)):
            for index in range(2):
                written[f"{code}_{phase}/slice{index:02d}"] = as_read(stored[..., frame])[:, :, index]
    lines.append("3,Z9Z9Z9,C,x,4,1,2,NOR")  # announced, but its labels are not there
    (folder / "211230_table_opendataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return written


def decathlon(folder: Path, stem: str, channels: int, classes: int) -> Written:
    written, entries = {}, []
    for number in (1, 4, 7):
        shape = (6, 7, 5)
        image = random_image((*shape, channels) if channels > 1 else shape, number)
        label = random_label(shape, classes, number)
        save_nifti(folder / "imagesTr" / f"{stem}_{number:03d}.nii.gz", image)
        save_nifti(folder / "labelsTr" / f"{stem}_{number:03d}.nii.gz", label.astype(np.float32))
        entries.append(
            f'{{"image": "./imagesTr/{stem}_{number:03d}.nii.gz", "label": "./labelsTr/{stem}_{number:03d}.nii.gz"}}'
        )
        written[f"{stem}_{number:03d}"] = as_read(label)
    save_nifti(folder / "imagesTs" / f"{stem}_002.nii.gz", random_image((6, 7, 5), 2))
    (folder / "imagesTr" / f"._{stem}_001.nii.gz").write_bytes(b"Mac OS X")
    (folder / "dataset.json").write_text(f'{{"name": "x", "training": [{", ".join(entries)}], "test": []}}')
    return written


@builder("msd_hippocampus")
def msd_hippocampus(folder: Path) -> Written:
    return decathlon(folder, "hippocampus", 1, 3)


@builder("msd_prostate")
def msd_prostate(folder: Path) -> Written:
    return decathlon(folder, "prostate", 2, 3)


@builder("prostate_saml")
def prostate_saml(folder: Path) -> Written:
    written = {}
    for number, site in enumerate(("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")):
        for case in range(2):
            word = "Segmentation" if site == "BMC" and case else "segmentation"
            home = folder / site
            label = volume_pair(
                home / f"Case{case:02d}.nii.gz",
                home / f"Case{case:02d}_{word}.nii.gz",
                (6, 5, 4),
                3 if number < 2 else 2,
                number + 9 * case,
            )
            written[f"{site}_{case:02d}"] = (label > 0).astype(np.uint8)
    return written


@builder("btcv")
def btcv(folder: Path) -> Written:
    home = folder / "RawData" / "Training"
    return {
        f"case{number}": volume_pair(
            home / "img" / f"img{number}.nii.gz", home / "label" / f"label{number}.nii.gz", (6, 7, 5), 14, int(number)
        )
        for number in ("0001", "0005")
    }


@builder("harp")
def harp(folder: Path) -> Written:
    return {
        f"s{number}": volume_pair(
            folder / site / "images" / f"s{number}.nii.gz",
            folder / site / "labels" / f"s{number}.nii.gz",
            (6, 7, 5),
            2,
            number,
        )
        for number, site in enumerate(("1.5T", "1.5T", "3T"))
    }


@builder("hisub25")
def hisub25(folder: Path) -> Written:
    return {
        f"S{number:02d}": volume_pair(
            folder / "images" / f"S{number:02d}.nii.gz",
            folder / "labels" / f"S{number:02d}.nii.gz",
            (6, 7, 5),
            4,
            number,
        )
        for number in range(3)
    }


def save_itk(path: Path, array: np.ndarray) -> None:
    """`array` is x, y, z; spacing 0.5 x 0.6 x 3 mm, turned so that the first axis points to the right hand side."""
    image = SimpleITK.GetImageFromArray(np.transpose(array))
    image.SetSpacing((0.5, 0.6, 3.0))
    image.SetOrigin((4.0, -5.0, 6.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def itk_as_read(array: np.ndarray) -> np.ndarray:
    """ITK's first axis points left and its second to the back; volumes are read to the right and to the front."""
    return array[::-1, ::-1]


@builder("promise12")
def promise12(folder: Path) -> Written:
    written = {}
    for number in range(3):
        label = random_label((6, 5, 4), 2, number)
        save_itk(folder / "TrainingData" / f"Case{number:02d}.mhd", random_image((6, 5, 4), number))
        save_itk(folder / "TrainingData" / f"Case{number:02d}_segmentation.mhd", label)
        written[f"Case{number:02d}"] = itk_as_read(label)
    return written


def save_series(folder: Path, array: np.ndarray, skip: int | None = None) -> None:
    """A DICOM series, one file per slice, written in an order that is not that of the slices."""
    folder.mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(array.shape[2]):
        if index == skip:
            continue
        image = SimpleITK.GetImageFromArray(np.transpose(array[:, :, index : index + 1]).astype(np.int16))
        image.SetSpacing((0.5, 0.6, 3.0))
        position = (4.0, -5.0, 6.0 + 3.0 * index)
        tags = {
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(index),
            "0008|0018": f"1.2.3.4.{index}",
            "0018|0050": "3.0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(index * 7 + 3) % 100:03d}.dcm"))
        writer.Execute(image)


@builder("nci_isbi")
def nci_isbi(folder: Path) -> Written:
    written = {}
    for number, (stem, site) in enumerate({"Prostate3T-01-0001": "RUNMC", "ProstateDx-01-0002": "BMC"}.items()):
        label = random_label((6, 5, 4), 3, number)
        save_series(folder / "images" / stem, random_image((6, 5, 4), number))
        save_itk(folder / "labels" / f"{stem}.nrrd", label)
        written[f"{site}_{stem.split('-', 1)[1]}"] = itk_as_read(label)
    return written


def save_h5(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label


@builder("synapse")
def synapse(folder: Path) -> Written:
    written = {}
    (folder / "train_npz").mkdir(parents=True)
    for index in (0, 1, 10):
        label = random_label((12, 9), 9, index)
        np.savez(
            folder / "train_npz" / f"case0005_slice{index:03d}.npz",
            image=random_image((12, 9), index) / 900.0,
            label=label.astype(np.float32),
        )
        written[f"case0005_slice{index:03d}"] = label
    label = random_label((3, 12, 9), 9, 77)
    save_h5(folder / "test_vol_h5" / "case0001.npy.h5", random_image((3, 12, 9), 5) / 900.0, label.astype(np.float32))
    return {**written, **{f"case0001/slice{index:02d}": label[index] for index in range(3)}}


@builder("acdc_slices")
def acdc_slices(folder: Path) -> Written:
    written = {}
    for position in (1, 2):
        label = random_label((9, 8), 4, position)
        stem = f"patient001_frame01_slice_{position}"
        save_h5(folder / "ACDC_training_slices" / f"{stem}.h5", random_image((9, 8), position) / 900.0, label)
        written[stem] = label
    label = random_label((2, 9, 8), 4, 7)
    save_h5(folder / "ACDC_training_volumes" / "patient007_frame02.h5", random_image((2, 9, 8), 7) / 900.0, label)
    # the release holds both forms of every patient: neither a volume to train on nor a slice to test on is a case
    for name, shape in (("volumes/patient001_frame01", (2, 9, 8)), ("slices/patient007_frame02_slice_1", (9, 8))):
        save_h5(folder / f"ACDC_training_{name}.h5", random_image(shape, 9) / 900.0, random_label(shape, 4, 9))
    return {**written, **{f"patient007_frame02/slice{index:02d}": label[index] for index in range(2)}}


@builder("acdc_c")
def acdc_c(folder: Path) -> Written:
    written = {}
    for number, site in enumerate(("bias", "ghosting", "motion", "spike")):
        (folder / site).mkdir(parents=True)
        label = random_label((2, 9, 8), 4, number)
        np.savez(
            folder / site / "patient007_ED_0.npz", image=random_image((2, 9, 8), number) / np.float32(900), label=label
        )
        written |= {f"{site}/patient007_ED_0/slice{index:02d}": label[index] for index in range(2)}
    return written
