"""A study of 40 trainings over four worker processes against the same study one training after the other.

`tk.compare` with plain training and SegReg under 20 seeds, each training on one thread that also makes its batches (a second
thread would be on the second core either way). The study gives the pool no more trainings at a time than there are cores.
Both ways end in the same numbers to the bit, which is checked. Workers start inside the time, from a server process that has
the libraries loaded. By the wall clock whatever is asked for. Beside each study stands what the machine gives: bare steps of
the same network and size, a process a core, without a study around them. The larger images no longer fit the cores' own
caches, so two processes share the way to memory.
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
STEPS = {96: 120, 64: 250}  # by the size of a patch; the images are 96 x 96
PRELOADED = ["lightning_fabric", "monai.inferers", "pandas", "scipy.stats"]
PRELOADED += ["toolkit.training.train", "toolkit.training.run", "toolkit.measure.evaluate", "toolkit.inference.predict"]
CONFIG: dict[str, Any] = {"batch_size": 8, "learning_rate": 5e-3, "validate_every": 0, "threads": 1, "workers": 0}


def small_unet() -> torch.nn.Module:
    return tk.unet(1, 4, channels=(8, 16, 32))


def study(size: int, folder: Path, executor: Any) -> tuple[float, Any]:
    task, arms = tk.load_task("phantom-cardiac"), {"plain": None, "segreg": tk.SegReg(weight=0.1)}
    config = CONFIG | {"patch_size": (size, size), "steps": STEPS[size]}
    options = {"config": config, "seeds": range(SEEDS), "out": folder, "executor": executor, "progress": False}
    begin = time.perf_counter()
    result = tk.compare(arms, model=small_unet, task=task, **options)
    return time.perf_counter() - begin, result


def bare_steps(size: int, count: int) -> float:
    """Seconds of so many steps on one batch."""
    torch.set_num_threads(1)
    network, images = small_unet(), torch.randn(CONFIG["batch_size"], 1, size, size)
    begin = time.perf_counter()
    for _ in range(count):
        network(images).sum().backward()
    return time.perf_counter() - begin


def ceiling(size: int) -> float:
    """How many times as much a process on every core does as one process alone."""
    cores = os.cpu_count() or 1
    with workers(cores) as pool:
        list(pool.map(bare_steps, [size] * cores, [20] * cores))
        alone = pool.submit(bare_steps, size, 200).result()
        return cores * alone / max(pool.map(bare_steps, [size] * cores, [200] * cores))


def workers(count: int) -> ProcessPoolExecutor:
    """Processes that are copies of one which has imported what a training needs: imports cost as much as 60 steps."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return ProcessPoolExecutor(count, mp_context=context)


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    listed = []
    for size, steps in STEPS.items():
        with tempfile.TemporaryDirectory() as temporary:
            alone, serial = study(size, Path(temporary) / "serial", None)
            beside, parallel = study(size, Path(temporary) / "parallel", partial(workers, WORKERS))
        if not serial.scores.equals(parallel.scores):
            raise SystemExit("The two studies differ in their scores.")
        more: dict[str, Any] = {
            "workers": WORKERS,
            "cores": os.cpu_count(),
            "seconds": [round(alone, 1), round(beside, 1)],
        }
        more["setting"] = (
            f"{2 * SEEDS} trainings of {steps} steps of {CONFIG['batch_size']} x {size} x {size}, one thread each"
        )
        name = f"patches of {size}: 40 trainings over 4 workers, against one after the other"
        listed.append(row(name, alone / beside, FLOOR, **more))
        listed.append(row(f"patches of {size}: bare steps, a process on every core against one", ceiling(size), None))
    return listed
