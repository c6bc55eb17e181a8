"""How long a fast device waits for its batches: a stand-in whose step sleeps 40 ms and uses no CPU.

The share of the wall time that the stand-in does not work, from the real loop on batches of 12 x 160 x 160 with the
standard augmentation, all of it on the CPU (on CUDA the augmentation would run on the device). The loop's own work
between two steps counts as waiting. The clock is the wall's, whatever is asked for.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from loops import random_task, started_loop
from torch import Tensor, nn

from toolkit.training.config import TrainConfig
from toolkit.training.history import HistoryWriter
from toolkit.training.protocol import Objective

BATCH, SIDE, SECONDS, STEPS, MOST = 12, 160, 0.040, 60, 0.08


class StandIn(nn.Module):
    """A network that is busy elsewhere for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.busy = 0.0

    def forward(self, image: Tensor) -> Tensor:
        started = time.perf_counter()
        time.sleep(SECONDS)
        self.busy += time.perf_counter() - started
        return self.weight * image[0, 0, 0, 0]


class Nothing(Objective):
    """A loss that costs nothing."""

    def __call__(self, outputs: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"square": outputs.square()}


def waiting_share(workers: int) -> float:
    """Share of the wall time of `STEPS` steps that the stand-in was idle; five steps before it are not counted."""
    loader = random_task(64, SIDE + 32).loader(
        "train", batch_size=BATCH, patch_size=(SIDE, SIDE), augmentation="standard"
    )
    config = TrainConfig(steps=STEPS + 5, workers=workers, device="cpu", checkpoint_every=0, validate_every=0)
    with tempfile.TemporaryDirectory() as folder, HistoryWriter(Path(folder) / "history.jsonl") as history:
        network = StandIn()
        loop = started_loop(Path(folder) / "run", network, Nothing(), loader, config)
        started = 0.0
        while loop.done < config.steps:
            if loop.done == 5:
                started, network.busy = time.perf_counter(), 0.0
            row = loop._one_step(loop.done)
            if row is not None:
                history.write(row)
        share = 1 - network.busy / (time.perf_counter() - started)
        loop.feed.close()
    return share


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"waiting": max(1, min(4, cores - 1)), "waiting, batches made between the steps": 0}
    shares = {name: sorted(waiting_share(workers) for _ in range(rounds)) for name, workers in found.items()}
    return [
        {
            "name": name,
            "ratio": round(values[len(values) // 2], 4),
            "floor": None,
            "limit": MOST if found[name] else None,
            "passed": values[len(values) // 2] <= MOST if found[name] else None,
            "workers": found[name],
            "cores": cores,
            "all": [round(value, 4) for value in values],
            "setting": f"{BATCH} x {SIDE} x {SIDE}, a step of {1e3 * SECONDS:.0f} ms without CPU, {STEPS} steps, by the wall clock",
        }
        for name, values in shares.items()
    ]
