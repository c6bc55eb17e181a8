"""Train every recipe on its real pack for some hundred steps on a CPU and write how each loss term moved.

    TOOLKIT_DATA=... scripts/launch python benchmarks/recipes_on_data.py all --steps 300 --out runs/recipes [--threads 2]
    TOOLKIT_DATA=... scripts/launch python benchmarks/recipes_on_data.py segreg med_disseg --steps 300 --out runs/recipes

Networks, patches and batches are smaller than the recipes', so that 300 steps take minutes; what was changed is written
beside the numbers. A finished stage is reused, a killed one resumes. For every term of every stage: mean of the first
and of the last ten logged steps, in `benchmarks/results/recipes_on_data.json`, one entry a recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from interleave import machine

import toolkit as tk
from toolkit.methods.recipe import Stage
from toolkit.methods.recipes import Recipe
from toolkit.training.run import Run

RESULTS = Path(__file__).parent / "results" / "recipes_on_data.json"
LOGGED = 10


@dataclasses.dataclass(frozen=True)
class Trial:
    """A recipe on a pack; `network` and `config` are what is smaller than the recipe's own."""

    pack: str
    recipe: Callable[..., Recipe]
    network: Mapping[str, Any]
    config: Mapping[str, Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, steps: int) -> Recipe:
        # Logged steps cost a gradient ratio; nothing is selected in a trial, so nothing is validated.
        rhythm = {
            "steps": steps,
            "log_every": max(1, steps // 75),
            "checkpoint_every": max(1, steps // 3),
            "validate_every": 0,
            "select": "last",
        }
        return self.recipe(
            tk.load_task(self.pack), **self.options, model=dict(self.network), **{**rhythm, **self.config}
        )


TRIALS = {
    "self_reg_unet": Trial(
        "cardiac_acdc", tk.recipes.self_reg_unet, {"width": 24}, {"patch_size": (128, 128), "batch_size": 4}
    ),
    "self_reg_swin": Trial("cardiac_acdc", tk.recipes.self_reg_unet, {"width": 48}, {"batch_size": 2}, {"swin": True}),
    "latent_augmentation": Trial(
        "cardiac_acdc", tk.recipes.latent_augmentation, {"width": 8}, {"patch_size": (128, 128), "batch_size": 8}
    ),
    "segreg": Trial("hippocampus_msd04", tk.recipes.segreg, {"channels": [12, 24, 48, 96]}, {}),
    "med_disseg": Trial(
        "nuclei_dsb2018",
        tk.recipes.med_disseg,
        {"encoder_width": 8, "width": 16},
        {"patch_size": (128, 128), "batch_size": 4},
    ),
}


def changed(stage: Stage) -> dict[str, Any]:
    """What the trial, not the recipe, chose."""
    return {f"{s.part}.{s.name}": s.value for s in stage.settings if s.source == "chosen by the caller"}


def terms(stage: Stage, history: pd.DataFrame) -> dict[str, dict[str, float]]:
    """First and last values of every loss term of a stage."""
    found: dict[str, dict[str, float]] = {}
    wanted = [f"{stage.regularizer.name}/{t}" for t in stage.regularizer.weights(10**6)] if stage.regularizer else []
    prefix = f"{stage.objective.name}/"
    for column in history.columns:
        name = str(column)
        own = name.startswith(prefix) and not name.endswith(("gradient_norm", "weight"))
        if own or name in wanted:
            values = history[column].dropna()
            found[name] = {"first": float(values.head(LOGGED).mean()), "last": float(values.tail(LOGGED).mean())}
    return found


def record(stage: Stage, run: Run) -> dict[str, Any]:
    history = run.history
    seconds = history["seconds/step"].dropna() if "seconds/step" in history.columns else pd.Series(dtype=float)
    return {
        "stage": stage.name,
        "task": stage.task.name,
        "steps": stage.config.steps,
        "patch_size": list(stage.config.patch_size or stage.task.patch_size),
        "batch_size": stage.config.batch_size,
        "changed": changed(stage),
        "seconds_per_step": float(seconds.median()) if len(seconds) else None,
        "terms": terms(stage, history),
    }


def write(name: str, entry: dict[str, Any], path: Path) -> None:
    """Put one recipe's entry into the file of all."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content[name] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, default=list) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=["all", *TRIALS])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in TRIALS if "all" in options.recipes else options.recipes:
        started = time.perf_counter()
        recipe = TRIALS[name].build(options.steps)
        runs = recipe.train(options.out / name, progress=False)
        stages = [record(stage, run) for stage, run in zip(recipe.stages, runs, strict=True)]
        seconds = round(time.perf_counter() - started, 1)
        write(name, {**machine(options.threads, "wall"), "seconds": seconds, "stages": stages}, options.results)
        for stage in stages:
            print(f"{name} {stage['stage']}: {stage['steps']} steps, {stage['seconds_per_step']:.2f} s a step")
            for term, value in stage["terms"].items():
                print(f"  {term:<44} {value['first']:>10.4f} -> {value['last']:>10.4f}", flush=True)


if __name__ == "__main__":
    main()
