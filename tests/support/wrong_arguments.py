"""A deterministic generator of wrong and extreme arguments over every public call, and what comes of each.

For every parameter of a call that works, a few of `VALUES` are put in its place, drawn by the parameter's name, so that
the calls stay the same when others are added. Nothing here knows what a call checks.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import toolkit as tk

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    7,
    2**40,
    10**30,
    1.5,
    -0.5,
    1e30,
    float("nan"),
    float("inf"),
    1j,
    "",
    "nonsense",
    "a$b{c}",
    "../..",
    b"bytes",
    [],
    [None],
    ["a", 3],
    [-1, 0],
    (1, 2, 3, 4, 5),
    {},
    {"a": 1},
    {1: None},
    object(),
    int,
    len,
    np.zeros((2, 2)),
    np.array(["x"]),
    torch.zeros(2, 1, 3, 3),
    torch.full((1, 1, 16, 16), float("nan")),
    Path("nowhere"),
]
SECONDS = 20  # a call that takes longer counts as unclear
SIDE = 16


class TooLongError(BaseException):
    """The call did not end in time."""


class Calls:
    """Calls that work, by name: a function with no argument that gives the keyword arguments, all fresh or not changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        drawn = torch.Generator().manual_seed(0)
        self.image = torch.randn(3, 1, SIDE, SIDE, generator=drawn)
        label = torch.zeros(3, SIDE, SIDE, dtype=torch.long)
        label[:, 4:9, 4:9] = 1
        self.scan = {"image": self.image, "label": label, "classes": {0: "background", 1: "LV"}}
        self.net = self.network()
        images = [image[0].numpy() for image in torch.randn(8, 1, SIDE, SIDE, generator=drawn)]
        labels = [label[0].numpy().astype(np.uint8)] * 8
        self.arrays = {"images": images, "labels": labels, "classes": {0: "background", 1: "LV"}}
        splits = ["train", "train", "val", "test"] * 2
        self.task = tk.task_from_arrays(**self.arrays, sites=["A"] * 4 + ["B"] * 4, splits=splits)
        self.features = tk.extract(self.net, self.scan, ["bottleneck", "head_input"], pool="voxels", samples=12)
        self.config = {"steps": 1, "batch_size": 2, "validate_every": 0, "checkpoint_every": 0}
        self.cam = tk.grad_cam(self.net, self.scan, "bottleneck", tk.ClassSum(1))
        self.cam.save(folder / "cam.zip")
        self.features.save(folder / "f.zarr")
        self.run = self.trained()
        self.scores = {"a": np.arange(6.0)[:, None], "b": np.arange(6.0)[:, None] ** 1.1}
        self.table = self.run.evaluate("test", metrics=("dice",))
        self.number = 0
        for name, values in (("images", (0, 200)), ("labels", (0, 1))):
            (folder / name).mkdir()
            for index in range(4):
                picture = np.zeros((SIDE, SIDE), np.uint8)
                picture[2:9, 2:9] = values[1]
                Image.fromarray(picture).save(folder / name / f"case{index}.png")

        self.rows = [
            {"image": self.folder / "images" / f"case{i}.png", "label": self.folder / "labels" / f"case{i}.png"}
            for i in range(4)
        ]
        self.items = [{"image": i, "label": la} for i, la in zip(images, labels, strict=True)]
        self.write_folders()

    def write_folders(self) -> None:
        """A bundle of MONAI and a raw data set of nnU-Net, as small as they come."""
        bundle, raw = self.folder / "bundle", self.folder / "Dataset001_X"
        for path in (bundle / "configs", bundle / "models", raw / "imagesTr", raw / "labelsTr"):
            path.mkdir(parents=True)
        network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
        (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
        torch.save(torch.nn.Conv2d(1, 2, 1).state_dict(), bundle / "models" / "model.pt")
        names = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}, "file_ending": ".png"}
        (raw / "dataset.json").write_text(json.dumps({**names, "numTraining": 4}))
        for index in range(4):
            shutil.copy(self.folder / "images" / f"case{index}.png", raw / "imagesTr" / f"case{index}_0000.png")
            shutil.copy(self.folder / "labels" / f"case{index}.png", raw / "labelsTr" / f"case{index}.png")

    def network(self) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return tk.unet(1, 2, channels=(4, 8))

    def trained(self) -> Any:
        regularizer = tk.SegReg(samples=8, directions=4)
        out = self.folder / "run"
        return tk.train(self.network(), self.task, None, regularizer, self.config, out=out, progress=False)

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / f"out{self.number}"

    def all(self) -> dict[str, Callable[[], dict[str, Any]]]:
        net, scan, image, features, task, config = (
            self.net, self.scan, self.image, self.features, self.task, self.config,
        )  # fmt: skip
        quick = {"progress": False}
        training = lambda: {"model": self.network(), "task": task, "config": config, "out": self.fresh(), **quick}  # noqa: E731
        calls: dict[str, Callable[[], dict[str, Any]]] = {
            "aggregate": lambda: {"table": self.table, "penalty": "diagonal"},
            "attribute": lambda: {"model": net, "image": image, "method": "saliency", "target": 1, "steps": 2},
            "augment_image": lambda: {"image": image, "method": "random_windows", "seed": 0},
            "calibrate": lambda: {
                "model": self.network(), "task": task, "regularizer": tk.SegReg(samples=8, directions=4),
                "config": config, "steps": 2,
            },
            "channel_similarity": lambda: {"features": features, "layer": "bottleneck"},
            "classifier_variability": lambda: {"source": features, "layer": "bottleneck", "bootstraps": 2, "rows": 50},
            "collapse": lambda: {"features": features, "layer": "bottleneck"},
            "compare": lambda: {
                "arms": {"plain": None}, "model": self.network, "task": task, "config": config, "seeds": [0],
                "out": self.fresh(), **quick,
            },
            "compare_scores": lambda: {"scores": self.scores, "baseline": "a", "bootstrap": 20},
            "drift": lambda: {
                "features": [features, features], "layer": "bottleneck", "bootstrap": 3, "null_splits": 3, "directions": 8,
            },
            "evaluate": lambda: {"model": net, "cases": task.cases("test"), "metrics": ("dice",)},
            "extract": lambda: {"model": net, "inputs": scan, "layers": "bottleneck", "pool": "global"},
            "faithfulness": lambda: {
                "model": net, "result": self.cam, "target": 1, "steps": 2, "orders": 1, "perturbations": 1,
            },
            "fast_slow_network": lambda: {"in_channels": 1, "out_channels": 2, "width": 4},
            "gaussianity": lambda: {"features": features, "layer": "bottleneck", "directions": 8, "null_draws": 3},
            "grad_cam": lambda: {"model": net, "inputs": scan, "layers": "bottleneck", "target": 1},
            "image_scores": lambda: {"probability": torch.rand(2, 1, 4, 4), "target": torch.ones(2, 1, 4, 4)},
            "layer_similarity": lambda: {"features_a": features, "max_rows": 20},
            "layers": lambda: {"model": net, "example": image},
            "list_tasks": dict,
            "load_model": lambda: {"path": self.run.path},
            "load_result": lambda: {"path": self.folder / "cam.zip"},
            "load_run": lambda: {"path": self.run.path, "task": task},
            "load_task": lambda: {"name": "phantom-cardiac"},
            "load_weights": lambda: {
                "model": self.network(), "file": self.run.path / "checkpoints" / "00000001" / "weights.safetensors",
            },
            "mask_latent": lambda: {"image": image, "scheme": "dropout"},
            "med_disseg_stage_one": lambda: {"in_channels": 1, "out_channels": 2, "encoder_width": 4},
            "open_features": lambda: {"path": self.folder / "f.zarr"},
            "predict": lambda: {"model": net, "image": image},
            "project": lambda: {"features": features, "layer": "bottleneck", "basis": "shared"},
            "randomised_weights": lambda: {
                "model": net, "inputs": scan, "layers": "bottleneck", "target": 1, "draws": 1,
            },
            "regularizer_health": lambda: {"history": self.run.history},
            "resume": lambda: {"path": self.run.path, "task": task, "model": self.network(), **quick},
            "score_matrix": lambda: {"evaluations": [self.table], "tasks": ["A"]},
            "segmentation_metrics": lambda: {
                "prediction": np.eye(6, dtype=int), "reference": np.eye(6, dtype=int), "classes": {1: "x"},
            },
            "self_reg_unet": lambda: {"in_channels": 1, "out_channels": 2, "width": 4},
            "attach": lambda: {"regularizer": tk.SegReg(samples=8, directions=4), "model": self.network()},
            "load_bundle": lambda: {"folder": self.folder / "bundle"},
            "task_from_dataset": lambda: {"dataset": self.items, "classes": self.arrays["classes"]},
            "task_from_nnunet": lambda: {"folder": self.folder / "Dataset001_X"},
            "task_from_table": lambda: {"frame": self.rows, "classes": ["background", "x"]},
            "task_from_arrays": lambda: {**self.arrays, "sites": "A"},
            "task_from_folder": lambda: {
                "images": self.folder / "images", "labels": self.folder / "labels", "classes": ["background", "x"],
            },
            "train": training,
            "train_sequence": lambda: {**training(), "sites": ["A"]},
            "transfer_metrics": lambda: {"scores": np.eye(2), "tasks": ["A", "B"]},
            "unet": lambda: {"in_channels": 1, "out_channels": 2, "channels": (4, 8)},
            "with_artefacts": lambda: {"task": task, "artefacts": ("bias",), "copies": 1},
            "Augmentation": dict,
            "BoundaryBand": lambda: {"index": 1},
            "ClassSum": lambda: {"index": 1},
            "Dispersive": dict,
            "ErrorRegion": lambda: {"index": 1},
            "LatentAugmentation": dict,
            "LesionComponent": lambda: {"index": 1},
            "MedDisSegObjective": dict,
            "FastSlowObjective": dict,
            "RandomConvolution": dict,
            "Region": lambda: {"index": 1},
            "SegReg": dict,
            "SegmentationObjective": dict,
            "SelfReg": dict,
            "TrainConfig": lambda: {"steps": 1},
            "Voxel": lambda: {"position": (1, 1)},
        }  # fmt: skip
        first = {"mask_latent": {"net", "model"} & set(inspect.signature(tk.mask_latent).parameters)}
        calls["mask_latent"] = lambda: {next(iter(first["mask_latent"])): net, "image": image, "scheme": "dropout"}
        targets = {"BoundaryBand", "ClassSum", "ErrorRegion", "LesionComponent", "Region", "Voxel"}
        known = {name: call for name, call in calls.items() if hasattr(tk, name)}
        return {name: call for name, call in known.items() if name not in targets} | {
            name: known[name] for name in known if name in targets
        }

    def use(self, name: str, made: Any) -> Any:
        """What a constructor's object is for: a target that is accepted must also explain something."""
        if isinstance(made, tk.Target) if hasattr(tk, "Target") else name in ("Region", "ClassSum", "Voxel"):
            tk.grad_cam(self.net, self.scan, "bottleneck", made)
        return made


