"""All benchmarks in one go: ratios with their floors, written to benchmarks/results/ and printed as a table.

    scripts/launch python benchmarks/run.py [--only grad_cam extraction] [--threads 2] [--clock wall] [--rounds 5]

On a busy machine `--threads 1 --clock cpu` is repeatable to about ten percent; on a quiet one use the wall clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

import torch
from interleave import CLOCKS, machine

from toolkit.files import write_atomically

BY_THE_WALL = ("waiting", "training", "nnunet_loop", "studies")  # whatever is asked for
BENCHMARKS = ("grad_cam", "extraction", "analysis", "umap_first_fit", "segreg_rows", "launcher", *BY_THE_WALL)
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a floor is not reached")
    options = parser.parse_args()
    failed = False
    for name in options.only:
        torch.set_num_threads(options.threads)
        rows = importlib.import_module(name).rows(options.threads, options.clock, options.rounds)
        if not rows:  # it said why
            continue
        clock = "wall" if name in BY_THE_WALL else options.clock
        load = {"rounds": options.rounds, "load_average": round(os.getloadavg()[0], 1)}
        content = {"benchmark": name, **machine(options.threads, clock), **load, "rows": rows}
        RESULTS.mkdir(exist_ok=True)
        write_atomically(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")
        for one in rows:
            floor = next((f"{word} {one[word]:.2f}" for word in ("floor", "limit") if one.get(word) is not None), "")
            state = {True: "ok", False: "MISSED", None: ""}[one["passed"]]
            print(f"{one['name']:<68} {one['ratio']:>8.2f}  {floor:<11} {state}", flush=True)
            failed |= one["passed"] is False
    return int(failed and options.strict)


if __name__ == "__main__":
    sys.exit(main())
