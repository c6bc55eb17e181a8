"""Milliseconds from a change of an explorer's control to the bytes of the new picture, and the size of that picture.

    scripts/launch python benchmarks/explorers.py [--rounds 3]

Every control of every explorer is moved through its values on the embedded task (96 x 96, U-Net 16-32-64-128), one or
two networks. New results (another case, slice, class, method) count with their computation. Written to
`benchmarks/results/explorers.json`: per control the median and the slowest of what was tried, against the 100 ms that
a hand on a slider does not notice. captum's perturbing methods pass the network many times and have a row of their own.
"""

from __future__ import annotations

import argparse
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
from toolkit.show.widgets.cam import INPUT_METHODS

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
    features = [
        tk.extract(one, cases, ["head_input", "bottleneck"], pool="voxels", samples=8) for one in networks
    ]
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
    for name in [control.name for control in explorer.controls()]:
        quick, slow, largest = [], [], 0
        for _ in range(rounds):
            (control,) = [one for one in explorer.controls() if one.name == name]
            home = explorer.state[name]
            for value in [one for one in values(control) if one != home] + [home]:
                start = time.perf_counter()
                explorer.set(**{name: value})
                picture, _ = explorer.compose().encode()
                spent = 1e3 * (time.perf_counter() - start)
                largest = max(largest, len(picture))
                (slow if value in INPUT_METHODS else quick).append(spent)
        for kind, times in (("", quick), (", captum's methods", slow)):
            if times:
                yield {"control": name + kind, "changes": len(times), "median_ms": round(statistics.median(times), 1),
                       "slowest_ms": round(max(times), 1), "largest_bytes": largest}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="a second round finds results that are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name, explorer in explorers():
        assert explorer.view is not None  # its page follows every change, Plotly figures too
        for found in moves(explorer, options.rounds):
            rows.append({"explorer": name, **found})
            print(json.dumps(rows[-1]), flush=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    content = {
        "benchmark": "explorers", **machine(threads, "wall"), "budget_ms": BUDGET_MS, "budget_bytes": BUDGET_BYTES,
        "rows": rows,
    }  # fmt: skip
    temporary = RESULT.with_name(f".{RESULT.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RESULT)
    return int(any(row["median_ms"] > BUDGET_MS and "captum" not in row["control"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
