"""Write the trained networks that come with the project: `python -m evidence.networks [--runs FOLDER]`.

Every network of the list whose training is done is stored in half precision, scored as it is stored, and gets a card.
Those of real data that would pass the limit of 40 MB go to `runs/networks`; with TOOLKIT_NETWORKS=runs/networks
`toolkit.load_trained` and the notebooks find them.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

import toolkit as tk
from evidence.cards import card_file, save_trained, short_history
from evidence.run import Job
from evidence.studies import STUDIES
from toolkit.measure.intervals import patient_bootstrap
from toolkit.training.directory import RunDirectory
from toolkit.training.history import read_history

FOLDER, LARGER = Path(__file__).with_name("networks"), Path("runs/networks")
PATIENTS, SAMPLE, TOLERANCE, FLOOR = 8, 2, 0.002, 0.75
SEEDS, ONE_SEED = ((0, 1, 2), re.compile("acdc|nuclei|scr|ifd|swin|released|unet-|sequence|encoder|glands/selfreg"))
# name: (study, arm, which of its runs, method)
NETWORKS = {
    "phantom-cardiac/plain": ("cardiac", "plain", -1, "plain U-Net"),
    "phantom-cardiac/segreg": ("cardiac", "segreg", -1, "SegReg on the U-Net"),
    "phantom-cardiac/unet-selfreg": ("cardiac", "selfreg", -1, "SelfReg on the U-Net"),
    "phantom-cardiac/unet-dispersive": ("cardiac", "dispersive", -1, "dispersive loss on the U-Net"),
    "phantom-cardiac/selfreg-plain": ("selfreg", "plain", -1, "SelfReg's U-Net, plain"),
    "phantom-cardiac/selfreg": ("selfreg", "selfreg", -1, "SelfReg's U-Net, SCR and IFD"),
    "phantom-cardiac/selfreg-scr": ("selfreg", "scr", -1, "SelfReg's U-Net, SCR alone"),
    "phantom-cardiac/selfreg-ifd": ("selfreg", "ifd", -1, "SelfReg's U-Net, IFD alone"),
    "phantom-glands/selfreg-plain": ("selfreg-glands", "plain", -1, "SelfReg's U-Net, plain"),
    "phantom-glands/selfreg": ("selfreg-glands", "selfreg", -1, "SelfReg's U-Net, SCR and IFD"),
    "phantom-cardiac/swin-plain": ("swin-longer", "swin-plain", -1, "Swin-Unet, plain"),
    "phantom-cardiac/swin-selfreg": ("swin-longer", "swin-selfreg", -1, "Swin-Unet, SCR and IFD"),
    "phantom-cardiac/standard": ("latent", "standard", -1, "fast and slow network, standard training"),
    "phantom-cardiac/cooperative": ("latent", "cooperative", -1, "fast and slow network, cooperative training"),
    **{
        f"{task}/sequence-{arm}-{stage}": (study, arm, stage - 1, f"{label}, after stage {stage} of {stages[-1]}")
        for task, study, stages in (
            ("phantom-cardiac", "sequence", (1, 2, 4)),
            ("phantom-prostate", "prostate-sequence", (1, 3, 6)),
            ("phantom-hippocampus", "hippocampus-sequence", (1, 2, 3)),
        )
        for arm, label in (("plain", "plain U-Net"), ("segreg", "SegReg on the U-Net"))
        for stage in stages
    },
    **{
        f"{task}/{name}{suffix}": (study, arm, run, f"Med-DisSeg {label}, {stage}")
        for task, study in (("phantom-glands", "med-disseg"), ("nuclei_dsb2018", "med-disseg-nuclei"))
        for name, arm, label in (
            ("med-disseg", "with", "with its loss"),
            ("med-disseg-without", "without", "without its loss"),
            ("med-disseg-released", "released", "with the released loss"),
        )
        for suffix, run, stage in (("", 1, "stage 2"), ("-encoder", 0, "stage 1"))
        if arm in STUDIES[study].arms
    },
    "cardiac_acdc/standard": ("ten-subjects", "standard", -1, "fast and slow network, standard training, ten subjects"),
    "cardiac_acdc/cooperative": ("ten-subjects", "cooperative", -1, "fast and slow network, cooperative training, ten subjects"),
    **{
        f"{task}/{name}": (study, arm, -1, f"{label}, {which}")
        for task, study, which, own in (
            ("cardiac_acdc", "acdc", "first of five folds", "paper-"),
            ("nuclei_dsb2018", "nuclei", "first of six domains left out", ""),
        )
        for name, arm, label in (
            ("plain", "plain", "plain U-Net"),
            ("segreg", "segreg", "SegReg on the U-Net"),
            *([("selfreg-plain", f"{own}plain", "SelfReg's U-Net, plain")] if own else []),
            ("selfreg", f"{own}selfreg", "SelfReg's U-Net, SCR and IFD" if own else "SelfReg on the U-Net"),
        )
    },
}  # fmt: skip


def store(name: str, seed: int, runs: Path) -> Path | None:
    """Write one network and its card; None if it is not trained, or is there."""
    study, arm, index, method = NETWORKS[name]
    folder = LARGER if study in ("ten-subjects", "med-disseg-nuclei") else FOLDER
    fold = 0 if STUDIES[study].folds else None
    job = Job(study, arm, seed, fold, runs)
    if not job.done or card_file(name, seed, folder).exists():
        return None
    path = Path(json.loads((job.folder / "cost.json").read_text())["paths"][index])
    network, record = tk.load_model(path), RunDirectory(path).record()
    for tensor in network.parameters():
        tensor.data.copy_(tensor.half())
    task, site = STUDIES[study].task(), record["site"]
    told = {"name": task.name, "normalisation": task.normalisation}
    if fold is not None and site is None:
        told["fold"] = [fold, STUDIES[study].folds]
    tested = tk.load_task(**told)
    sites = task.sites if site is None else [site] if isinstance(site, str) else list(site)
    table = _patients(network, tested)
    scores = [_score(site, rows["dice"].to_numpy()) for site, rows in table.groupby("site", sort=False)]
    home = float(np.mean([score["dice"] for score in scores if score["site"] in sites]))
    least = max(FLOOR, _all_foreground(study))
    sample = table[table["site"].isin(sites)].head(SAMPLE)
    card = {
        "name": name,
        "seed": seed,
        "method": method,
        "task": told,
        "sites": list(sites),
        "recipe": {
            **{key: record["objects"][key] for key in ("model", "objective", "regularizers")},
            "config": record["config"],
            "inference": record.get("inference", {}),
        },
        "steps": record["config"]["steps"],
        "parameters": sum(one.numel() for one in network.parameters()),
        "scores": scores,
        "floor": {"dice": round(least, 4), "above": home > least},
        "sample": {str(row.subject): round(row.dice, 5) for row in sample.itertuples()},
        "tolerance": TOLERANCE,
        "data": tested.content_hash(),
        "command": f"python -m evidence.run {study} --only {arm} --seeds {seed}"
        + (fold is not None) * f" --folds {fold}",
        "environment": record["environment"],
        "licence": task.licence,
        "history": short_history(read_history(RunDirectory(path).history)),
        "note": "" if home > least else f"below its floor of {least:.2f} at home: no figure leans on it",
    }
    return save_trained(network, card, folder)


def _patients(network: Any, task: Any) -> Any:
    """Mean Dice of the first test patients of every site, on whole images as any caller of the network sees them."""
    cases = task.cases("test")
    subjects = {site: list(dict.fromkeys(c.subject for c in cases if c.site == site))[:PATIENTS] for site in task.sites}
    table = tk.evaluate(network, [c for c in cases if c.subject in subjects[c.site]], metrics=("dice",))
    present = table[table["status"] != "both_absent"]
    volumes = present.groupby(["site", "subject", "case"], sort=False)["value"].mean()
    return volumes.groupby(level=["site", "subject"], sort=False).mean().rename("dice").reset_index()


def _score(site: str, dice: np.ndarray) -> dict[str, Any]:
    low, high = patient_bootstrap(dice[:, None])
    numbers = {"dice": float(dice.mean()), "low": low, "high": high}
    return {"site": site, **{key: round(value, 4) for key, value in numbers.items()}, "patients": len(dice)}


@functools.cache
def _all_foreground(study: str) -> float:
    """Dice of a map that calls every voxel the commonest class, on the task's test patients."""
    cases = STUDIES[study].task().cases("test")
    shares = [[float((np.asarray(case.label) == k).mean()) for k in case.classes if k] for case in cases]
    return float(np.max(np.mean([[2 * share / (1 + share) for share in own] for own in shares], axis=0)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    options = parser.parse_args()
    for name in NETWORKS:
        for seed in SEEDS[:1] if ONE_SEED.search(name) else SEEDS:  # ablations and stages: one seed each
            if file := store(name, seed, options.runs):
                print(file.name, flush=True)
    total = sum(file.stat().st_size for file in FOLDER.glob("*")) / 1e6
    print(f"{total:.1f} MB in {FOLDER}")


if __name__ == "__main__":
    main()
