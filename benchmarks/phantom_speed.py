"""How quickly the phantoms are generated: slices (or tiles) in a second of processor time on one core.

    OMP_NUM_THREADS=1 scripts/launch python benchmarks/phantom_speed.py

Writes benchmarks/results/phantom_speed.json. Processor time, so that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.generated import GENERATORS, generator
from toolkit.data.phantoms.phantom import Generator

RESULT = Path(__file__).parent / "results" / "phantom_speed.json"
FLOOR = 50.0  # slices a second on one core


def slices_per_second(task: Generator, subjects: int = 3) -> float:
    """Slices of stacks and volumes, or tiles, generated in a second of processor time, over all sites."""
    task.generate(task.sites[0], 0)
    start, made = time.process_time(), 0
    for site in task.sites:
        for subject in range(subjects):
            label = task.generate(site, subject).label
            made += len(label) if label.ndim == 3 else 1
    return made / (time.process_time() - start)


def measured(rounds: int) -> dict[str, Any]:
    """Per task the rate of every round and the middle one."""
    tasks: dict[str, Any] = {}
    for name in GENERATORS:
        subjects = 12 if name == "phantom-glands" else 3
        rates = sorted(round(slices_per_second(generator(name), subjects), 1) for _ in range(rounds))
        tasks[name] = {
            "unit": "tiles" if name == "phantom-glands" else "slices",
            "per_cpu_second": rates[len(rates) // 2],
            "rounds": rates,
            "passed": rates[len(rates) // 2] >= FLOOR,
        }
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    report = {
        "question": "Slices or tiles generated in a second of processor time on one core",
        "floor": FLOOR,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "tasks": measured(options.rounds),
    }
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    for name, row in report["tasks"].items():
        print(f"{name:<22}{row['per_cpu_second']:>8.1f} {row['unit']} a CPU second")
    print(options.out)


if __name__ == "__main__":
    main()
