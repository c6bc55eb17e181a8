"""Small data sets in the layouts of the official picture sets: one builder per manifest, each returns what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from layout_writing import Written, builder, picture_pair, random_image, save_picture


@builder("glas")
def glas(folder: Path) -> Written:
    written = {
        stem: picture_pair(folder / f"{stem}.bmp", folder / f"{stem}_anno.bmp", (33, 41), number, "numbered")
        for number, stem in enumerate(["train_1", "train_2", "testA_1", "testB_1"])
    }
    # Blanks after the commas, as in the release.
    (folder / "Grade.csv").write_text(
        "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n"
        "testA_1,4, benign, adenomatous\ntestB_1,5, benign, healthy\n"
        "train_1,2, malignant, moderately differentiated\ntrain_2,4, benign, healthy\n",
        encoding="utf-8",
    )
    return written


@builder("monuseg")
def monuseg(folder: Path) -> Written:
    written = {}
    for number, (name, place, outlines) in enumerate(
        [
            ("TCGA-18-5592-01Z-00-DX1", "train/Tissue Images", "train/Annotations"),
            ("TCGA-AA-1111-01Z-00-DX1", "test", "test"),
        ]
    ):
        save_picture(folder / place / f"{name}.tif", random_image((30, 40, 3), number).astype(np.uint8))
        corners = [(5, 4), (15, 4), (15, 12), (5, 12)]
        triangle = [(20.0, 20.0), (30.0, 20.0), (20.0, 30.0)]
        regions = "".join(
            f'<Region Id="{i}"><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in shape)
            + "</Vertices></Region>"
            for i, shape in enumerate((corners, triangle), start=1)
        )
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


@builder("dsb2018")
def dsb2018(folder: Path) -> Written:
    written = {}
    for number, (stem, channels) in enumerate([("a1" * 32, 1), ("b2" * 32, 3), ("c3" * 32, 1)]):
        home = folder / "stage1_train" / stem
        grey = random_image((30, 40), number).astype(np.uint8)
        colours = [grey] * 3 if channels == 1 else [np.roll(grey, k, 0) for k in range(3)]
        opaque = np.full_like(grey, 255)  # the release stores all images with a constant alpha
        save_picture(home / "images" / f"{stem}.png", np.stack([*colours, opaque], axis=-1))
        truth = np.zeros((30, 40), np.uint8)
        for nucleus in range(number + 1):
            mask = np.zeros((30, 40), np.uint8)
            mask[4 + 7 * nucleus : 12 + 7 * nucleus, 5:15] = 255  # neighbours share a row
            save_picture(home / "masks" / f"{nucleus}f.png", mask)
            truth[mask > 0] = 1
        written[stem[:12]] = truth
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
        written[name] = picture_pair(root / f"{name}.jpg", masks / f"{name}_Segmentation.png", (35, 50), number)
    return written


@builder("isic_2017")
def isic_2017(folder: Path) -> Written:
    written = {}
    for number, part in enumerate(["Training", "Validation", "Test_v2"]):
        root, masks = folder / f"ISIC-2017_{part}_Data", folder / f"ISIC-2017_{part}_Part1_GroundTruth"
        name = f"ISIC_000000{number}"
        written[name] = picture_pair(root / f"{name}.jpg", masks / f"{name}_segmentation.png", (35, 50), number)
        save_picture(root / f"{name}_superpixels.png", np.zeros((35, 50, 3), np.uint8))
    return written


@builder("digestpath_wsi")
def digestpath_wsi(folder: Path) -> Written:
    save_picture(folder / "negatives" / "d.jpg", random_image((40, 48, 3), 9).astype(np.uint8))
    return {
        stem: picture_pair(
            folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}_mask.jpg", (40, 48), number, "jpeg"
        )
        for number, stem in enumerate(["a", "b", "c"])
    } | {"d": np.zeros((40, 48), np.uint8)}


@builder("digestpath_patch")
def digestpath_patch(folder: Path) -> Written:
    save_picture(folder / "negatives" / "d__0_32.png", random_image((32, 32, 3), 9).astype(np.uint8))
    return {
        stem: picture_pair(folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.png", (32, 32), number)
        for number, stem in enumerate(["a__0_0", "a__0_32", "b__0_0", "c__64_0"])
    } | {"d__0_32": np.zeros((32, 32), np.uint8)}


@builder("ebhi_seg")
def ebhi_seg(folder: Path) -> Written:
    return {
        f"{group}/{name}": picture_pair(
            folder / group / "image" / f"{name}.png", folder / group / "label" / f"{name}.png", (32, 32), number
        )
        for number, (group, name) in enumerate([("Adenocarcinoma", "x1"), ("Normal", "x1"), ("Polyp", "x2")])
    }
