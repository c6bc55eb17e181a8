"""Training at 192 x 192 through scripts/launch against a bare python, in processes of their own that take turns.

The allocator's settings are read when a process starts, so each measurement is a new process: two steps of warm-up,
then six timed ones, U-Net 16-32-64-128, batch 16. Run without arguments as part of benchmarks/run.py.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from interleave import row

ROOT = Path(__file__).parents[1]
BATCH, SIZE, WARM_UP, STEPS = 16, 192, 2, 6


def train_steps(threads: int, clock: str) -> None:
    """Child process: print the images a second."""
    import torch
    from interleave import CLOCKS

    from toolkit.models.unet import unet
    from toolkit.training.segmentation import SegmentationObjective
    from toolkit.training.step import TrainingStep

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = unet(1, 4)
    step = TrainingStep(network, SegmentationObjective())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    batch = {"image": torch.randn(BATCH, 1, SIZE, SIZE), "label": torch.randint(0, 4, (BATCH, 1, SIZE, SIZE))}
    started = 0.0
    for done in range(WARM_UP + STEPS):
        if done == WARM_UP:
            started = CLOCKS[clock]()
        optimizer.zero_grad()
        total = step(batch, step=done).total
        total.backward()
        optimizer.step()
    print(json.dumps({"images_per_second": STEPS * BATCH / (CLOCKS[clock]() - started), "wall": time.time()}))


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean["OMP_NUM_THREADS"] = str(threads)
    child = [sys.executable, __file__, str(threads), clock]
    commands = {"launcher": [str(ROOT / "scripts" / "launch"), *child], "bare": child}
    speeds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(min(rounds, 3)):
        for name, command in commands.items():
            output = subprocess.run(command, env=clean, capture_output=True, text=True, check=True, cwd=ROOT)
            speeds[name].append(json.loads(output.stdout.splitlines()[-1])["images_per_second"])
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    return [
        row(
            "training at 192 x 192 through the launcher against a bare python",
            middle["launcher"] / middle["bare"],
            1.4,
            images_per_second=middle,
        )
    ]


if __name__ == "__main__":
    train_steps(int(sys.argv[1]), sys.argv[2])
