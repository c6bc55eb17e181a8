"""How time and memory grow with the work: 1, 10, 100 and 1 000 times the rows, each size in a process of its own.

    python benchmarks/growth.py          # writes benchmarks/results/growth.json and docs/images/growth.png

Extraction (16 x 16 images, a small U-Net, into a store), PCA of a stored layer, CKA of two layers, drift of two stages
and the similarity of channels, on one thread. Time is CPU time per row; memory is the growth of the process's peak over
what it held before the call. Flat: at most twice the time per row of 10 times the rows at 1 000 times; CKA, drift and
similarity keep the rows of their layers in memory, every call the table of the rows; drift keeps sums for each patient,
or for each of its replicates where those are fewer (all 1e5 rows have 3 333 patients). Linux only: the peak is read from /proc.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

TIMES = (1, 10, 100, 1000)
BASE = {"extraction": 8, "PCA, streamed": 300, "CKA": 300, "drift": 100, "channel similarity": 10}
CHANNELS = 32
RESULTS, PICTURE = Path(__file__).parent / "results" / "growth.json", Path("docs/images/growth.png")


def megabytes(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak since the last reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _write_store(folder: Path, rows: int) -> None:
    """In a process of its own, as making the store takes more memory than reading it."""
    from analysis import _store

    _store({"layer": torch.randn(rows, CHANNELS)}, max(10, rows // 30)).save(folder / "rows.zarr")


def _images(count: int) -> Any:
    """Labelled images made one by one."""
    for index in range(count):
        random = np.random.default_rng(index)
        label = random.integers(0, 2, (1, 16, 16), dtype=np.uint8)
        yield {"image": random.random((1, 16, 16), dtype=np.float32) + label, "label": label, "id": f"{index:06d}"}


def _call(kind: str, rows: int, folder: Path) -> Callable[[], object]:
    """The call that is timed; what it works on is there before."""
    import toolkit as tk

    if kind == "extraction":
        model = tk.unet(1, 2, channels=(4, 8)).eval()
        tk.extract(model, list(_images(8)), ["bottleneck"], out=folder / "first.zarr")  # imports, first passes
        return lambda: tk.extract(model, _images(rows), ["bottleneck"], out=folder / "all.zarr")
    from analysis import _store

    def stores(number: int) -> tuple[Any, ...]:
        """In memory; about 30 rows a case, as pool="voxels" gives them, or a row an image with second moments."""
        both = tuple(_store({"layer": part}, max(10, number // 30)) for part in torch.randn(2, number, CHANNELS))
        if kind == "channel similarity":
            maps = torch.rand(8, CHANNELS, 64)
            grams, images = maps @ maps.transpose(1, 2), torch.arange(number) % 8
            both[0]._arrays.values |= {
                ("layer", "gram"): grams[images],
                ("layer", "sum"): maps.sum(2)[images],
                ("layer", "count"): torch.full((number,), 64),
            }
        return both

    calls: dict[str, Callable[[Any, Any], object]] = {
        "PCA, streamed": lambda first, _: tk.project(first, "layer"),
        "CKA": lambda first, second: tk.layer_similarity(first, second),
        "drift": lambda first, second: tk.drift([first, second], "layer"),
        "channel similarity": lambda first, _: tk.channel_similarity(first, "layer"),
    }
    calls[kind](*stores(200))  # imports
    if kind == "PCA, streamed":
        subprocess.run([sys.executable, __file__, "store", str(rows), str(folder)], check=True)
        first = second = tk.open_features(folder / "rows.zarr")
        assert len(first.cases) == rows
    else:
        first, second = stores(rows)
    return lambda: calls[kind](first, second)


def measure(kind: str, times: int) -> dict[str, Any]:
    """One point, in this process."""
    torch.set_num_threads(1)
    rows = BASE[kind] * times
    with tempfile.TemporaryDirectory() as folder:
        call = _call(kind, rows, Path(folder))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = megabytes("VmRSS"), time.process_time()
        result = call()
        seconds, peak = time.process_time() - start, megabytes("VmHWM")
    assert result is not None
    return {
        "what": kind,
        "times": times,
        "rows": rows,
        "cpu_seconds": round(seconds, 4),
        "microseconds_per_row": round(1e6 * seconds / rows, 2),
        "peak_growth_mb": round(peak - before, 1),
    }


def flat(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per call: time per row and memory at 1 000 times against 10 times."""
    table = []
    for kind in BASE:
        by_times = {point["times"]: point for point in points if point["what"] == kind}
        few, many = by_times[10], by_times[1000]
        ratio = many["microseconds_per_row"] / few["microseconds_per_row"]
        row = {"what": kind, "time_per_row_1000_over_10": round(ratio, 3), "time_flat": ratio <= 2.0}
        table.append({**row, "peak_growth_mb": [by_times[times]["peak_growth_mb"] for times in TIMES]})
    return table


def picture(points: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for kind in BASE:
        own = [point for point in points if point["what"] == kind]
        rows = [point["rows"] for point in own]
        time_axes.loglog(rows, [point["microseconds_per_row"] for point in own], "o-", label=kind)
        memory_axes.loglog(rows, [max(0.1, point["peak_growth_mb"]) for point in own], "o-", label=kind)
    time_axes.set(xlabel="rows (extraction, similarity: images)", ylabel="CPU time per row (µs)")
    memory_axes.set(xlabel="rows (extraction, similarity: images)", ylabel="peak memory over the start (MB)")
    memory_axes.legend(frameon=False, fontsize=8)
    for axes in (time_axes, memory_axes):
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    from interleave import machine

    points = []
    for kind in BASE:
        for times in TIMES:
            command = [sys.executable, __file__, kind, str(times)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            points.append(json.loads(done.stdout.splitlines()[-1]))
            print(points[-1], flush=True)
    table = {"benchmark": "growth", **machine(1, "cpu"), "load_average": os.getloadavg()[0]}
    table |= {"channels": CHANNELS, "flat": flat(points), "points": points}
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    picture(points, PICTURE)
    for row in table["flat"]:
        print(row)


if __name__ == "__main__":
    if sys.argv[1:2] == ["store"]:
        _write_store(Path(sys.argv[3]), int(sys.argv[2]))
    elif len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
