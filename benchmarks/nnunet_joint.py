"""The joint with nnU-Net v2, by its own commands: plan, train, resume, predict; what must be equal, and the overhead.

    python benchmarks/nnunet_joint.py --raw RAW_DATASET [--cases 12] [--iterations 4] [--out build/nnunet]

Needs an environment with nnunetv2 (`make third-party`). RAW_DATASET is a folder in nnU-Net's raw format, or one with
`images/` and `labels/` of NIfTI files. Writes benchmarks/results/nnunet_joint.json:

* weight 0 of the SegReg trainer gives the stock trainer's weights bit for bit (CPU, same seeds);
* parameter count and checkpoint keys are the stock trainer's; the validation loss holds no regularizer;
* a run of 1 + 1 epochs by `--c` logs the regularizer's terms of both;
* `tk.predict(tk.load_nnunet(folder), file)` equals `nnUNetv2_predict --disable_tta`;
* seconds an iteration, with and without.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset901_Joint"
# Trainers of a few iterations, seeded, so that two trainings see the same batches.
SHORT = """
import os, random
import numpy as np, torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from toolkit.integrations.nnunet.trainers import nnUNetTrainerDispersive, nnUNetTrainerSegReg, nnUNetTrainerSelfReg

class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        torch.manual_seed(0)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = int(os.environ["SHORT_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1
        self.num_epochs = int(os.environ["SHORT_EPOCHS"])
        self.save_every = 1

    def on_train_start(self):
        np.random.seed(1), random.seed(1), torch.manual_seed(1)
        super().on_train_start()

class ShortStock(Short, nnUNetTrainer): pass
class ShortSegReg(Short, nnUNetTrainerSegReg): pass
class ShortSelfReg(Short, nnUNetTrainerSelfReg): pass
class ShortDispersive(Short, nnUNetTrainerDispersive): pass
"""


def environment(out: Path, **extra: str) -> dict[str, str]:
    """Variables of nnU-Net for folders below `out`, one process for its data."""
    folders = {f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")}
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": str(out / "trainers"),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        "PYTHONPATH": paths,
        "SHORT_EPOCHS": "1",
        **extra,
    }


def command(name: str, *arguments: str, env: dict[str, str], log: Path) -> float:
    """Run one of nnU-Net's commands; seconds it took."""
    program = Path(sys.executable).with_name(name)
    begin = time.perf_counter()
    with log.open("ab") as stream:
        subprocess.run([str(program), *arguments], env=env, stdout=stream, stderr=subprocess.STDOUT, check=True)
    return time.perf_counter() - begin


def raw_dataset(source: Path, out: Path, cases: int) -> None:
    """Copy a few cases into nnU-Net's raw format; two more are for prediction."""
    target = out / "raw" / DATASET
    images = sorted((source / "images").glob("*.nii.gz"))
    if not images:
        shutil.copytree(source, target)
        return
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (target / folder).mkdir(parents=True)
    for index, image in enumerate(images[: cases + 2]):
        stem = image.name.removesuffix(".nii.gz")
        folder = "imagesTr" if index < cases else "imagesTs"
        shutil.copy(image, target / folder / f"{stem}_0000.nii.gz")
        if index < cases:
            shutil.copy(source / "labels" / image.name, target / "labelsTr" / image.name)
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    record = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (target / "dataset.json").write_text(json.dumps(record))


def smaller_plans(out: Path) -> None:
    """Batches of two: the plans' own fill a GPU."""
    path = out / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    for configuration in plans["configurations"].values():
        if "batch_size" in configuration:
            configuration["batch_size"] = 2
    path.write_text(json.dumps(plans))


def checkpoint(out: Path, trainer: str, configuration: str, name: str = "final") -> dict[str, Any]:
    """A checkpoint of our own run."""
    import torch

    folder = out / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"
    return torch.load(folder / f"checkpoint_{name}.pth", map_location="cpu", weights_only=False)


def validation_losses(out: Path, trainer: str, configuration: str) -> list[float]:
    """`val_loss` of every epoch, from the log."""
    return list(checkpoint(out, trainer, configuration)["logging"]["val_losses"])


def check(out: Path, configuration: str, iterations: int) -> dict[str, Any]:
    """Train and predict with one configuration; everything that is compared."""
    import torch

    import toolkit as tk

    log, short = out / f"{configuration}.log", str(iterations)

    def train(trainer: str, epochs: int = 1, settings: dict[str, Any] | None = None, *more: str) -> float:
        env = environment(
            out, SHORT_ITERATIONS=short, SHORT_EPOCHS=str(epochs), TOOLKIT_REGULARIZER=json.dumps(settings or {})
        )
        return command(
            "nnUNetv2_train", "901", configuration, "0", "-tr", trainer, "-device", "cpu", *more, env=env, log=log
        )

    seconds = {"stock": train("ShortStock"), "segreg, weight 0": train("ShortSegReg", 1, {"weight": 0.0})}
    stock, zero = (checkpoint(out, name, configuration) for name in ("ShortStock", "ShortSegReg"))
    keys = list(stock["network_weights"])
    row: dict[str, Any] = {
        "checkpoint keys equal": keys == list(zero["network_weights"]),
        "weight 0 equals stock": all(
            torch.equal(stock["network_weights"][k], zero["network_weights"][k]) for k in keys
        ),
        "validation loss equal at weight 0": validation_losses(out, "ShortStock", configuration)
        == validation_losses(out, "ShortSegReg", configuration),
    }
    for name, settings in (("SegReg", {"weight": 0.1}), ("SelfReg", {}), ("Dispersive", {})):
        trainer = f"Short{name}"
        shutil.rmtree(out / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}", ignore_errors=True)
        seconds[name] = train(trainer, 1, settings)
        weights = checkpoint(out, trainer, configuration)["network_weights"]
        row[f"{name} changes the weights"] = not all(torch.equal(weights[k], stock["network_weights"][k]) for k in keys)
        fold = out / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"
        history = [json.loads(line) for line in (fold / "history.jsonl").read_text().splitlines()]
        row[f"{name} terms"] = {k: round(v, 4) for k, v in history[-1].items() if "/" in k}
        if name == "SegReg":  # one more epoch on the same run
            shutil.copy(fold / "checkpoint_final.pth", fold / "checkpoint_latest.pth")
            (fold / "checkpoint_final.pth").unlink()
            train(trainer, 2, settings, "--c")
            steps = [json.loads(line)["step"] for line in (fold / "history.jsonl").read_text().splitlines()]
            row["steps logged over a resume"] = steps
    row["seconds of a command"] = {name: round(value, 1) for name, value in seconds.items()}
    predicted = out / f"predicted_{configuration}"
    command(
        "nnUNetv2_predict",
        "-i",
        str(out / "raw" / DATASET / "imagesTs"),
        "-o",
        str(predicted),
        "-d",
        "901",
        "-c",
        configuration,
        "-f",
        "0",
        "-tr",
        "ShortSegReg",
        "--disable_tta",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
        env=environment(out, SHORT_ITERATIONS=short),
        log=log,
    )
    folder = out / "results" / DATASET / f"ShortSegReg__nnUNetPlans__{configuration}"
    model = tk.load_nnunet(folder, fold=0)
    differences = {}
    for path in sorted((out / "raw" / DATASET / "imagesTs").glob("*.nii.gz")):
        stem = path.name.removesuffix("_0000.nii.gz")
        ours = np.asarray(tk.predict(model, str(path)))
        theirs = reference_labels(predicted / f"{stem}.nii.gz")
        differences[stem] = {"voxels": int(theirs.size), "different": int((ours != theirs).sum())}
    row["tk.predict against nnUNetv2_predict"] = differences
    return row


def reference_labels(path: Path) -> np.ndarray:
    """A label file in the axes in which `tk.predict` gives volumes: closest to right-anterior-superior."""
    import nibabel

    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj).astype(np.uint8)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--raw", required=True, type=Path)
    options.add_argument("--out", type=Path, default=Path("build/nnunet"))
    options.add_argument("--cases", type=int, default=12)
    options.add_argument("--iterations", type=int, default=4)
    options.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"])
    given = options.parse_args()
    out = given.out.resolve()
    os.environ.update(environment(out))
    if not (out / "preprocessed" / DATASET / "nnUNetPlans.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        for folder in ("preprocessed", "results", "trainers"):
            (out / folder).mkdir(parents=True)
        (out / "trainers" / "short_trainers.py").write_text(textwrap.dedent(SHORT))
        raw_dataset(given.raw, out, given.cases)
        command(
            "nnUNetv2_plan_and_preprocess",
            "-d",
            "901",
            "-c",
            *given.configurations,
            "-np",
            "1",
            "-npfp",
            "1",
            env={**environment(out), "nnUNet_n_proc_DA": "1"},
            log=out / "plan.log",
        )
        smaller_plans(out)
    shutil.rmtree(out / "results" / DATASET, ignore_errors=True)
    import nnunetv2

    results = {name: check(out, name, given.iterations) for name in given.configurations}
    version = re.search(
        r"\d+(\.\d+)+", subprocess.check_output([sys.executable, "-m", "pip", "show", "nnunetv2"], text=True)
    )
    record = {"nnunetv2": version.group() if version else nnunetv2.__name__, "iterations": given.iterations, **results}
    path = Path(__file__).parent / "results" / "nnunet_joint.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
