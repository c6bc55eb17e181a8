"""A run whose data lie elsewhere by now, and predictions whose names would meet in one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import toolkit as tk
from toolkit.errors import CheckpointError
from toolkit.files import distinct_names
from toolkit.training.directory import default_path

CLASSES = ["background", "disc"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(6):
        for kind in ("images", "labels"):
            (tmp_path / "cluster" / kind).mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "cluster" / "images" / f"x{number}.png")
        Image.fromarray((image > 128).astype(np.uint8)).save(tmp_path / "cluster" / "labels" / f"x{number}.png")
    return tmp_path / "cluster"


def task_of(folder: Path, **settings):
    splits = {"train": ["x0", "x1", "x2", "x3"], "val": ["x4"], "test": ["x5"]}
    return tk.task_from_folder(folder / "images", folder / "labels", classes=CLASSES, splits=splits, **settings)


def test_a_run_is_opened_where_its_data_lie_now(folder, tmp_path):
    config = {"steps": 2, "batch_size": 2, "threads": 1}
    tk.train(tk.unet(1, 2, channels=(4, 8)), task_of(folder), config=config, out=tmp_path / "run", progress=False)
    laptop = folder.rename(tmp_path / "laptop")
    shutil.move(tmp_path / "run", tmp_path / "runs" / "first")
    assert tk.load_model(tmp_path / "runs" / "first") is not None  # needs no data
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        tk.load_run(tmp_path / "runs" / "first")
    assert "load_run(path, task=...)" in caught.value.fix
    run = tk.load_run(tmp_path / "runs" / "first", task=task_of(laptop))
    assert len(run.predict(run.task.cases("test"))) == 1
    assert tk.resume(tmp_path / "runs" / "first", task=task_of(laptop), progress=False).finished

    other = task_of(laptop, flips=(0,), normalisation="range")
    with pytest.raises(CheckpointError, match="zscore-clip there, range here"):
        tk.load_run(tmp_path / "runs" / "first", task=other)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(laptop / "labels" / "x2.png")
    with pytest.raises(CheckpointError, match="x2") as caught:
        tk.load_run(tmp_path / "runs" / "first", task=task_of(laptop))
    assert len(str(caught.value)) < 1000


def test_another_regularizer_is_named_without_json(folder, tmp_path):
    task = task_of(folder)
    model = tk.unet(1, 2, channels=(4, 8))
    config = {"steps": 1, "batch_size": 2, "threads": 1}
    tk.train(model, task, regularizer=tk.SegReg(weight=0.1), config=config, out=tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"weight was 0\.1 and is 0\.2"):
        tk.load_run(tmp_path / "run", regularizer=tk.SegReg(weight=0.2))


def test_predictions_of_pictures_are_pictures(folder, tmp_path):
    run = tk.train(
        tk.unet(1, 2, channels=(4, 8)),
        task_of(folder),
        config={"steps": 1, "batch_size": 2, "threads": 1},
        out=tmp_path / "run",
        progress=False,
    )
    arrays = run.predict(run.task.cases())
    files = run.predict(run.task.cases(), out=tmp_path / "predictions")
    assert {name: path.name for name, path in files.items()} == {f"x{n}": f"x{n}.png" for n in range(6)}
    for name, path in files.items():
        np.testing.assert_array_equal(np.array(Image.open(path)), np.asarray(arrays[name]))


def test_every_volume_has_a_file_of_its_own(tmp_path):
    ids = ["p/1", "p_1", "p 1", "p:1", "P_1", "q"]
    images = np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32)
    task = tk.task_from_arrays(
        images, (images > 0).astype(np.uint8), classes=CLASSES, ids=ids, splits=["train"] * 5 + ["val"]
    )
    run = tk.train(
        tk.unet(1, 2, channels=(4, 8)),
        task,
        config={"steps": 1, "batch_size": 2, "threads": 1},
        out=tmp_path / "run",
        progress=False,
    )
    arrays, files = run.predict(task.cases()), run.predict(task.cases(), out=tmp_path / "predictions")
    assert list(files) == list(arrays) == ids
    assert len({path.name.casefold() for path in files.values()}) == 6
    assert files["q"].name == "q.nii.gz"
    for name, path in files.items():
        np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).squeeze(), np.asarray(arrays[name]))
    maps = tk.grad_cam(run.model, task.cases(), layers="bottleneck", target=tk.ClassSum(1))
    saved = maps.save_nifti(tmp_path / "maps")
    assert len({path for paths in saved.values() for path in paths}) == 6


def test_distinct_names_are_stable_and_safe():
    assert distinct_names(["a", "b c", ".hidden", "../x"]) == ["a", "b_c", "hidden", "_x"]
    names = distinct_names(["a/b", "a_b", "A_B", "..."])
    assert len({name.casefold() for name in names}) == 4
    assert names[:3] == distinct_names(["a/b", "a_b", "A_B", "z"])[:3]


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/../../b", ".hidden"])
def test_a_tasks_name_stays_below_runs(name):
    task = tk.task_from_arrays([np.zeros((16, 16))], [np.zeros((16, 16), np.uint8)], classes=CLASSES, name=name)
    path = default_path(task, [])
    assert path.parent == Path("runs")
    assert not path.name.startswith(".")
