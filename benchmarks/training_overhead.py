"""What the training loop costs over a hand-written one: the same network, batches and optimizer, CPU time a step.

    OMP_NUM_THREADS=1 python benchmarks/training_overhead.py

Blocks of steps of both loops alternate; the ratio is the median over pairs. Logging (every 10 steps) is included,
validation and checkpoints are not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loops import SameBatch, random_task, started_loop

from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.history import HistoryWriter
from toolkit.training.segmentation import SegmentationObjective

BLOCK = 10


def by_hand(batch: dict[str, Any], channels: tuple[int, ...], classes: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model, objective = unet(1, classes, channels=channels), SegmentationObjective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def block() -> None:
        for _ in range(BLOCK):
            optimizer.zero_grad()
            loss = torch.stack(list(objective(model(batch["image"]), batch).values())).sum()
            loss.backward()
            optimizer.step()

    return block


def ours(
    batch: dict[str, Any], channels: tuple[int, ...], classes: int, folder: Path, history: HistoryWriter
) -> Callable[[], None]:
    torch.manual_seed(0)
    config = TrainConfig(steps=10**6, batch_size=len(batch["image"]), learning_rate=1e-3, schedule="constant")
    network = unet(1, classes, channels=channels)
    loop = started_loop(folder, network, SegmentationObjective(), SameBatch(batch), config)

    def block() -> None:
        for _ in range(BLOCK):
            row = loop._one_step(loop.done)
            if row is not None:
                history.write(row)

    return block


def timed(block: Callable[[], None]) -> float:
    started = time.process_time()
    block()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task = random_task(options.batch, options.side)
    batch = task.loader("train", batch_size=options.batch).batch(0)
    with tempfile.TemporaryDirectory() as temporary, HistoryWriter(Path(temporary) / "h.jsonl") as history:
        loops = {
            "by hand": by_hand(batch, tuple(options.channels), 4),
            "toolkit": ours(batch, tuple(options.channels), 4, Path(temporary) / "run", history),
        }
        for block in loops.values():
            block()
        times = [{name: timed(block) / BLOCK for name, block in loops.items()} for _ in range(options.pairs)]
    ratio = statistics.median(pair["toolkit"] / pair["by hand"] for pair in times)
    record = {
        "side": options.side,
        "batch": options.batch,
        "channels": options.channels,
        "ratio": round(ratio, 4),
        "ms_by_hand": round(1e3 * statistics.median(p["by hand"] for p in times), 2),
        "ms_toolkit": round(1e3 * statistics.median(p["toolkit"] for p in times), 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
