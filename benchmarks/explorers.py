"""Milliseconds that the page of an explorer waits after a change of a control, and the size of the new picture.

    scripts/launch python benchmarks/explorers.py [--rounds 3]

Every control of every explorer is moved through its values on the embedded task (96 x 96, U-Net 16-32-64-128), one or
two networks, from an event loop as in a notebook. New results (another case, slice, class, method) count with their
computation. A callback ends with the new picture's bytes or, where those are expected to take longer than 100 ms, with
an announcement on the page that they follow. Written to `benchmarks/results/explorers.json`: per control the median and
the slowest callback against the 100 ms that a hand on a slider does not notice, how many were announced, and the
median and the longest time until the announced pictures were there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import machine

import toolkit as tk

RESULT = Path(__file__).parent / "results" / "explorers.json"
BUDGET_MS, BUDGET_BYTES = 100.0, 500_000


def explorers() -> Iterator[tuple[str, Any]]:
    task = tk.load_task("phantom-cardiac")
    volumes = sorted({case.volume for case in task.cases("test", site="A")})[:2]
    cases = [case for case in task.cases("test", site="A") if case.volume in volumes]
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(tk.unet(1, 4).eval())
    yield "cam_explorer", tk.widgets.cam_explorer(networks[0], cases)
    yield "cam_explorer, two networks", tk.widgets.cam_explorer(networks[0], cases, compare=networks[1])
    yield "mask_explorer", tk.widgets.mask_explorer(networks[0], cases)
    yield "similarity_explorer", tk.widgets.similarity_explorer(networks[0], cases)
    features = [tk.extract(one, cases, ["head_input", "bottleneck"], pool="voxels", samples=8) for one in networks]
    yield "drift_explorer", tk.widgets.drift_explorer(features, cases, bootstrap=50)


def values(control: Any) -> list[Any]:
    """What to move a control through."""
    if control.kind == "choice":
        return [value for _, value in control.options]
    if control.kind == "several":
        every = tuple(value for _, value in control.options)
        return [every[:1], every]
    if control.kind == "switch":
        return [False, True]
    numbers = np.linspace(control.low, control.high, 6)
    return sorted({int(n) if control.kind == "integer" else round(float(n), 2) for n in numbers})


def moves(explorer: Any, rounds: int) -> Iterator[dict[str, Any]]:
    """Per control: milliseconds of every change that was tried."""
    page = explorer.view.explorer_view  # follows every change, Plotly figures too
    for name in [control.name for control in explorer.controls()]:
        callbacks, followed, largest = [], [], 0
        for _ in range(rounds):
            (control,) = [one for one in explorer.controls() if one.name == name]
            home = explorer.state[name]
            for value in [one for one in values(control) if one != home] + [home]:
                start = time.perf_counter()
                explorer.set(**{name: value})
                callbacks.append(1e3 * (time.perf_counter() - start))
                if explorer.waiting:
                    explorer.catch_up()
                    followed.append(1e3 * (time.perf_counter() - start))
                largest = max(largest, len(page.picture.value))
        row = {
            "control": name,
            "changes": len(callbacks),
            "median_ms": round(statistics.median(callbacks), 1),
            "slowest_ms": round(max(callbacks), 1),
            "largest_bytes": largest,
            "announced": len(followed),
        }
        if followed:
            row |= {
                "followed_median_ms": round(statistics.median(followed), 1),
                "followed_longest_ms": round(max(followed), 1),
            }
        yield row


async def measured(rounds: int) -> list[dict[str, Any]]:
    """One row per control of every explorer."""
    rows = []
    for name, explorer in explorers():
        for found in moves(explorer, rounds):
            rows.append({"explorer": name, **found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="a second round finds results that are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = asyncio.run(measured(options.rounds))
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    content = {
        "benchmark": "explorers",
        **machine(threads, "wall"),
        "budget_ms": BUDGET_MS,
        "budget_bytes": BUDGET_BYTES,
        "rows": rows,
    }
    temporary = RESULT.with_name(f".{RESULT.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RESULT)
    return int(any(row["slowest_ms"] > BUDGET_MS for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
