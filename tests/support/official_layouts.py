"""Small data sets in the layouts of the official ones: one builder per manifest, each returns what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import SimpleITK
from PIL import Image

Written = dict[str, np.ndarray]
Builder = Callable[[Path], Written]
BUILDERS: dict[str, Builder] = {}

# Oblique: turned by 20 degrees about the first axis, stored feet first, with a shift.
TURN = np.deg2rad(20)
OBLIQUE = np.array(
    [
        [-1.5, 0, 0, 30],
        [0, 1.25 * np.cos(TURN), -8 * np.sin(TURN), -12],
        [0, 1.25 * np.sin(TURN), 8 * np.cos(TURN), 7],
        [0, 0, 0, 1],
    ]
)


def builder(name: str) -> Callable[[Builder], Builder]:
    def keep(build: Builder) -> Builder:
        BUILDERS[name] = build
        return build

    return keep


def random_label(shape: tuple[int, ...], classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1000).integers(0, 900, shape).astype(np.int16)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def as_read(stored: np.ndarray) -> np.ndarray:
    """What a file with the oblique affine must be read as: the first axis points left and is turned round."""
    return stored[::-1]


def volume_pair(image: Path, label: Path, shape: tuple[int, ...], classes: int, seed: int) -> np.ndarray:
    stored = random_label(shape, classes, seed)
    save_nifti(image, random_image(shape, seed))
    save_nifti(label, stored)
    return as_read(stored)


def save_picture(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def picture_pair(
    image: Path, mask: Path, shape: tuple[int, int], seed: int, coding: str = "255"
) -> np.ndarray:
    """An RGB picture and a mask of two rectangles in one of several codings; returns the classes."""
    truth = np.zeros(shape, np.uint8)
    truth[: shape[0] // 2, : shape[1] // 2] = 1
    truth[-8:, -8 - seed :] = 1
    save_picture(image, random_image((*shape, 3), seed).astype(np.uint8))
    numbered = truth.copy()
    numbered[-8:, -8 - seed :] = 2
    stored = {"255": truth * 255, "numbered": numbered, "jpeg": np.stack([truth * 255] * 3, -1)}[coding]
    save_picture(mask, stored, **({"quality": 100, "subsampling": 0} if coding == "jpeg" else {}))
    return truth


@builder("acdc")
def acdc(folder: Path) -> Written:
    written = {}
    for number, (patient, shape) in enumerate(
        {"patient001": (9, 8, 3), "patient005": (8, 7, 2), "patient007": (7, 9, 4)}.items()
    ):
        home = folder / "training" / patient
        home.mkdir(parents=True)
        (home / "Info.cfg").write_text(
            "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
        for phase, frame in (("ED", "01"), ("ES", "12")):
            stem = home / f"{patient}_frame{frame}"
            label = volume_pair(
                Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz"), shape, 4, 2 * number + int(frame)
            )
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
                home / f"Case{case:02d}.nii.gz", home / f"Case{case:02d}_{word}.nii.gz", (6, 5, 4), 3 if number < 2 else 2, number + 9 * case
            )  # fmt: skip
            written[f"{site}_{case:02d}"] = (label > 0).astype(np.uint8)
    return written


@builder("btcv")
def btcv(folder: Path) -> Written:
    home = folder / "RawData" / "Training"
    return {
        f"case{number}": volume_pair(home / "img" / f"img{number}.nii.gz", home / "label" / f"label{number}.nii.gz", (6, 7, 5), 14, int(number))
        for number in ("0001", "0005")
    }  # fmt: skip


@builder("harp")
def harp(folder: Path) -> Written:
    return {
        f"s{number}": volume_pair(folder / site / "images" / f"s{number}.nii.gz", folder / site / "labels" / f"s{number}.nii.gz", (6, 7, 5), 2, number)
        for number, site in enumerate(("1.5T", "1.5T", "3T"))
    }  # fmt: skip


@builder("hisub25")
def hisub25(folder: Path) -> Written:
    return {
        f"S{number:02d}": volume_pair(folder / "images" / f"S{number:02d}.nii.gz", folder / "labels" / f"S{number:02d}.nii.gz", (6, 7, 5), 4, number)
        for number in range(3)
    }  # fmt: skip


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
            "0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(index), "0008|0018": f"1.2.3.4.{index}",
            "0018|0050": "3.0",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(index * 7 + 3) % 100:03d}.dcm"))
        writer.Execute(image)


@builder("nci_isbi")
def nci_isbi(folder: Path) -> Written:
    written = {}
    for number, (stem, site) in enumerate(
        {"Prostate3T-01-0001": "RUNMC", "ProstateDx-01-0002": "BMC"}.items()
    ):
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
        written[f"case0005_slice{index:03d}"] = label  # fmt: skip
    label = random_label((3, 12, 9), 9, 77)
    save_h5(
        folder / "test_vol_h5" / "case0001.npy.h5",
        random_image((3, 12, 9), 5) / 900.0,
        label.astype(np.float32),
    )
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
    save_h5(
        folder / "ACDC_training_volumes" / "patient007_frame02.h5", random_image((2, 9, 8), 7) / 900.0, label
    )
    return {**written, **{f"patient007_frame02/slice{index:02d}": label[index] for index in range(2)}}


@builder("acdc_c")
def acdc_c(folder: Path) -> Written:
    written = {}
    for number, site in enumerate(("bias", "ghosting", "motion", "spike")):
        (folder / site).mkdir(parents=True)
        label = random_label((2, 9, 8), 4, number)
        np.savez(
            folder / site / "patient007_ED_0.npz",
            image=random_image((2, 9, 8), number) / np.float32(900),
            label=label,
        )
        written |= {f"{site}/patient007_ED_0/slice{index:02d}": label[index] for index in range(2)}
    return written


@builder("glas")
def glas(folder: Path) -> Written:
    return {
        stem: picture_pair(folder / f"{stem}.bmp", folder / f"{stem}_anno.bmp", (33, 41), number, "numbered")
        for number, stem in enumerate(["train_1", "train_2", "testA_1", "testB_1"])
    }


@builder("monuseg")
def monuseg(folder: Path) -> Written:
    written = {}
    for number, (name, place, outlines) in enumerate(
        [("TCGA-18-5592-01Z-00-DX1", "train/Tissue Images", "train/Annotations"), ("TCGA-AA-1111-01Z-00-DX1", "test", "test")]
    ):  # fmt: skip
        save_picture(folder / place / f"{name}.tif", random_image((30, 40, 3), number).astype(np.uint8))
        corners = [(5, 4), (15, 4), (15, 12), (5, 12)]
        triangle = [(20.0, 20.0), (30.0, 20.0), (20.0, 30.0)]
        regions = "".join(
            f'<Region Id="{i}"><Vertices>' + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in shape) + "</Vertices></Region>"
            for i, shape in enumerate((corners, triangle), start=1)
        )  # fmt: skip
        (folder / outlines).mkdir(parents=True, exist_ok=True)
        (folder / outlines / f"{name}.xml").write_text(
            f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>"
        )
        truth = np.zeros((30, 40), np.uint8)
        truth[4:12, 5:15] = 1
        for row in range(10):  # centres (x, y) with x + y < 50
            truth[20 + row, 20 : 20 + 9 - row] = 1
        written[name] = truth
    return written


@builder("kvasir_seg")
def kvasir_seg(folder: Path) -> Written:
    written = {
        stem: picture_pair(
            folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}.jpg", (48, 40), number, "jpeg"
        )
        for number, stem in enumerate(["cju0", "cju1", "cju2"])
    }
    (folder / "train.txt").write_text("cju0.jpg\ncju2.jpg\n")
    (folder / "val.txt").write_text("cju1.jpg\n")
    return written


@builder("kvasir_sessile")
def kvasir_sessile(folder: Path) -> Written:
    written = kvasir_seg(folder)
    (folder / "train.txt").write_text("cju0\n")
    (folder / "test.txt").write_text("cju2\n")
    return written


@builder("isic_2016")
def isic_2016(folder: Path) -> Written:
    written = {}
    for number, part in enumerate(["Training", "Test"]):
        root = folder / f"ISBI2016_ISIC_Part1_{part}_Data"
        masks = folder / f"ISBI2016_ISIC_Part1_{part}_GroundTruth"
        name = f"ISIC_000000{number}"
        written[name] = picture_pair(
            root / f"{name}.jpg", masks / f"{name}_Segmentation.png", (35, 50), number
        )
    return written


@builder("isic_2017")
def isic_2017(folder: Path) -> Written:
    written = {}
    for number, part in enumerate(["Training", "Validation", "Test_v2"]):
        root, masks = folder / f"ISIC-2017_{part}_Data", folder / f"ISIC-2017_{part}_Part1_GroundTruth"
        name = f"ISIC_000000{number}"
        written[name] = picture_pair(
            root / f"{name}.jpg", masks / f"{name}_segmentation.png", (35, 50), number
        )
        save_picture(root / f"{name}_superpixels.png", np.zeros((35, 50, 3), np.uint8))
    return written


@builder("digestpath_wsi")
def digestpath_wsi(folder: Path) -> Written:
    return {
        stem: picture_pair(
            folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}_mask.jpg", (40, 48), number, "jpeg"
        )
        for number, stem in enumerate(["a", "b", "c"])
    }


@builder("digestpath_patch")
def digestpath_patch(folder: Path) -> Written:
    return {
        stem: picture_pair(
            folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.png", (32, 32), number
        )
        for number, stem in enumerate(["a__0_0", "a__0_32", "b__0_0", "c__64_0"])
    }


@builder("ebhi_seg")
def ebhi_seg(folder: Path) -> Written:
    return {
        f"{group}/{name}": picture_pair(folder / group / "image" / f"{name}.png", folder / group / "label" / f"{name}.png", (32, 32), number)
        for number, (group, name) in enumerate([("Adenocarcinoma", "x1"), ("Normal", "x1"), ("Polyp", "x2")])
    }  # fmt: skip
