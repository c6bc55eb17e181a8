"""How hard phantom-cardiac is: a plain U-Net trained on one site or on all, Dice per test site, several seeds.

Writes benchmarks/results/phantom_difficulty.json. Example: scripts/launch python benchmarks/phantom_difficulty.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.catalogue import load_task
from toolkit.data.phantoms.cardiac import SITES, SUBJECTS, generate
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.evaluate import evaluate
from toolkit.training.start import train


def slices_per_second(stacks: int = 3) -> float:
    """Slices generated in a second of processor time on one core, over all sites."""
    generate("A", 0)
    start, made = time.process_time(), 0
    for site in SITES:
        made += sum(len(generate(site, subject).image) for subject in range(stacks))
    return made / (time.process_time() - start)


def population_hash() -> str:
    """SHA-256 over the bytes of every subject, in order: the same while the pictures are the same."""
    digest = hashlib.sha256()
    for site in SITES:
        for split in SUBJECTS[site].values():
            for subject in split:
                phantom = generate(site, subject)
                digest.update(phantom.image.tobytes() + phantom.label.tobytes())
    return digest.hexdigest()


def trained_scores(task: Any, sites: list[str], config: TrainConfig) -> dict[str, dict[str, float]]:
    """Mean test Dice over volumes, per test site and class, of a network trained on `sites`."""
    torch.manual_seed(config.seed)
    network = unet(1, len(task.classes))
    with tempfile.TemporaryDirectory() as folder:
        train(network, task, config=config, out=f"{folder}/run", site=sites, progress=False)
    table = evaluate(network, task.cases("test"), metrics=["dice"])
    table = table[table["metric"] == "dice"]
    scores = {}
    for site, rows in table.groupby("site"):
        per_class = rows.groupby("class")["value"].mean()
        scores[str(site)] = {str(name): round(float(value), 4) for name, value in per_class.items()}
        scores[str(site)]["mean"] = round(float(per_class.mean()), 4)
    return scores


def measure(task: Any, arms: dict[str, list[str]], seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """One record per training, as they end."""
    for seed in range(seeds):
        for name, sites in arms.items():
            config = TrainConfig(
                steps=steps, batch_size=16, learning_rate=2e-3, seed=seed, device="cpu", checkpoint_every=0,
                validate_every=0, select="last", augmentation="standard",
            )  # fmt: skip
            start = time.perf_counter()
            scores = trained_scores(task, sites, config)
            seconds = time.perf_counter() - start
            means = "  ".join(f"{site} {scores[site]['mean']:.3f}" for site in task.sites)
            print(f"seed {seed}  trained on {name:6s}  {means}  ({seconds:.0f} s)", flush=True)
            yield {"arm": name, "sites": sites, "seed": seed, "seconds": round(seconds, 1), "dice": scores}


def summary(runs: list[dict[str, Any]], sites: list[str]) -> dict[str, Any]:
    """Mean over seeds, and what training on one site alone loses on its worst other site."""
    result: dict[str, Any] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        mine = [run["dice"] for run in runs if run["arm"] == arm]
        means = {site: round(statistics.mean(d[site]["mean"] for d in mine), 4) for site in sites}
        result[arm] = {"dice": means}
        if arm == "joint":
            result[arm]["mean"] = round(statistics.mean(means.values()), 4)
            result[arm]["lowest_seed_mean"] = min(
                round(statistics.mean(d[s]["mean"] for s in sites), 4) for d in mine
            )
        else:
            drops = [d[arm]["mean"] - min(d[s]["mean"] for s in sites if s != arm) for d in mine]
            result[arm]["worst_loss_mean"] = round(statistics.mean(drops), 4)
            result[arm]["worst_loss_smallest"] = round(min(drops), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--arms", nargs="+", default=["A", "joint"], help="site names, and joint for all of them"
    )
    parser.add_argument("--out", default="benchmarks/results/phantom_difficulty.json")
    options = parser.parse_args()
    task = load_task("phantom-cardiac")
    arms = {name: list(task.sites) if name == "joint" else [name] for name in options.arms}
    report = {
        "question": "Dice lost by training on one site; Dice reached by training on all (phantom-cardiac, test split)",
        "network": "unet(1, 4, channels=(16, 32, 64, 128))",
        "training": {
            "steps": options.steps, "batch_size": 16, "patch": [96, 96], "optimizer": "adamw", "learning_rate": 2e-3,
            "schedule": "one_cycle", "augmentation": "standard", "precision": "32", "selection": "last step",
            "objective": "cross-entropy + soft Dice", "seeds": list(range(options.seeds)),
        },
        "data": {"task": "phantom-cardiac", "bytes_sha256": population_hash()},
        "slices_per_cpu_second": round(slices_per_second(), 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    runs: list[dict[str, Any]] = []
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    for run in measure(task, arms, options.seeds, options.steps):
        # Written after every training, so that an interrupted measurement keeps what it has.
        runs.append(run)
        report |= {"summary": summary(runs, list(task.sites)), "runs": runs}
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(path)
    print(json.dumps(report["summary"], indent=1))
    print(path)


if __name__ == "__main__":
    main()
