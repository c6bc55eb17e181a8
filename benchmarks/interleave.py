"""Timing that compares: all arms take turns in one process, medians over rounds, by CPU time or by the wall clock."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def medians(
    arms: Mapping[str, Callable[[], object]], rounds: int, clock: str = "cpu", warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of every arm; in each round every arm runs once, every other round in reverse order.

    Without the reversal an arm always finds the caches and the heap as the same neighbour left them.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + warm_up):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            start = now()
            arms[name]()
            if turn >= warm_up:
                seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(name: str, ratio: float, floor: float | None, **more: Any) -> dict[str, Any]:
    """One line of the table: `ratio` must not be below `floor` (None = reported only)."""
    passed = None if floor is None else ratio >= floor
    return {"name": name, "ratio": round(ratio, 3), "floor": floor, "passed": passed, **more}


def machine(threads: int, clock: str) -> dict[str, Any]:
    """What the numbers depend on."""
    import toolkit

    return {
        "toolkit": toolkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": threads,
        "clock": clock,
    }
