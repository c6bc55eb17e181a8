"""Analyse the networks that `real_data.py` trained: drift over the sequence, and the first figures.

    TOOLKIT_DATA=... scripts/launch python benchmarks/real_analysis.py --runs runs/real

The drift table goes to `benchmarks/results/real_drift.csv`; figures show patients, so they stay below `--runs`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from real_data import CARDIAC, METHODS, RESULTS, SEEDS, lv_task, network

import toolkit as tk

BLOCKS = ["encoder.*", "bottleneck", "decoder.*"]


def drift_tables(runs: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Drift of the penultimate features of the first site's test patients while the second site is learnt."""
    task = lv_task()
    cases = task.cases("test", site=task.sites[0])
    tables, provenance = [], {}
    for method in METHODS:
        for seed in SEEDS:
            features = stage_features(runs / f"sequence_{method}_{seed}", task, cases, seed)
            drift = tk.drift(features, "head_input")
            tables.append(drift.table().assign(method=method, seed=seed))
            provenance[f"{method} seed {seed}"] = drift.provenance
            if seed == SEEDS[0]:
                folder = runs / "figures"
                drift.figure(folder / f"drift_{method}.png")
                tk.project(features, "head_input").figure(folder / f"pca_{method}.png")
    return pd.concat(tables), provenance


def stage_features(path: Path, task: Any, cases: list[Any], seed: int) -> list[Any]:
    """Penultimate features of the same voxels after each stage."""
    stages = tk.resume_sequence(path, network(seed, out_channels=2, **CARDIAC), task, progress=False)
    return [
        tk.extract(run.model, cases, ["head_input"], pool="voxels", samples=16, moments=False)
        for run in stages.stages
    ]


def first_figures(runs: Path, name: str, task: Any, label: str) -> None:
    """Grad-CAM of every block, similarity of a shallow and a deep block, and one masked latent, both methods."""
    folder = runs / "figures"
    case = max(task.cases("test")[:40], key=lambda c: int((c.label == max(task.classes)).sum()))
    for method in METHODS:
        model = tk.load_model(runs / f"{name}_{method}_0")
        target = tk.Region(label, inside="reference")
        tk.grad_cam(model, case, layers=BLOCKS, target=target).figure(
            folder / f"{name}_{method}_grad_cam.png"
        )
        features = tk.extract(model, task.cases("test")[:40], ["encoder.1", "bottleneck"])
        for layer in ("encoder.1", "bottleneck"):
            similarity = tk.channel_similarity(features, layer)
            similarity.figure(folder / f"{name}_{method}_similarity_{layer}.png")
        for skips in ("keep", "zero"):
            masked = tk.mask_latent(model, case, scheme="channel", fraction=0.5, seed=0, skips=skips)
            masked.figure(folder / f"{name}_{method}_masked_{skips}.png")


def main() -> None:
    """Write the drift table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    runs = parser.parse_args().runs
    first_figures(runs, "acdc", tk.load_task("cardiac_acdc"), "LV")
    first_figures(runs, "hippocampus", tk.load_task("hippocampus_msd04"), "anterior")
    table, provenance = drift_tables(runs)
    table.to_csv(RESULTS / "real_drift.csv", index=False, float_format="%.6g")
    (RESULTS / "real_drift.json").write_text(json.dumps(provenance, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