def cases(calls: Calls, each: int) -> Iterator[tuple[str, str, Any, Callable[[], Any]]]:
    """Name of the call, name of the parameter, value, and the call itself."""
    for name, arguments in calls.all().items():
        call = getattr(tk, name)
        for parameter, known in inspect.signature(fields_of(call)).parameters.items():
            if known.kind in (known.VAR_KEYWORD, known.VAR_POSITIONAL) or parameter.startswith("_"):
                continue
            for value in random.Random(f"{name}.{parameter}").sample(VALUES, each):
                if parameter == "config" and isinstance(value, dict) and not value:
                    continue  # the defaults: a training of 500 steps
                yield (
                    name,
                    parameter,
                    value,
                    lambda c=call, a=arguments, p=parameter, v=value, n=name: calls.use(n, c(**{**a(), p: v})),
                )


def fields_of(call: Any) -> Any:
    """The signature of a class that hides it behind its metaclass is that of its constructor."""
    return call.__init__.__get__(object()) if call is tk.TrainConfig else call


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """right (it was accepted), clear (an error of the toolkit), unforeseen (one without its own words) or raw."""
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            call()
        return "right", ""
    except tk.ToolkitError as error:
        kind = "unforeseen" if "failed on these arguments" in error.what else "clear"
        return (kind if error.what and (error.where or error.fix) else "clear"), str(error)
    except (Exception, TooLongError) as error:
        return "raw", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _too_long(*_: Any) -> None:
    raise TooLongError


def attack(folder: Path, each: int = 6, show: Callable[[str], None] | None = None) -> Counter[str]:
    """Make every call and count what came of it."""
    counts: Counter[str] = Counter()
    for name, parameter, value, call in cases(Calls(folder), each):
        kind, text = outcome(call)
        counts[kind] += 1
        if show is not None and kind in ("raw", "unforeseen"):
            show(f"{kind}: {name}({parameter}={str(value)[:40]!r}): {text[:300]}")
    return counts
