"""What is measured on the networks of a study: functions of (runs, arm) that give a row a site, patient and number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

import toolkit as tk
from toolkit.features.epps_pulley import sliced_epps_pulley, unit_directions
from toolkit.measure.collapse import effective_rank, mean_cosine
from toolkit.measure.pairing import rows_of

Row = dict[str, Any]
BLOCKS = ("encoder.2", "encoder.3", "encoder.4", "bottleneck", "decoder.4", "decoder.3", "decoder.2")
FAST = "-fast"  # ends the arm of what a training's fast network scores alone
EARLY = ("encoder.1", "encoder.2", "encoder.3", "encoder.4")


def _row(arm: str, site: str, subject: str, metric: str, value: float) -> Row:
    return {"arm": arm, "site": site, "subject": str(subject), "metric": metric, "value": float(value)}


def _subjects(task: Any, site: str, split: str = "test") -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for case in task.cases(split, site=site):
        groups.setdefault(case.subject, []).append(case)
    return groups


def _dice_rows(table: Any, arm: str, metric: str) -> Iterator[Row]:
    """Mean over the classes of a volume, then over the volumes of a patient."""
    present = table[(table["metric"] == "dice") & (table["status"] != "both_absent")]
    volumes = present.groupby(["site", "subject", "case"])["value"].mean()
    for (site, subject), value in volumes.groupby(level=["site", "subject"]).mean().items():
        yield _row(arm, site, subject, metric, value)


def _scored(run: Any, split: str = "test") -> Any:
    """Dice per volume and class in windows of the size that the network was trained with, as every caller of it sees them."""
    return tk.evaluate(run.model, run.task.cases(split), metrics=("dice",), select=run.objective.logits)


def dice(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice of the last run's network on the test patients of all sites."""
    yield from _dice_rows(_scored(runs[-1]), arm, "dice")


