"""Every public call has an example in its docstring, and the examples run, all in one process.

An example may use what `prepared` makes besides `tk`, `torch`, `np` and `pd`, as if the reader had it already:

* `task`: 20 pictures of 32 x 32 pixels of two sites with the classes of the cardiac tasks; `unit_task`: the same in [0, 1];
* `case` of its test split with its `image` (1, 32, 32) and `label` (32, 32);
* `model`: a small U-Net that has learnt the task; `config`: training settings of two steps;
* `run`: a training with SegReg, whose directory is `runs/segreg`;
* `features` of `model` and `later`, those of the same cases after further training;
* the working directory with `mine.pth` (weights), `features.zarr`, pictures in `images` and `labels`, and
  `nnUNet_raw/Dataset001_Hearts`.

Every example has a copy of `model` of its own, so that those which train or fill it leave the others' alone.
"""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import toolkit as tk

CLASSES = {0: "background", 1: "RV", 2: "myocardium", 3: "LV"}
PACKAGES = ("segreg", "selfreg", "latent_augmentation", "med_disseg")
# What calls return or raise, or what the loop makes: their calls have the examples.
NOT_CONSTRUCTED = {
    *("Attached", "Case", "Features", "Result", "Run", "Stages", "StepContext", "Study", "Target"),
    *(name for name in tk.__all__ if name.endswith(("Error", "Warning"))),
    *("MedDisSegOutput", "Violation"),
}
NOT_RUN = {
    "load_backbone": "needs ResNet-50 weights, which the reader brings",
    "load_swin": "needs weights of a Swin classifier, which the reader brings",
    "load_bundle": "needs the folder of a MONAI bundle; tests/unit/integrations/test_bundle.py writes one",
    "load_nnunet": "needs a results folder of nnU-Net",
    "load_trained": "needs a network that `make networks` wrote; tests/unit/training/test_trained.py reads one",
}


def public() -> dict[str, Any]:
    """Every public call by its name, and what the methods and `toolkit.testing` offer."""
    calls = {name: getattr(tk, name) for name in tk.__all__ if name not in tk._SUBMODULES}
    for module in (*(f"toolkit.methods.{name}" for name in PACKAGES), "toolkit.testing"):
        home = importlib.import_module(module)
        calls |= {name: getattr(home, name) for name in home.__all__ if name not in calls}
    return {name: inspect.unwrap(call) for name, call in sorted(calls.items())}


CALLS = public()


def examples(call: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(call) or "") if call.__doc__ else []


def arrays(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """20 pictures of three bright blocks, each of its own class, brightness and place."""
    generator = np.random.default_rng(seed)
    labels = []
    for _ in range(20):
        label = np.zeros((32, 32), dtype=np.uint8)
        for index, corner in ((1, 3), (2, 12), (3, 20)):
            row, column = generator.integers(corner, corner + 3, 2)
            label[row : row + 8, column : column + 8] = index
        labels.append(label)
    return [(label / 4 + generator.uniform(0, 0.1, label.shape)).astype(np.float32) for label in labels], labels


def write_files() -> None:
    """Pictures in `images` and `labels`, and a raw data set of nnU-Net, in the working directory."""
    raw = Path("nnUNet_raw/Dataset001_Hearts")
    for folder in ("images", "labels", raw / "imagesTr", raw / "labelsTr"):
        Path(folder).mkdir(parents=True)
    for n, (image, label) in enumerate(zip(*arrays(1), strict=True)):
        picture, mask = Image.fromarray((image * 255).astype(np.uint8)), Image.fromarray((label > 0).astype(np.uint8))
        for path in (Path(f"images/{n}.png"), raw / f"imagesTr/heart_{n:03}_0000.png"):
            picture.save(path)
        for path in (Path(f"labels/{n}.png"), raw / f"labelsTr/heart_{n:03}.png"):
            mask.save(path)
    about = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "heart": 1},
        "numTraining": 20,
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(about), encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that examples may use; see the module's text."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("examples"))
    torch.manual_seed(0)
    write_files()
    given: dict[str, Any] = {"classes": CLASSES, "spacing": (1.5, 1.5), "sites": ["A", "B"] * 10}
    images, labels = arrays(0)
    task = tk.task_from_arrays(images, labels, name="hearts", **given)
    unit_task = tk.task_from_arrays(images, labels, normalisation="none", **given)
    quick: dict[str, Any] = {
        "batch_size": 4,
        "validate_every": 0,
        "checkpoint_every": 0,
        "select": "last",
        "workers": 0,
    }
    config = tk.TrainConfig(steps=2, **quick)
    model = tk.unet(1, 4, channels=(4, 8))
    learning = tk.TrainConfig(steps=80, learning_rate=2e-2, augmentation="none", **quick)
    tk.train(model, task, config=learning, out="runs/first", progress=False)
    run = tk.train(copy.deepcopy(model), task, regularizer=tk.SegReg(samples=256), config=config, out="runs/segreg")
    cases = [case for split in ("train", "val", "test") for case in task.cases(split)]
    features, later = (tk.extract(net, cases, ["bottleneck", "head_input"]) for net in (model, run.model))
    features.save("features.zarr")
    torch.save(model.state_dict(), "mine.pth")
    case = task.cases("test")[0]
    parts = {"model": model, "run": run, "case": case, "image": case.image, "label": case.label}
    modules = {"tk": tk, "torch": torch, "np": np, "pd": pd}
    yield (
        modules | parts | {"task": task, "unit_task": unit_task, "config": config, "features": features, "later": later}
    )
    os.chdir(before)


@pytest.mark.parametrize("name", sorted(set(CALLS) - NOT_CONSTRUCTED))
def test_every_public_call_has_a_short_example(name: str) -> None:
    lines = sum(example.source.count("\n") for example in examples(CALLS[name]))
    assert "\nExample:\n" in (inspect.getdoc(CALLS[name]) or ""), f"the docstring of {name} has no example"
    assert 1 <= lines <= 8


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if examples(call) and name not in NOT_RUN])
def test_the_example_runs(name: str, prepared: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = prepared | {"model": copy.deepcopy(prepared["model"])}
    text = inspect.getdoc(CALLS[name]) or ""
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    complaints: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.REPORT_ONLY_FIRST_FAILURE)
    assert runner.run(test, out=complaints.append).failed == 0, "".join(complaints)


def test_the_exceptions_are_public_calls() -> None:
    assert set(NOT_RUN) | NOT_CONSTRUCTED <= set(CALLS)
