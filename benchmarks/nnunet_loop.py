"""Training steps per second against nnU-Net's own loop, on its own network, loss, optimizer and patch.

nnU-Net plans a 2D network for random volumes of 160 x 160 pixels; its trainer and our loop then train copies of it, each
with its own loader and augmentation and as many workers, and once more on a batch at hand, which leaves the loops alone.
On CUDA the batch is the planned one, on a CPU two images. Needs nnunetv2 (`make third-party`), and then:

    .venv-third-party/bin/python benchmarks/run.py --only nnunet_loop

The arms take turns in blocks, by the wall clock whatever is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import medians, row
from loops import CLASSES, SameBatch, random_task, started_loop

from toolkit.training.config import TrainConfig
from toolkit.training.engine import worker_count
from toolkit.training.history import HistoryWriter
from toolkit.training.protocol import Objective

SIDE, SLICES, NAME = 160, 8, "Dataset902_Loop"


class SameLoss(Objective):
    """nnU-Net's loss with deep supervision; the coarser labels are made here, where its loader makes them there."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        label = batch["label"].float()
        return {"loss": self._loss(outputs, [torch.nn.functional.interpolate(label, o.shape[2:]) for o in outputs])}


def trainer_of(folder: Path, device: str, workers: int) -> Any:
    """nnU-Net's trainer, planned for random volumes and ready for its first step."""
    import nibabel

    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ.update(nnUNet_n_proc_DA="1", nnUNet_compile="f", nnUNet_wandb_enabled="0")  # planning refuses none
    drawn, raw = np.random.default_rng(0), folder / "raw" / NAME
    for index, part in itertools.product(range(5), ("imagesTr", "labelsTr")):
        (raw / part).mkdir(parents=True, exist_ok=True)
        shape, end = (SIDE, SIDE, SLICES), "_0000" if part == "imagesTr" else ""
        values = drawn.standard_normal(shape) if end else drawn.integers(0, len(CLASSES), shape)
        volume = nibabel.Nifti1Image(values.astype(np.float32 if end else np.uint8), np.diag((1.0, 1.0, 8.0, 1.0)))
        nibabel.save(volume, raw / part / f"case{index}{end}.nii.gz")
    labels = {name: value for value, name in CLASSES.items()}
    record = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(record))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    number = int(NAME[7:10])
    extract_fingerprints([number], num_processes=1)
    plan_experiments([number])
    preprocess([number], configurations=["2d"], num_processes=[1])
    plans = json.loads((folder / "preprocessed" / NAME / "nnUNetPlans.json").read_text())
    if device == "cpu":
        plans["configurations"]["2d"]["batch_size"] = 2
    plans["continue_training"] = False
    os.environ.update(nnUNet_n_proc_DA=str(workers))
    trainer = nnUNetTrainer(plans, "2d", 0, record, torch.device(device))
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    return trainer


def theirs(trainer: Any, batches: Iterator[dict[str, Any]], steps: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            trainer.train_step(next(batches))

    return run


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    if importlib.util.find_spec("nnunetv2") is None:
        print("training, against nnU-Net's own loop: not measured, nnunetv2 is not installed here")
        return []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = 20 if device == "cuda" else 4
    config = TrainConfig(
        steps=10**6,
        learning_rate=1e-2,
        optimizer=lambda groups: torch.optim.SGD(groups, 1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True),
        schedule="constant",
        clip_norm=12.0,
        device=device,
        precision="16" if device == "cuda" else "32",
    )
    workers = worker_count(config)
    with tempfile.TemporaryDirectory() as temporary, HistoryWriter(Path(temporary) / "history.jsonl") as history:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trainer_of(Path(temporary), device, workers)
        torch.set_num_threads(threads)
        plan = trainer.configuration_manager
        batch, patch = plan.batch_size, tuple(plan.patch_size)
        loader = random_task(48, SIDE).loader("train", batch_size=batch, patch_size=patch, augmentation="standard")
        here = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in loader.batch(0).items()}
        there = next(trainer.dataloader_train)
        loops = {}
        for name, source in (("ours", loader), ("ours, batch at hand", SameBatch(here))):
            parts = (copy.deepcopy(trainer.network), SameLoss(trainer.loss), source, config)
            loops[name] = started_loop(Path(temporary) / name, *parts)
        from training import block

        arms = {name: block(loop, history, steps) for name, loop in loops.items()}
        arms["theirs"] = theirs(trainer, iter(trainer.dataloader_train), steps)
        arms["theirs, batch at hand"] = theirs(trainer, itertools.repeat(there), steps)
        seconds = medians(arms, rounds, "wall")
        for loop in loops.values():
            loop.feed.close()
        trainer.on_train_end()
    rates = {name: round(steps / value, 4) for name, value in seconds.items()}
    more = {"steps_per_second": rates, "device": device, "workers": workers, "batch": [batch, *patch]}
    return [
        row("training, against nnU-Net's own loop", seconds["theirs"] / seconds["ours"], 1.0, **more),
        row(
            "training, against nnU-Net's own loop, batches at hand",
            seconds["theirs, batch at hand"] / seconds["ours, batch at hand"],
            None,
        ),
    ]
