"""What SegReg costs: a training step with and without it, and the statistic against its direct formula.

Run `scripts/launch python benchmarks/segreg_step.py [--threads 2] [--clock wall] [--out file.json]`. On a busy machine
`--threads 1 --clock cpu` is repeatable. Everything is measured in one process, arms alternating, median of
the repeats. Step: U-Net 16-32-64-128, batch 12 at 160 x 160, AdamW, tap head_input. Memory is the peak of what torch
allocates during one forward and backward pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from toolkit.features.epps_pulley import sliced_epps_pulley, unit_directions
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def training_step(regularizer: SegReg | None) -> Callable[[], None]:
    torch.manual_seed(0)
    network = unet(1, 4)
    step = TrainingStep(network, SegmentationObjective(), [regularizer] if regularizer else [])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    batch = {"image": torch.randn(12, 1, 160, 160), "label": torch.randint(0, 4, (12, 1, 160, 160))}
    done = 0

    def run() -> None:
        nonlocal done
        optimizer.zero_grad()
        total = step(batch, step=done).total
        assert total is not None
        total.backward()
        optimizer.step()
        done += 1

    return run


def direct_formula(z: Tensor, directions: Tensor, t_max: float = 3.0, points: int = 17) -> Tensor:
    """The statistic as it is written, with (N, K, M) tensors."""
    t = torch.linspace(0, t_max, points)
    rule = torch.full_like(t, 2 * t_max / (points - 1))
    rule[0] = rule[-1] = t_max / (points - 1)
    window = torch.exp(-t.square() / 2)
    angle = (z @ directions).unsqueeze(-1) * t
    distance = (angle.cos().mean(0) - window).square() + angle.sin().mean(0).square()
    return (distance * rule * window).sum(-1).mean()


def medians(arms: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of every arm, the arms taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 2):
        for name, run in arms.items():
            start = clock()
            run()
            if turn >= 2:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], None]) -> int:
    """Largest sum of tensor memory allocated during one call, from the allocator's own events."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = peak = 0
    assert profile.profiler is not None
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def measure(threads: int, clock_name: str) -> dict[str, object]:
    torch.set_num_threads(threads)
    clock = CLOCKS[clock_name]
    arms = {"plain": None, "K 64": SegReg(directions=64), "K 256": SegReg(directions=256)}
    steps = medians({name: training_step(regularizer) for name, regularizer in arms.items()}, 9, clock)
    z = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    directions = unit_directions(32, 256, torch.Generator().manual_seed(1))
    formulas = {
        "direct": lambda: direct_formula(z, directions).backward(),
        "fused": lambda: sliced_epps_pulley(z, directions).backward(),
    }
    seconds = medians(formulas, 7, clock)
    memory = {name: peak_bytes(run) for name, run in formulas.items()}
    return {
        "threads": threads,
        "clock": clock_name,
        "torch": torch.__version__,
        "step_seconds": steps,
        "step_ratio_K64": steps["K 64"] / steps["plain"],
        "step_ratio_K256": steps["K 256"] / steps["plain"],
        "statistic_seconds_N4096_K256_M17": seconds,
        "times_faster_than_direct": seconds["direct"] / seconds["fused"],
        "statistic_peak_megabytes": {name: value / 1e6 for name, value in memory.items()},
        "times_smaller_than_direct": memory["direct"] / memory["fused"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = json.dumps(measure(options.threads, options.clock), indent=1)
    print(report)
    if options.out:
        options.out.write_text(report + "\n")
