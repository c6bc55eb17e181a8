"""Training steps per second: our loop with its loader against a batch at hand, and against PyTorch with MONAI's transforms.

Our loop stands against itself on a batch that lies on the device already, and against a plain PyTorch loop that takes
its batches from a DataLoader with as many workers. Batches prepared ahead may be made while another arm runs; the
blocks are several times longer than what is held ready.

U-Net 16-32-64-128 on batches of 12 x 160 x 160 with the standard augmentation (MONAI: the same affine, flips, contrast,
brightness and noise), on CUDA if there is one. The arms take turns in blocks, by the wall clock whatever is asked for.
Peak memory of the device is measured only on CUDA; nnU-Net's own loop has a benchmark of its own, `nnunet_loop.py`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from interleave import medians, row
from loops import SameBatch, random_task, started_loop

from toolkit.data.case import Case
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.engine import worker_count
from toolkit.training.history import HistoryWriter
from toolkit.training.loop import Loop
from toolkit.training.segmentation import SegmentationObjective

BATCH, SIDE = 12, 160


def block(loop: Loop, history: HistoryWriter, steps: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            logged = loop._one_step(loop.done)
            if logged is not None:
                history.write(logged)
        if loop.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def monai_batches(cases: list[Case], workers: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """What MONAI's users write: dictionaries, random transforms, torch's DataLoader; endless."""
    import monai.transforms as mt
    from monai.data import DataLoader, Dataset

    both, crop = ["image", "label"], (3 * SIDE // 2,) * 2
    transform = mt.Compose(
        [
            mt.ResizeWithPadOrCropd(both, crop),
            mt.RandAffined(
                both,
                prob=1.0,
                spatial_size=(SIDE, SIDE),
                rotate_range=0.26,
                scale_range=0.15,
                translate_range=0.05 * SIDE,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            mt.RandFlipd(both, prob=0.5, spatial_axis=0),
            mt.RandAdjustContrastd("image", prob=1.0, gamma=(0.75, 1.35), retain_stats=False),
            mt.RandScaleIntensityd("image", factors=0.15, prob=1.0),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0),
            mt.RandGaussianNoised("image", prob=1.0, std=0.1),
        ]
    )
    rows = [{"image": case.image, "label": case.label[None]} for case in cases]
    loader = DataLoader(
        Dataset(rows, transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield {key: batch[key].as_tensor().to(device, non_blocking=True) for key in both}


def plain_loop(batches: Iterator[dict[str, Any]], steps: int, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    model, objective = unet(1, 4).to(device), SegmentationObjective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        for _ in range(steps):
            batch = next(batches)
            batch["label"] = batch["label"].long()
            optimizer.zero_grad()
            torch.stack(list(objective(model(batch["image"]), batch).values())).sum().backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = 40 if device == "cuda" else 10
    config = TrainConfig(steps=10**6, batch_size=BATCH, learning_rate=1e-3, schedule="constant", device=device)
    workers = worker_count(config)
    task = random_task(48, 2 * SIDE)
    loader = task.loader("train", batch_size=BATCH, patch_size=(SIDE, SIDE), augmentation="standard")
    ready = {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in loader.batch(0).items()}
    with tempfile.TemporaryDirectory() as temporary, HistoryWriter(Path(temporary) / "history.jsonl") as history:
        loops = {}
        for name, source in (("ours", loader), ("batch at hand", SameBatch(ready))):
            torch.manual_seed(0)
            folder = Path(temporary) / name
            loops[name] = started_loop(folder, unet(1, 4), SegmentationObjective(), source, config)
        arms = {name: block(loop, history, steps) for name, loop in loops.items()}
        batches = monai_batches(task.cases("train"), workers, torch.device(device))
        arms["MONAI"] = plain_loop(batches, steps, torch.device(device))
        seconds = medians(arms, rounds, "wall")
        for loop in loops.values():
            loop.feed.close()
    rates = {name: round(steps / value, 4) for name, value in seconds.items()}
    more = {"steps_per_second": rates, "device": device, "workers": workers, "rounds_of_steps": steps}
    table = [
        row("training, against a batch at hand", seconds["batch at hand"] / seconds["ours"], 0.95, **more),
        row("training, against PyTorch with MONAI's transforms", seconds["MONAI"] / seconds["ours"], 1.0, **more),
    ]
    if device == "cpu":
        print("peak device memory, several trainings on one card: not measured, there is no CUDA device")
    return table
