"""The joint with nnU-Net v2, by its own commands: plan, train, kill, resume, predict; what must be equal, and the overhead.

    python benchmarks/nnunet_joint.py --raw FOLDER [--cases 7] [--iterations 3] [--out build/nnunet]

Needs an environment with nnunetv2 (`make third-party`). FOLDER holds `images/` and `labels/` of NIfTI files. Commands that
are done are not run again, so the same call goes on after a kill. Writes benchmarks/results/nnunet_joint.json. Every
command is seeded, on one thread of the CPU; trainings that need no process of their own call what the command calls.
Each configuration has two plans: nnU-Net's own with batches of two, and the same with a quarter of the channels.

* Weight 0 of the three trainers gives the stock trainer's weights and validation losses bit for bit, with the same
  checkpoint keys. With learning rate 0 the validation loss is the stock trainer's, and the training loss is more by
  what the regularizer logs: nothing else is added, nothing enters the validation.
* A run that was killed after its first epoch and continued by `--c` equals the run that was not.
* nnU-Net's log and `history.jsonl` hold the terms of every epoch.
* `tk.predict(tk.load_nnunet(folder), file)` equals `nnUNetv2_predict --disable_tta`.
* CPU seconds of a training step, with and without: the median over the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset901_Joint"
WEIGHTS = {"SegReg": {"weight": 0.1}, "SelfReg": {"scr": 0.015, "ifd": 0.015}, "Dispersive": {"weight": 0.2}}
# Trainers of a few seeded iterations, so that two trainings see the same batches, whenever they started.
SHORT = """
import json, os, random, signal, time
import numpy as np, torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from toolkit.integrations.nnunet.trainers import nnUNetTrainerDispersive, nnUNetTrainerSegReg, nnUNetTrainerSelfReg

class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        torch.set_num_threads(1)  # nnU-Net takes every core
        torch.manual_seed(0)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_epochs = int(os.environ["SHORT_ITERATIONS"]), 2
        if isinstance(self, Still):
            self.num_epochs, self.initial_lr = 1, 0.0
        self.num_val_iterations_per_epoch = self.save_every = 1
        self.logger.plot_progress_png = lambda folder: None  # seconds an epoch

    def perform_actual_validation(self, save_probabilities=False):
        if type(self).__name__ == "ShortStock":  # minutes on a CPU
            super().perform_actual_validation(save_probabilities)

    def on_epoch_start(self):
        super().on_epoch_start()
        seed = self.current_epoch
        np.random.seed(seed), random.seed(seed), torch.manual_seed(seed)

    def train_step(self, batch):
        begin = time.process_time()
        result = super().train_step(batch)
        with open(os.path.join(self.output_folder, "seconds.txt"), "a") as file:
            file.write(f"{time.process_time() - begin}\\n")
        return result

class Killed(Short):
    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

class Still(Short): pass
"""
KINDS = {"Stock": "nnUNetTrainer", **{name: f"nnUNetTrainer{name}" for name in WEIGHTS}}


def trainers() -> str:
    """The module of trainers that nnU-Net is to find."""
    names = [("Short", kind, "") for kind in KINDS] + [("Still", kind, "") for kind in KINDS]
    names += [("Short", kind, "Zero") for kind in WEIGHTS] + [("Killed", "SegReg", ""), ("Short", "SegReg", "Killed")]
    return SHORT + "".join(f"class {base}{kind}{end}({base}, {KINDS[kind]}): pass\n" for base, kind, end in names)


def environment(out: Path, **extra: str) -> dict[str, str]:
    """Variables of nnU-Net for folders below `out`, one process and one thread."""
    folders = {f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")}
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    fixed = {"nnUNet_extTrainer": str(out / "trainers"), "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    return {**os.environ, **folders, **fixed, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **extra}


def log_of(out: Path, name: str, *arguments: str) -> Path:
    """The file that holds a command's output once it is done."""
    return out / "logs" / f"{'_'.join((name, *arguments)).replace('/', '_')[-150:]}.log"


def inside(program: list[str], extra: dict[str, str], log: Path) -> int:
    """What the command `nnUNetv2_train` calls, in this process: half a minute less, most of which is imports."""
    from nnunetv2.run.run_training import run_training_entry

    os.environ.update(extra)
    with log.open("w") as stream, contextlib.redirect_stdout(stream), unittest.mock.patch("sys.argv", program):
        run_training_entry()
    return 0


def command(out: Path, name: str, *arguments: str, expect: int = 0, within: bool = False, **extra: str) -> None:
    """Run one of nnU-Net's commands, once: its output stands in a file that says that it was done."""
    log = log_of(out, name, *arguments)
    if log.is_file():
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    running, begin = log.with_suffix(".running"), time.perf_counter()
    with running.open("wb") as stream:
        program = [str(Path(sys.executable).with_name(name)), *arguments]
        code = (
            inside(program, extra, running)
            if within
            else subprocess.run(
                program, env=environment(out, **extra), stdout=stream, stderr=subprocess.STDOUT
            ).returncode
        )
    if code != expect:
        raise SystemExit(f"{name} ended with {code}, see {running}")
    print(f"{time.perf_counter() - begin:6.0f} s {name} {' '.join(arguments)}", flush=True)
    running.rename(log)


