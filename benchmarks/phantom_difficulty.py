"""How hard an embedded task is: a plain U-Net trained on one site or on all, Dice per test site, several seeds.

    scripts/launch python benchmarks/phantom_difficulty.py phantom-hippocampus [--seeds 3] [--arms A joint] [--steps 300]

Writes benchmarks/results/phantom_difficulty_<task>.json (phantom_difficulty.json for phantom-cardiac).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
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
from toolkit.data.generated import GENERATORS
from toolkit.measure.evaluate import evaluate
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.train import train

RESULTS = Path(__file__).parent / "results"
# What a site's shift has to cost on the worst other site, and what training on all sites has to reach.
SHIFT_FLOOR, JOINT_FLOOR = 0.15, 0.85


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a task is trained: small enough for minutes on one core, long enough to converge."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    batch_size: int = 16
    learning_rate: float = 2e-3
    steps: int = 300


SETTINGS = {
    "phantom-cardiac": Setting(),
    "phantom-glands": Setting(batch_size=8),
    "phantom-hippocampus": Setting(channels=(16, 32, 64), batch_size=2, learning_rate=1e-2),
    "phantom-prostate": Setting(channels=(16, 32, 64), batch_size=2, learning_rate=1e-2),
}


def trained_scores(task: Any, sites: list[str], setting: Setting, config: TrainConfig) -> dict[str, dict[str, float]]:
    """Mean test Dice over volumes, per test site and class, of a network trained on `sites`."""
    torch.manual_seed(config.seed)
    network = unet(task.channels, len(task.classes), channels=setting.channels, dims=task.dims)
    with tempfile.TemporaryDirectory() as folder:
        train(network, task, config=config, out=f"{folder}/run", site=sites, progress=False)
    table = evaluate(network, task.cases("test"), metrics=["dice"], batch_size=4)
    table = table[table["metric"] == "dice"]
    scores = {}
    for site, rows in table.groupby("site"):
        per_class = rows.groupby("class")["value"].mean()
        scores[str(site)] = {str(name): round(float(value), 4) for name, value in per_class.items()}
        scores[str(site)]["mean"] = round(float(per_class.mean()), 4)
    return scores


def measure(task: Any, arms: dict[str, list[str]], seeds: list[int], setting: Setting) -> Iterator[dict[str, Any]]:
    """One record per training, as they end."""
    for seed in seeds:
        for name, sites in arms.items():
            config = TrainConfig(
                steps=setting.steps,
                batch_size=setting.batch_size,
                learning_rate=setting.learning_rate,
                seed=seed,
                device="cpu",
                checkpoint_every=0,
                validate_every=0,
                select="last",
                augmentation="standard",
            )
            start = time.process_time()
            scores = trained_scores(task, sites, setting, config)
            seconds = time.process_time() - start
            means = "  ".join(f"{site} {scores[site]['mean']:.3f}" for site in task.sites)
            print(f"seed {seed}  trained on {name:6s}  {means}  ({seconds:.0f} CPU s)", flush=True)
            yield {"arm": name, "sites": sites, "seed": seed, "cpu_seconds": round(seconds, 1), "dice": scores}


def summary(runs: list[dict[str, Any]], sites: list[str]) -> dict[str, Any]:
    """Mean over seeds, and what training on one site alone loses on its worst other site."""
    result: dict[str, Any] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        mine = [run["dice"] for run in runs if run["arm"] == arm]
        means = {site: round(statistics.mean(d[site]["mean"] for d in mine), 4) for site in sites}
        result[arm] = {"dice": means}
        if arm == "joint":
            result[arm]["mean"] = round(statistics.mean(means.values()), 4)
            result[arm]["lowest_seed_mean"] = min(round(statistics.mean(d[s]["mean"] for s in sites), 4) for d in mine)
        else:
            drops = [d[arm]["mean"] - min(d[s]["mean"] for s in sites if s != arm) for d in mine]
            result[arm]["worst_loss_mean"] = round(statistics.mean(drops), 4)
            result[arm]["worst_loss_smallest"] = round(min(drops), 4)
    return result


def verdict(result: dict[str, Any]) -> dict[str, bool]:
    """Whether the measured means reach what an embedded task promises."""
    verdicts = {}
    for arm, values in result.items():
        if arm == "joint":
            verdicts["joint training reaches 0.85"] = values["mean"] >= JOINT_FLOOR
        else:
            verdicts[f"training on {arm} costs 0.15"] = values["worst_loss_mean"] >= SHIFT_FLOOR
    return verdicts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="phantom-cardiac", choices=sorted(GENERATORS))
    parser.add_argument("--steps", type=int, help="default: the task's own")
    parser.add_argument("--learning-rate", type=float, help="default: the task's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=["A", "joint"], help="site names, and joint for all of them")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def description(task: Any, setting: Setting, seeds: list[int]) -> dict[str, Any]:
    """Everything that decides the numbers."""
    return {
        "question": f"Dice lost by training on one site; Dice reached by training on all ({task.name}, test split)",
        "network": f"unet({task.channels}, {len(task.classes)}, channels={setting.channels}, dims={task.dims})",
        "training": {
            **dataclasses.asdict(setting),
            "patch": list(task.patch_size),
            "optimizer": "adamw",
            "schedule": "one_cycle",
            "augmentation": "standard",
            "precision": "32",
            "selection": "last step",
            "objective": "cross-entropy + soft Dice (squared denominator)",
            "seeds": seeds,
        },
        "data": {"task": task.name, "content_hash": task.content_hash()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    options = _options()
    task, setting = load_task(options.task), SETTINGS[options.task]
    changed = {"steps": options.steps, "learning_rate": options.learning_rate}
    setting = dataclasses.replace(setting, **{name: value for name, value in changed.items() if value})
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    arms = {name: list(task.sites) if name == "joint" else [name] for name in options.arms}
    ending = "" if task.name == "phantom-cardiac" else f"_{task.name.removeprefix('phantom-')}"
    path = options.out or RESULTS / f"phantom_difficulty{ending}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    report, runs = description(task, setting, seeds), []
    for run in measure(task, arms, seeds, setting):
        # Written after every training, so that an interrupted measurement keeps what it has.
        runs.append(run)
        result = summary(runs, list(task.sites))
        report |= {"summary": result, "verdict": verdict(result), "runs": runs}
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    print(json.dumps({"summary": report["summary"], "verdict": report["verdict"]}, indent=1))
    print(path)


if __name__ == "__main__":
    main()
