"""Kill a training with SIGKILL at random steps, resume it, and compare the bytes with an uninterrupted run.

    python benchmarks/kill_resume.py --count 20 --out benchmarks/results/kill_resume.json

Every trial is killed once at a random step (and a random moment within it), in a process of its own, and resumed in
another. Compared are the weights and the optimizer's moments at the last step, byte for byte, the selected step, and
the history without its time columns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

PROGRAM = Path(__file__).parents[1] / "tests" / "contract" / "resume_program.py"
STEPS = 24
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}


def kill_at(folder: Path, step: int, delay: float) -> int:
    """Start the program, kill it `delay` seconds after it has logged `step`; the last step it logged."""
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], env=ENVIRONMENT)
    history = folder / "history.jsonl"
    while process.poll() is None:
        if history.exists() and f'"step": {step},' in history.read_text():
            time.sleep(delay)
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = [line for line in history.read_text().splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"]


def contents(folder: Path) -> dict[str, Any]:
    """What must be equal."""
    last = folder / "checkpoints" / f"{STEPS:08d}"
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    state = torch.load(last / "state.pt", weights_only=True)
    return {
        "weights": (last / "weights.safetensors").read_bytes(),
        "moments": [v.numpy().tobytes() for m in state["optimizer"]["state"].values() for v in m.values()],
        "regularizer": state["regularizers"]["awkward"]["average"].numpy().tobytes(),
        "history": [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows],
        "selected": json.loads((folder / "state.json").read_text())["selected_step"],
    }


def trial(root: Path, index: int, drawn: random.Random, reference: dict[str, Any]) -> dict[str, Any]:
    folder = root / f"trial-{index}"
    killed_at = kill_at(folder, drawn.randrange(1, STEPS), drawn.uniform(0.0, 0.03))
    checkpoint = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    subprocess.run([sys.executable, str(PROGRAM), str(folder), "--resume"], check=True, env=ENVIRONMENT)
    result = contents(folder)
    return {
        "killed_after_step": killed_at,
        "resumed_from": checkpoint,
        **{name: result[name] == reference[name] for name in reference},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        subprocess.run([sys.executable, str(PROGRAM), str(root / "reference")], check=True, env=ENVIRONMENT)
        reference = contents(root / "reference")
        trials = []
        for index in range(options.count):
            trials.append(trial(root, index, drawn, reference))
            print(trials[-1])
    agreed = sum(all(each[name] for name in reference) for each in trials)
    print(f"{agreed} of {len(trials)} killed and resumed runs equal the uninterrupted one byte for byte")
    if options.out:
        record = {
            "agreed": agreed,
            "count": len(trials),
            "seed": options.seed,
            "steps": STEPS,
            "trials": trials,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "threads": 1,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