def prepare(source: Path, out: Path, cases: int) -> None:
    """The raw data set of a few cases, two more for prediction; nnU-Net's plans, and smaller ones."""
    target = out / "raw" / DATASET
    for folder in (*(target / name for name in ("imagesTr", "labelsTr", "imagesTs")), out / "trainers"):
        folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(sorted((source / "images").glob("*.nii.gz"))[: cases + 2]):
        folder, stem = "imagesTr" if index < cases else "imagesTs", image.name.removesuffix(".nii.gz")
        (target / folder / f"{stem}_0000.nii.gz").write_bytes(image.read_bytes())
        if index < cases:
            (target / "labelsTr" / image.name).write_bytes((source / "labels" / image.name).read_bytes())
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    record = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (target / "dataset.json").write_text(json.dumps(record))
    (out / "trainers" / "short_trainers.py").write_text(trainers())
    planning = ("-d", "901", "-c", "2d", "3d_fullres", "-np", "1", "-npfp", "1")
    command(out, "nnUNetv2_plan_and_preprocess", *planning, nnUNet_n_proc_DA="1")
    plans = json.loads((out / "preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    for name in ("nnUNetPlansTwo", "nnUNetPlansSmall"):
        plans["plans_name"] = name
        for configuration in plans["configurations"].values():
            configuration["batch_size"] = 2
            if name == "nnUNetPlansSmall":
                arguments = configuration["architecture"]["arch_kwargs"]
                arguments["features_per_stage"] = [width // 4 for width in arguments["features_per_stage"]]
        (out / "preprocessed" / DATASET / f"{name}.json").write_text(json.dumps(plans))


class Joint:
    """Everything that is compared for one configuration."""

    def __init__(self, out: Path, configuration: str, iterations: int) -> None:
        self.out, self.configuration, self.iterations = out, configuration, iterations

    def folder(self, trainer: str, plans: str = "nnUNetPlansSmall") -> Path:
        return self.out / "results" / DATASET / f"{trainer}__{plans}__{self.configuration}"

    def train(self, trainer: str, settings: dict[str, Any], *more: str, expect: int = 0, plans: str = "Small") -> None:
        given = ("901", self.configuration, "0", "-tr", trainer, "-p", f"nnUNetPlans{plans}", "-device", "cpu", *more)
        extra = {"TOOLKIT_REGULARIZER": json.dumps(settings), "SHORT_ITERATIONS": str(self.iterations)}
        if "--c" not in more and not log_of(self.out, "nnUNetv2_train", *given).is_file():
            shutil.rmtree(self.folder(trainer, f"nnUNetPlans{plans}"), ignore_errors=True)
        within = not {"ShortStock", "KilledSegReg", "ShortSegRegKilled"} & {trainer}
        command(self.out, "nnUNetv2_train", *given, expect=expect, within=within, **extra)

    @functools.cache  # noqa: B019 - one object a configuration
    def checkpoint(self, trainer: str) -> dict[str, Any]:
        import torch

        path = self.folder(trainer) / "fold_0" / "checkpoint_final.pth"
        return torch.load(path, map_location="cpu", weights_only=False)  # our own run

    def logged(self, trainer: str, name: str) -> list[float]:
        return [float(value) for value in self.checkpoint(trainer)["logging"][name]]

    def equal(self, one: str, other: str) -> dict[str, bool]:
        import torch

        a, b = (self.checkpoint(name)["network_weights"] for name in (one, other))
        return {
            "checkpoint keys": list(a) == list(b),
            "weights": all(torch.equal(a[key], b[key]) for key in a),
            "training losses": self.logged(one, "train_losses") == self.logged(other, "train_losses"),
            "validation losses": self.logged(one, "val_losses") == self.logged(other, "val_losses"),
        }

    def history(self, trainer: str) -> list[dict[str, Any]]:
        lines = (self.folder(trainer) / "fold_0" / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def zero_weight(self) -> dict[str, dict[str, bool]]:
        self.train("ShortStock", {})
        rows = {}
        for name, weights in WEIGHTS.items():
            self.train(f"Short{name}Zero", dict.fromkeys(weights, 0.0))
            rows[name] = self.equal("ShortStock", f"Short{name}Zero")
        return rows

    def still(self) -> dict[str, dict[str, Any]]:
        self.train("StillStock", {})
        rows = {}
        for name, weights in WEIGHTS.items():
            self.train(f"Still{name}", weights)
            (row,) = self.history(f"Still{name}")
            added = sum(weights[key if key in weights else "weight"] * value for key, value in terms(row).items())
            (stock,), (loss,) = (self.logged(f"Still{kind}", "train_losses") for kind in ("Stock", name))
            rows[name] = {
                "validation loss equals stock": self.equal("StillStock", f"Still{name}")["validation losses"],
                "training loss above stock": loss - stock,
                "weighted terms of the history": added,
            }
        return rows

    def terms(self) -> dict[str, Any]:
        rows = {}
        for name, weights in WEIGHTS.items():
            self.train(f"Short{name}", weights)
            fold = self.folder(f"Short{name}") / "fold_0"
            log = "".join(path.read_text() for path in fold.glob("training_log_*.txt"))
            history = self.history(f"Short{name}")
            rows[name] = {
                "steps": [row["step"] for row in history],
                "by epoch": [terms(row, whole=True) for row in history],
                "in nnU-Net's log": all(
                    f"{k} {v:.4g}" in log for r in history for k, v in terms(r, whole=True).items()
                ),
                "changes the weights": not self.equal("ShortStock", f"Short{name}")["weights"],
            }
        return rows

    def resume(self) -> dict[str, Any]:
        self.train("KilledSegReg", WEIGHTS["SegReg"], expect=-9)
        source, target = self.folder("KilledSegReg"), self.folder("ShortSegRegKilled")
        if not target.is_dir():  # the same run under a trainer that is not killed again
            shutil.copytree(source, target)
        self.train("ShortSegRegKilled", WEIGHTS["SegReg"], "--c")
        same = self.history("ShortSegRegKilled") == self.history("ShortSegReg")
        return {**self.equal("ShortSegReg", "ShortSegRegKilled"), "history": same}

    def predict(self, name: str) -> dict[str, Any]:
        import toolkit as tk

        source, target = self.out / "raw" / DATASET / "imagesTs", self.out / f"predicted_{self.configuration}_{name}"
        given = ("-d", "901", "-c", self.configuration, "-f", "0", "-tr", f"Short{name}", "-p", "nnUNetPlansSmall")
        quick = ("--disable_tta", "-device", "cpu", "-npp", "1", "-nps", "1")
        command(self.out, "nnUNetv2_predict", "-i", str(source), "-o", str(target), *given, *quick)
        model, rows = tk.load_nnunet(self.folder(f"Short{name}"), fold=0), {}
        for path in sorted(source.glob("*.nii.gz")):
            stem = path.name.removesuffix("_0000.nii.gz")
            ours, theirs = np.asarray(tk.predict(model, str(path))), reference_labels(target / f"{stem}.nii.gz")
            counts = {str(label): int((theirs == label).sum()) for label in np.unique(theirs)}
            rows[stem] = {"voxels": counts, "different": int((ours != theirs).sum())}
        return rows

    def cost(self, base: str, plans: str) -> dict[str, Any]:
        """CPU seconds of a step, without the first, which prepares more."""
        rows = {}
        for name, weights in {"Stock": {}, **WEIGHTS}.items():
            self.train(f"{base}{name}", weights, plans=plans)
            lines = (self.folder(f"{base}{name}", f"nnUNetPlans{plans}") / "fold_0" / "seconds.txt").read_text().split()
            rows[name] = {"seconds": round(statistics.median(float(line) for line in lines[1:]), 3)}
            rows[name]["over stock"] = round(rows[name]["seconds"] / rows["Stock"]["seconds"], 3)
        return rows

    def sections(self) -> dict[str, Callable[[], Any]]:
        return {
            "weight 0 equals stock": self.zero_weight,
            "learning rate 0": self.still,
            "terms": self.terms,
            "killed and continued by --c equals uninterrupted": self.resume,
            "tk.predict against nnUNetv2_predict": lambda: {name: self.predict(name) for name in ("Stock", "SegReg")},
            "CPU seconds of a step, a quarter of the channels": lambda: self.cost("Short", "Small"),
            "CPU seconds of a step, nnU-Net's own network": lambda: self.cost("Still", "Two"),
        }


def terms(row: dict[str, Any], whole: bool = False) -> dict[str, float]:
    """The regularizer's terms of a row of the history, by `owner/term` or `term`."""
    return {key if whole else key.split("/")[1]: value for key, value in row.items() if "/" in key}


def reference_labels(path: Path) -> np.ndarray:
    """A label file in the axes in which `tk.predict` gives volumes: closest to right-anterior-superior."""
    import nibabel

    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj).astype(np.uint8)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--raw", required=True, type=Path)
    options.add_argument("--out", type=Path, default=Path("build/nnunet"))
    options.add_argument("--cases", type=int, default=7)
    options.add_argument("--iterations", type=int, default=3)
    options.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"])
    given = options.parse_args()
    out = given.out.resolve()
    prepare(given.raw, out, given.cases)
    os.environ.update(environment(out))
    path = Path(__file__).parent / "results" / "nnunet_joint.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    record["nnunetv2"] = metadata.version("nnunetv2")
    for name in given.configurations:
        row = record[name] = {"iterations an epoch": given.iterations}
        for title, section in Joint(out, name, given.iterations).sections().items():
            row[title] = section()
            path.write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
