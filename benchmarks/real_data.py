"""Train plain and SegReg networks on real data, three seeds each, and score them once on the test split.

    TOOLKIT_DATA=... scripts/launch python benchmarks/real_data.py acdc hippocampus sequence --out runs/real

Every run is a run directory below `--out`; a finished one is reused, a killed one resumes. Tables go to
`benchmarks/results/real_<experiment>.csv` with their provenance beside them in a JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import toolkit as tk
from toolkit.measure.evaluate import evaluate
from toolkit.training.engine import environment

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
METHODS: dict[str, Callable[[], Any]] = {"plain": lambda: None, "segreg": lambda: tk.SegReg(weight=0.1)}
ACDC = tk.TrainConfig(
    steps=900, batch_size=12, precision="bf16", learning_rate=1e-2, validate_every=225, checkpoint_every=150
)
HIPPOCAMPUS = ACDC.replace(steps=800, batch_size=4, validate_every=200, checkpoint_every=200)
STAGE = ACDC.replace(steps=100, validate_every=50, checkpoint_every=50)
CARDIAC = {"in_channels": 1, "channels": (16, 32, 64, 128, 256)}  # five levels: the right ventricle needs the context


def arms(seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Method and seed, seeds outermost, so that an interrupted study holds complete pairs."""
    for seed in seeds:
        for method in METHODS:
            yield method, seed


def trained(model: torch.nn.Module, task: Any, method: str, config: tk.TrainConfig, out: Path) -> Any:
    """A finished run: reused, resumed or trained."""
    if out.exists():
        return tk.resume(out, task=task)
    return tk.train(model, task, regularizer=METHODS[method](), config=config, out=out)


def network(seed: int, **arguments: Any) -> torch.nn.Module:
    """A U-Net whose initial weights depend on the seed alone, so both methods start from the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tk.unet(**arguments)


def acdc(out: Path, seeds: Sequence[int], score: bool) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Four classes on ACDC; the left ventricle also at the other site, never seen in training."""
    task, other = tk.load_task("cardiac_acdc"), tk.load_task("cardiac_sunnybrook")
    label = next(number for number, name in task.classes.items() if name == "LV")
    elsewhere = [dataclasses.replace(case, classes=task.classes, relabel=(0, label)) for case in other.cases("test")]
    tables, validation = [], {}
    for method, seed in arms(seeds):
        run = trained(
            network(seed, out_channels=4, **CARDIAC),
            task,
            method,
            ACDC.replace(seed=seed),
            out / f"acdc_{method}_{seed}",
        )
        validation[f"{method} seed {seed}"] = best_validation(run)
        print(f"acdc {method} {seed}: validation {validation[f'{method} seed {seed}']:.4f}", flush=True)
        if not score:
            continue
        within = run.evaluate("test")
        across = evaluate(run.model, elsewhere, patch_size=run.task.patch_size, precision="bf16")
        across = across[across["class"] == "LV"]  # the other site labels nothing else
        tables.append(pd.concat([within, across]).assign(method=method, seed=seed))
    return tables, {"task": task.name, "config": ACDC.to_dict(), "validation_dice": validation}


def hippocampus(out: Path, seeds: Sequence[int], score: bool) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Two parts of the hippocampus in 3D, all three intensity families together."""
    task = tk.load_task("hippocampus_msd04")
    tables, validation = [], {}
    for method, seed in arms(seeds):
        model = network(seed, in_channels=1, out_channels=3, channels=(8, 16, 32, 64), dims=3)
        run = trained(model, task, method, HIPPOCAMPUS.replace(seed=seed), out / f"hippocampus_{method}_{seed}")
        best = validation[f"{method} seed {seed}"] = best_validation(run)
        print(f"hippocampus {method} {seed}: validation {best:.4f}", flush=True)
        if score:
            tables.append(run.evaluate("test").assign(method=method, seed=seed))
    return tables, {"task": task.name, "config": HIPPOCAMPUS.to_dict(), "validation_dice": validation}


def lv_task() -> Any:
    """The left ventricle at both cardiac sites: the only structure that both label."""
    parts = [tk.load_task("cardiac_acdc"), tk.load_task("cardiac_sunnybrook")]
    return tk.join_tasks(parts, classes={"LV": {"cardiac_acdc": "LV", "cardiac_sunnybrook": "LV"}})


def sequence(out: Path, seeds: Sequence[int], score: bool) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """ACDC, then Sunnybrook, left ventricle only: scores of every site after each stage."""
    task = lv_task()
    tables = []
    for method, seed in arms(seeds):
        folder, model = out / f"sequence_{method}_{seed}", network(seed, out_channels=2, **CARDIAC)
        if folder.exists():
            stages = tk.resume_sequence(folder, model, task)
        else:
            stages = tk.train_sequence(
                model, task, list(task.sites), METHODS[method](), STAGE.replace(seed=seed), out=folder
            )
        print(f"sequence {method} {seed}: done", flush=True)
        if score:
            for stage, run in enumerate(stages.stages):
                scores = run.evaluate("test", list(task.sites), metrics=("dice",))
                tables.append(scores.assign(stage=stage, trained_on=task.sites[stage], method=method, seed=seed))
    return tables, {"task": task.name, "sites": list(task.sites), "config": STAGE.to_dict()}


def best_validation(run: Any) -> float:
    """Mean foreground Dice per validation volume of the selected weights."""
    return float(run.history["validation/dice"].max())


EXPERIMENTS = {"acdc": acdc, "hippocampus": hippocampus, "sequence": sequence}


def main() -> None:
    """Run the named experiments and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="fewer only train: no test score, no table")
    arguments = parser.parse_args()
    for name in arguments.experiments:
        started = time.perf_counter()
        complete = set(arguments.seeds) == set(SEEDS)
        tables, record = EXPERIMENTS[name](arguments.out, arguments.seeds, complete)
        if not complete:
            continue
        record |= {"seeds": list(SEEDS), "methods": list(METHODS), "seconds": round(time.perf_counter() - started)}
        record |= {"environment": environment(tk.TrainConfig.from_dict(record["config"]))}
        record["note"] = "The SegReg loss is inferred from the public parts of its paper, not taken from its code."
        RESULTS.mkdir(exist_ok=True)
        pd.concat(tables).to_csv(RESULTS / f"real_{name}.csv", index=False, float_format="%.6g")
        (RESULTS / f"real_{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
