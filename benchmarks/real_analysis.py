"""Analyse the networks that `real_data.py` trained: explain, measure, and the drift over the sequence.

    TOOLKIT_DATA=... scripts/launch python benchmarks/real_analysis.py acdc hippocampus sequence --runs runs/real

Tables go to `benchmarks/results/real_drift.csv` and `real_latent_<task>.csv`, one row per measure, method and seed;
figures show patients, so they stay below `--runs`.
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
        tk.extract(run.model, cases, ["head_input"], pool="voxels", samples=16, moments=False) for run in stages.stages
    ]


def explain_figures(runs: Path, name: str, task: Any, label: str) -> None:
    """Grad-CAM of every block with its checks, an attribution, and masked latents, of both methods' first seed."""
    folder = runs / "figures"
    case = max(task.cases("test")[:40], key=lambda c: int((c.label == max(task.classes)).sum()))
    target = tk.Region(label, inside="reference")
    for method in METHODS:
        model = tk.load_model(runs / f"{name}_{method}_0")
        cam = tk.grad_cam(model, case, layers=BLOCKS, target=target)
        saliency = tk.attribute(model, case, "integrated_gradients", target, steps=8)
        figures = {
            "grad_cam": cam,
            "faithfulness": tk.faithfulness(model, cam, target, steps=8, perturbations=4),
            "randomised": tk.randomised_weights(model, case, ["bottleneck", "decoder.1"], target),
            "attribution": saliency,
        }
        for skips in ("keep", "zero"):
            figures[f"masked_{skips}"] = tk.mask_latent(
                model, case, scheme="channel", fraction=0.5, seed=0, skips=skips
            )
        for kind, result in figures.items():
            result.figure(folder / f"{name}_{method}_{kind}.png")


def latent_table(runs: Path, name: str, task: Any) -> pd.DataFrame:
    """Redundancy, collapse and distance to N(0, I) of every network; figures of the first seed."""
    cases, folder, rows = task.cases("test")[:40], runs / "figures", []
    stores: dict[tuple[str, int], Any] = {}
    for method in METHODS:
        for seed in SEEDS:
            model = tk.load_model(runs / f"{name}_{method}_{seed}")
            features = tk.extract(model, cases, [*BLOCKS, "head_input"], pool="voxels", samples=16)
            stores[method, seed] = features
            for layer in ("encoder.1", "bottleneck", "head_input"):
                normal = tk.gaussianity(features, layer).table().iloc[0]  # all classes together
                shape = tk.collapse(features, layer).table().set_index("diagnostic")["value"]
                measured = {
                    "redundancy": tk.channel_similarity(features, layer).redundancy,
                    "epps_pulley": normal["T_over_N"],
                    "epps_pulley_of_normal_rows": normal["null_eff"],
                    **{key: shape[key] for key in ("effective_rank", "uniformity", "linear_probe")},
                }
                rows += [
                    {"method": method, "seed": seed, "layer": layer, "measure": measure, "value": value}
                    for measure, value in measured.items()
                ]
    for method in METHODS:
        features = stores[method, SEEDS[0]]
        for layer in ("encoder.1", "bottleneck"):
            similarity = tk.channel_similarity(features, layer)
            similarity.figure(folder / f"{name}_{method}_similarity_{layer}.png")
        tk.collapse(features, "bottleneck").figure(folder / f"{name}_{method}_collapse.png")
        tk.project(features, "head_input", method="umap").figure(folder / f"{name}_{method}_umap.png")
    pairs = {"plain_segreg": (("plain", 0), ("segreg", 0)), "plain_seeds": (("plain", 0), ("plain", 1))}
    for kind, (one, other) in pairs.items():
        tk.layer_similarity(stores[one], stores[other]).figure(folder / f"{name}_cka_{kind}.png")
    return pd.DataFrame(rows)


TASKS = {"acdc": ("cardiac_acdc", "LV"), "hippocampus": ("hippocampus_msd04", "anterior")}


def main() -> None:
    """Write the tables and the figures of the named experiments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", choices=[*TASKS, "sequence"])
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    arguments = parser.parse_args()
    for name in arguments.experiments:
        if name == "sequence":
            table, provenance = drift_tables(arguments.runs)
            table.to_csv(RESULTS / "real_drift.csv", index=False, float_format="%.6g")
            (RESULTS / "real_drift.json").write_text(json.dumps(provenance, indent=1, default=str) + "\n")
            continue
        task_name, label = TASKS[name]
        task = tk.load_task(task_name)
        explain_figures(arguments.runs, name, task, label)
        table = latent_table(arguments.runs, name, task)
        table.to_csv(RESULTS / f"real_latent_{name}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