def validation_dice(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice on the validation patients of all sites."""
    yield from _dice_rows(_scored(runs[-1], "val"), arm, "dice")


def fast_dice(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice of the fast network's own prediction, as a further arm."""
    run = runs[-1]
    run.model.refined = False
    try:
        table = _scored(run)
    finally:
        run.model.refined = True
    yield from _dice_rows(table, arm + FAST, "dice")


def reference_distance(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Sliced Epps-Pulley statistic, free of N, of voxels drawn uniformly over a patient's images against N(0, I)."""
    run = runs[-1]
    for subject, cases in _subjects(run.task, "A").items():
        images = torch.stack([torch.as_tensor(case.image) for case in cases])
        with torch.no_grad(), tk.capture(run.model.eval(), ["head_input"]) as tape:
            run.model(images)
        rows = tape["head_input"].movedim(1, -1).flatten(0, -2)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:4096]
        axes = unit_directions(rows.shape[1], 256, torch.Generator().manual_seed(0))
        yield _row(arm, "A", subject, "reference_distance", float(sliced_epps_pulley(rows[chosen], axes)))


def head_disagreement(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Share of a patient's voxels on which two heads, refitted on bootstraps of site A, disagree."""
    run = runs[-1]
    for site in run.task.sites:
        features = tk.extract(run.model, run.task.cases("test", site=site), "head_input", pool="voxels", samples=32)
        if site == run.task.sites[0]:
            heads = tk.classifier_variability(features, "head_input")
        values = rows_of(features, "head_input").double()
        answers = (torch.einsum("nc,bkc->bnk", values, heads.weights.double()) + heads.biases.double()[:, None]).argmax(
            -1
        )
        for subject, places in features.cases.reset_index(drop=True).groupby("subject").groups.items():
            own = answers[:, torch.as_tensor(list(places))]
            votes = torch.stack([(own == k).sum(0) for k in range(heads.weights.shape[1])]).double()
            pairs = len(own) * (len(own) - 1)
            yield _row(arm, site, subject, "head_disagreement", 1 - float((votes * (votes - 1)).sum(0).mean()) / pairs)


def redundancy(runs: Sequence[Any], arm: str, blocks: Sequence[str] = BLOCKS) -> Iterator[Row]:
    """Mean cosine of different channels, averaged over the taught blocks and a patient's images."""
    run = runs[-1]
    features = tk.extract(run.model, run.task.cases("test", site="A"), list(blocks), pool="global")
    scores = [tk.channel_similarity(features, block).scores["cosine"]["all"].numpy() for block in blocks]
    table = features.cases.reset_index(drop=True).assign(value=np.nanmean(scores, axis=0))
    for subject, value in table.groupby("subject")["value"].mean().items():
        yield _row(arm, "A", subject, "redundancy", value)


def swin_redundancy(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """The same on the last block of every stage of a Swin-Unet."""
    return redundancy(runs, arm, [name for blocks in runs[-1].model.selfreg_groups[0].values() for name in blocks])


def cam_inside(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Share of the positive HiRes-CAM inside the organ, averaged over classes and encoder blocks."""
    run = runs[-1]
    for subject, cases in _subjects(run.task, "A").items():
        case = cases[len(cases) // 2]
        label = torch.as_tensor(case.label)
        shares = []
        for index, name in run.task.classes.items():
            if index == 0 or not (label == index).any():
                continue
            target = tk.Region(name, inside="reference")
            cams = tk.grad_cam(run.model, case, list(EARLY), target, method="hires_cam")
            for block in EARLY:
                cam = torch.nn.functional.interpolate(cams[block].clamp_min(0), label.shape, mode="bilinear")[0, 0]
                if cam.sum() > 0:
                    shares.append(float(cam[label == index].sum() / cam.sum()))
        yield _row(arm, "A", subject, "cam_inside", float(np.mean(shares)))


def corrupted_foreground(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Foreground of the segmentation of a masked code, as a multiple of the reference's."""
    run = runs[-1]
    for scheme in ("dropout", "channel", "spatial"):
        for subject, cases in _subjects(run.task, "A").items():
            case = cases[len(cases) // 2]
            masked = tk.mask_latent(run.model, case, scheme, 0.5, seed=0)
            share = float((masked.segmentation[1] > 0).sum()) / max(1, int((torch.as_tensor(case.label) > 0).sum()))
            yield _row(arm, "A", subject, f"foreground_{scheme}", share)


def dispersion(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Effective rank and mean cosine of Block 4, one row an image, a site at a time."""
    run = runs[-1]
    for site in run.task.sites:
        features = tk.extract(run.model, run.task.cases("test", site=site), "layer3", pool="global")
        rows = rows_of(features, "layer3").double()
        for metric, value in (("effective_rank", effective_rank(rows)), ("mean_cosine", mean_cosine(rows))):
            yield _row(arm, site, f"site {site}", metric, value)


def gradient_norm(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Largest logged gradient norm of the dispersive loss at Block 4, a stage at a time."""
    for stage, run in enumerate(runs):
        columns = [name for name in run.history if name.startswith("dispersive/") and name.endswith("gradient_norm")]
        if columns:
            largest = float(run.history[columns].max().max())
            yield _row(arm, "A", f"stage {stage + 1}", "gradient_norm", largest)


def transfer(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice after the last stage, just before a site's own stage, and what a site lost or won after it."""
    sites, task = runs[0].task.sites, runs[0].task
    scores = [
        {(row["site"], row["subject"]): row["value"] for row in _dice_rows(_scored(run), arm, "")} for run in runs
    ]
    for position, site in enumerate(sites):
        for subject in _subjects(task, site):
            key = (site, str(subject))
            yield _row(arm, site, subject, "dice", scores[-1][key])
            if position > 0:
                yield _row(arm, site, subject, "forward", scores[position - 1][key])
            if position < len(sites) - 1:
                yield _row(arm, site, subject, "backward", scores[-1][key] - scores[position][key])


def drift(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Drift of the features before the head between successive stages, a patient of the first site at a time."""
    task = runs[0].task
    for subject, cases in _subjects(task, task.sites[0]).items():
        stores = [tk.extract(run.model, cases, "head_input", pool="voxels", samples=64) for run in runs]
        table = tk.drift(stores, "head_input", bootstrap=0, null_splits=0).table()
        table = table[(table["class"] == "pooled") & (table["from"] >= 1) & (table["to"] == table["from"] + 1)]
        variance = float(rows_of(stores[0], "head_input").var(0).sum())
        for measure, metric, unit in (("frechet", "frechet", variance), ("cka", "one_minus_cka", 1.0)):
            rows = table[table["measure"].str.lower().str.replace("é", "e").str.contains(measure)]
            yield _row(arm, task.sites[0], subject, metric, rows["value"].mean() / unit)


def seen_and_unseen(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice on the test patients of the sites trained on ("seen") and of the others ("unseen")."""
    run = runs[-1]
    for row in dice(runs, arm):
        place = "seen" if row["site"] in run.site else "unseen"
        yield {**row, "site": place, "subject": f"{row['site']}/{row['subject']}"}


def _left_ventricle(run: Any) -> Any:
    """Finds the logits of the left ventricle against the rest in the network's output."""
    left = next(index for index, name in run.task.classes.items() if name == "LV")

    def select(output: Any) -> torch.Tensor:
        logits = run.objective.logits(output)
        rest = torch.cat([logits[:, :left], logits[:, left + 1 :]], 1).amax(1, keepdim=True)
        return torch.cat([rest, logits[:, left : left + 1]], 1)

    return select


def sunnybrook(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice of the left ventricle on every labelled patient of Sunnybrook."""
    run = runs[-1]
    other = tk.load_task("cardiac_sunnybrook", normalisation=run.task.normalisation)
    cases = [case for split in ("train", "val", "test") for case in other.cases(split)]
    window = {"patch_size": run.config.patch_size, "select": _left_ventricle(run)}
    table = tk.evaluate(run.model, cases, metrics=("dice",), **window)
    yield from _dice_rows(table.assign(site="sunnybrook"), arm, "dice")


def artefacts(runs: Sequence[Any], arm: str) -> Iterator[Row]:
    """Dice on ACDC's test patients under simulated artefacts, averaged over them and their copies."""
    run = runs[-1]
    corrupted = tk.with_artefacts(run.task)
    table = tk.evaluate(run.model, corrupted.cases("test"), metrics=("dice",), patch_size=run.config.patch_size)
    yield from _dice_rows(table.assign(site="ACDC-C"), arm, "dice")
