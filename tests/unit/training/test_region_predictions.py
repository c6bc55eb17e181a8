"""Predictions of overlapping regions as files: one mask a region, in the geometry of the image."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import toolkit as tk

REGIONS = {"whole tumour": (1, 2), "core": (2,)}
AFFINE = np.array([[0, -1.5, 0, 3], [2, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]], dtype=float)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_volume_is_a_folder_with_a_mask_a_region(tmp_path: Path, dims: int) -> None:
    random = np.random.default_rng(0)
    rows = []
    for index, split in enumerate(("train", "train", "test")):
        label = np.zeros((16, 12, 8), np.uint8)
        label[4:9, 3:8, 2:6], label[5:7, 4:6, 3:5] = 1, 2
        image = label + 0.3 * random.normal(size=label.shape)
        place = {kind: tmp_path / f"{kind}{index}.nii.gz" for kind in ("image", "label")}
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), AFFINE), place["image"])
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), place["label"])
        rows.append({**place, "subject": f"p{index}", "split": split})
    classes = {0: "background", 1: "oedema", 2: "core"}
    task = tk.task_from_table(rows, classes=classes, regions=REGIONS, dims=dims)
    torch.manual_seed(0)
    model = tk.unet(1, 2, channels=(4, 8), dims=dims)
    config = {"steps": 1, "batch_size": 1, "validate_every": 0, "select": "last", "patch_size": (8,) * dims}
    run = tk.train(model, task, config=config, out=tmp_path / "run", progress=False)
    cases = task.cases("test")
    ((name, masks),) = run.predict(cases).items()
    assert masks.shape[0] == 2
    files = run.predict(cases, out=tmp_path / "out")
    assert files == {name: tmp_path / "out" / files[name].name}
    written = {path.name: nibabel.load(path) for path in files[name].iterdir()}
    assert len(written) == 2
    whole, core = (written[next(n for n in written if word in n)] for word in ("whole", "core"))
    for image, mask in ((whole, masks[0]), (core, masks[1])):
        assert image.shape == (16, 12, 8)
        np.testing.assert_allclose(image.affine, AFFINE)
        stored = np.asarray(image.dataobj)
        assert set(np.unique(stored)) <= {0, 1}
        assert stored.sum() == mask.sum()
    assert 0 < masks.sum() < masks.size
