"""A study of 40 trainings over four worker processes against the same study one training after the other.

`tk.compare` with plain training and SegReg under 20 seeds, each training on one thread that also makes its batches (a second
thread would be on the second core either way). Both ways end in the same numbers to the bit, which is checked. Workers
start inside the time. By the wall clock whatever is asked for. A second row says what the machine gives: bare steps of the
same network, a process a core, without a study around them.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleave import row

import toolkit as tk

SEEDS, WORKERS, FLOOR = 20, 4, 1.8
CONFIG: dict[str, Any] = {
    "steps": 40,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "validate_every": 0,
    "threads": 1,
    "workers": 0,
}


def small_unet() -> torch.nn.Module:
    return tk.unet(1, 4, channels=(8, 16, 32))


def study(folder: Path, executor: Any) -> tuple[float, Any]:
    task, arms = tk.load_task("phantom-cardiac"), {"plain": None, "segreg": tk.SegReg(weight=0.1)}
    options = {"config": CONFIG, "seeds": range(SEEDS), "out": folder, "executor": executor, "progress": False}
    begin = time.perf_counter()
    result = tk.compare(arms, model=small_unet, task=task, **options)
    return time.perf_counter() - begin, result


def bare_steps(count: int) -> float:
    """Seconds of so many steps on one batch."""
    torch.set_num_threads(1)
    network, images = small_unet(), torch.randn(CONFIG["batch_size"], 1, 96, 96)
    begin = time.perf_counter()
    for _ in range(count):
        network(images).sum().backward()
    return time.perf_counter() - begin


def ceiling() -> float:
    """How many times as much a process on every core does as one process alone."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(bare_steps, [20] * cores))
        alone = pool.submit(bare_steps, 200).result()
        return cores * alone / max(pool.map(bare_steps, [200] * cores))


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    pool = partial(ProcessPoolExecutor, WORKERS, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as temporary:
        alone, serial = study(Path(temporary) / "serial", None)
        beside, parallel = study(Path(temporary) / "parallel", pool)
    if not serial.scores.equals(parallel.scores):
        raise SystemExit("The two studies differ in their scores.")
    more: dict[str, Any] = {"workers": WORKERS, "cores": os.cpu_count(), "seconds": [round(alone, 1), round(beside, 1)]}
    more["setting"] = (
        f"{2 * SEEDS} trainings of {CONFIG['steps']} steps of {CONFIG['batch_size']} x 96 x 96, one thread each"
    )
    return [
        row("40 trainings over 4 workers, against one after the other", alone / beside, FLOOR, **more),
        row("bare steps, a process on every core against one process", ceiling(), None),
    ]
