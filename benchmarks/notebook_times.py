"""Time and peak memory of every notebook in its quick form, written to benchmarks/results/notebooks.json.

    scripts/launch python benchmarks/notebook_times.py [notebooks/01_data.ipynb ...] [--timeout 600]

Each notebook runs in a kernel of its own with FAST=1. Memory is the largest resident size of any one process of it.
CPU time holds on a busy machine too, wall time does not: `load` is the machine's when the notebook ended. Some
notebooks replace their rows and leave the others. A notebook that fails is recorded with its error, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from interleave import machine

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "notebooks.json"
BUDGET = {"notebook_s": 60.0, "all_s": 360.0, "cell_s_of_the_workshop": 30.0, "memory_mb": 2000.0}


def execute(path: Path, timeout: int) -> dict[str, Any]:
    """Run one notebook in this process's kernel and measure the kernel."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, record_timing=True, resources={"metadata": {"path": str(path.parent)}}
    )
    started, error = time.perf_counter(), ""
    try:
        client.execute()
    except (CellExecutionError, TimeoutError, RuntimeError) as problem:
        error = str(problem).strip().splitlines()[-1]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    seconds = [_cell_seconds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    return {
        "notebook": path.name,
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss * kilobyte / 1e6),
        "longest_cell_s": round(max(seconds, default=0.0), 1),
        "load": round(os.getloadavg()[0], 1),
        "error": error,
    }


def _cell_seconds(cell: Any) -> float:
    times = cell.metadata.get("execution", {})
    ends = [times.get("iopub.execute_input"), times.get("shell.execute_reply")]
    if None in ends:
        return 0.0
    first, last = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in ends)
    return (last - first).total_seconds()


def measure(path: Path, timeout: int) -> dict[str, Any]:
    """Run one notebook in a process of its own, so that the numbers of its kernel are its own."""
    command = [sys.executable, __file__, "--one", str(path), "--timeout", str(timeout)]
    done = subprocess.run(command, env={**os.environ, "FAST": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"notebook": path.name, "error": done.stderr.strip().splitlines()[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(execute(options.one, options.timeout)))
        return 0
    chosen = options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    rows = []
    for path in chosen:
        rows.append(measure(path.resolve(), options.timeout))
        print(json.dumps(rows[-1]), flush=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    known = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if options.notebooks and RESULT.exists() else []
    merged = {row["notebook"]: row for row in (*known, *rows)}
    every = [merged[name] for name in sorted(merged)]
    content = {
        "benchmark": "notebooks",
        **machine(threads, "wall"),
        "budget": BUDGET,
        "all_s": round(sum(row.get("wall_s", 0.0) for row in every), 1),
        "all_cpu_s": round(sum(row.get("cpu_s", 0.0) for row in every), 1),
        "rows": every,
    }
    RESULT.parent.mkdir(exist_ok=True)
    temporary = RESULT.with_name(f".{RESULT.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RESULT)
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
