"""The main job on the embedded task: two networks, two sites in sequence, one page of figures."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.case import Case
from toolkit.data.catalogue import load_task
from toolkit.data.task import Task
from toolkit.errors import ConfigError
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.masking import mask_latent
from toolkit.explain.targets import Region
from toolkit.files import seal
from toolkit.inference.extract import extract
from toolkit.measure.drift import drift
from toolkit.measure.projection import project
from toolkit.measure.similarity import channel_similarity
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame
from toolkit.show.compose_compare import transfer_matrices
from toolkit.show.compose_drift import drifts
from toolkit.show.compose_explain import grad_cams, masked_latent
from toolkit.show.compose_measure import channel_similarities, projections
from toolkit.show.compose_training import scores_by_site, training_curves
from toolkit.show.report import Section, run_record, settings_table, write_page
from toolkit.training.config import TrainConfig
from toolkit.training.engine import seed_step
from toolkit.training.protocol import Regularizer, as_regularizers
from toolkit.training.sequence import RECORD, Stages, resume_sequence, train_sequence
from toolkit.training.serialization import described


def _config(settings: argparse.Namespace) -> TrainConfig:
    own: dict[str, Any] = {n: getattr(settings, n) for n in ("steps", "batch_size", "seed", "precision", "device")}
    times = {"checkpoint_every": 2, "validate_every": 4, "log_every": 40}
    own |= {name: max(1, settings.steps // count) for name, count in times.items()}
    patch = None if settings.size is None else (settings.size, settings.size)
    return TrainConfig(patch_size=patch, keep_checkpoints=1, **own)


def run_demo(settings: argparse.Namespace) -> Path:
    """Train, evaluate, analyse and write `report.html`; what an earlier call finished is used again.

    Prints what it reuses, shows a progress bar a training, and prints the path of the report last. The settings are the
    options of the command line, `python -m toolkit demo --help`.

    Raises:
        ConfigError: the folder holds a demo with other settings, or the task has fewer than two sites.
    """
    from toolkit import __version__

    started, task = time.perf_counter(), load_task(settings.task)
    sites = tuple(settings.sites or task.sites[:2])
    if len(sites) < 2:
        raise ConfigError("The demo trains on two sites, one after the other.", where=f"sites={sites}")
    out = Path(settings.out)
    report, stamp = out / "report.html", out / "report.key"
    made_from = {"sites": list(sites), "data": task.content_hash(), "toolkit": __version__}
    key = seal({**vars(settings), "out": "", **made_from})
    if report.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        print(f"Nothing to do: both networks and the report are there. Delete {out} to start afresh.")
    else:
        networks: dict[str, Regularizer | None] = {"plain": None, "SegReg": SegReg(weight=settings.weight)}
        trained = {name: _train(out / name.lower(), one, task, sites, settings) for name, one in networks.items()}
        write_demo_report(trained, task, report)
        stamp.write_text(key, encoding="utf-8")
        print(f"Done in {time.perf_counter() - started:.0f} s. The report:")
    print(report.resolve())
    return report


def _train(
    path: Path, regularizer: Regularizer | None, task: Task, sites: tuple[str, ...], settings: argparse.Namespace
) -> Stages:
    with guarded_random_state():
        seed_step(settings.seed, 0)
        model = unet(task.channels, len(task.classes))
    if not (path / RECORD).is_file():
        return train_sequence(model, task, sites, regularizer, _config(settings), out=path)
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    asked = (_config(settings).to_dict(), list(sites), described({"regularizers": as_regularizers(regularizer)}))
    stored = {"regularizers": record["objects"]["regularizers"]}
    if ({**TrainConfig().to_dict(), **record["config"]}, record["sites"], stored) != asked:
        fix = f"Choose another folder with --out, or delete {path.parent}."
        raise ConfigError("This folder holds a demo with other settings.", where=path, fix=fix)
    print(f"Reusing the training in {path}.")
    return resume_sequence(path, model, task)


PENULTIMATE, SHALLOW, DEEP = "head_input", "encoder.1", "bottleneck"
BLOCKS = ("encoder.1", "encoder.2", "encoder.3", "bottleneck", "decoder.3", "decoder.2", "decoder.1", "head")


def write_demo_report(trained: Mapping[str, Stages], task: Task, path: Path) -> Path:
    """Analyse the trained sequences, by the name of the network, and write the page."""
    from tqdm.auto import tqdm

    parts = (_training, _scores, _similarity, _drift, _maps, _masked)
    sections = [part(trained, task) for part in tqdm(parts, desc="analysing", unit="section")]
    return write_page(
        f"{task.name}: {' and '.join(trained)}, {' then '.join(_sites(trained))}",
        "Two networks with the same first weights and the same data order are trained on one site and then on the next; "
        f"one of them with the SegReg regularizer. {SegReg.caveat} One short training with one seed says nothing about which "
        "method is better: this page shows what the toolkit measures and draws.",
        sections,
        path,
    )


def _sites(trained: Mapping[str, Stages]) -> tuple[str, ...]:
    return next(iter(trained.values())).sites


def _records(trained: Mapping[str, Stages]) -> dict[str, Any]:
    return {"networks": {name: run_record(stages.stages[-1]) for name, stages in trained.items()}}


def _training(trained: Mapping[str, Stages], task: Task) -> Section:
    import pandas as pd

    records = _records(trained)
    histories = {name: [run.history for run in stages.stages] for name, stages in trained.items()}
    settings = {name: settings_table(one).set_index("setting")["value"] for name, one in records["networks"].items()}
    return Section(
        "Training",
        "Every logged term of the loss, the gradient ratio of the regularizer and the validation scores that chose the "
        "weights of each stage (val split only). Dotted lines mark where a site begins.",
        [training_curves(histories, stages=_sites(trained), provenance=records)],
        [("Settings of the last stage", pd.concat(settings, axis=1).reset_index())],
    )


def _scores(trained: Mapping[str, Stages], task: Task) -> Section:
    sites, records = _sites(trained), _records(trained)
    tables = {name: stages.stages[-1].evaluate("test", metrics=("dice",)) for name, stages in trained.items()}
    order = {site: place for place, site in enumerate(task.sites)}
    tables = {
        name: table.sort_values("site", key=lambda c: c.map(order), kind="stable") for name, table in tables.items()
    }
    matrices = {name: stages.dice("test").to_numpy() for name, stages in trained.items()}
    return Section(
        "Dice per site and class",
        f"After the last stage, on the test split of every site, {' and '.join(sites)} seen in training and the "
        "others not. Then the two trained sites after every stage: what the second site took from the first.",
        [
            scores_by_site(tables, provenance=records),
            transfer_matrices(matrices, sites, stages=["nothing", *sites], provenance=records),
        ],
        [("Dice: mean over test volumes", _named([_summary(table) for table in tables.values()], list(trained)))],
    )


def _summary(table: DataFrame) -> DataFrame:
    wide = table.pivot_table(index="site", columns="class", values="value", sort=False)
    counts = table.groupby("site", sort=False)["status"].value_counts().unstack(fill_value=0)
    for status in ("missed", "spurious", "both_absent"):
        wide[status] = counts.get(status, 0)
    return wide.reset_index()


def _similarity(trained: Mapping[str, Stages], task: Task) -> Section:
    site, names = _sites(trained)[0], list(trained)
    cases, layers = task.cases("test", site=site), [SHALLOW, DEEP]
    stores = [extract(s.stages[-1].model, cases, layers, pool="voxels", samples=16) for s in trained.values()]
    similar = [[channel_similarity(store, layer) for layer in layers] for store in stores]
    table = _named([one.table() for row in similar for one in row], [name for name in names for _ in layers])
    columns = ["network", "layer", "form", "redundancy", "sd", "images", "channels", "dead"]
    return Section(
        "Channel similarity",
        f"Cosine between the channels of a shallow block ({SHALLOW}) and a deep one ({DEEP}) after the last stage, "
        f"averaged over the test slices of site {site}.",
        [channel_similarities(similar, names)],
        [("Redundancy: mean similarity off the diagonal", table[table["part"] == "all"][columns])],
    )


def _drift(trained: Mapping[str, Stages], task: Task) -> Section:
    sites, names = _sites(trained), list(trained)
    cases = task.cases("test", site=sites[0])
    settings: dict[str, Any] = {"pool": "voxels", "samples": 16}
    stores = [[extract(run.model, cases, [PENULTIMATE], **settings) for run in s.stages] for s in trained.values()]
    projected = [project(sequence, PENULTIMATE, method="pca", basis="shared") for sequence in stores]
    drifted = [drift(sequence, PENULTIMATE) for sequence in stores]
    table = _named([one.table() for one in drifted], names)
    columns = ["network", "measure", "kind", "from", "to", "value", "low", "high", "null_low", "null_high", "status"]
    return Section(
        "Drift of the penultimate features",
        f"The tensor that the segmentation head reads, at the same voxels of the test patients of site {sites[0]}, after "
        f"training on {' and after '.join(sites)}.",
        [projections(projected, names, stages=[f"after {one}" for one in sites]), drifts(drifted, names)],
        [("Drift, all classes pooled", table[table["class"] == "pooled"][columns])],
    )


def _named(tables: Sequence[DataFrame], names: Sequence[str]) -> DataFrame:
    """The tables below each other, with the network of each in a first column."""
    import pandas as pd

    return pd.concat(tables, keys=names, names=["network"]).reset_index("network").reset_index(drop=True)


def explained_case(task: Task, site: str) -> Case:
    """The test slice of a site in which the most classes are present, and of these the one with the most foreground."""
    return max(task.cases("test", site=site), key=lambda c: (len(c.label.unique()), int((c.label > 0).sum())))


def _maps(trained: Mapping[str, Stages], task: Task) -> Section:
    site, names, organ = _sites(trained)[0], list(trained), list(task.classes.values())[-1]
    case, target = explained_case(task, site), Region(organ, inside="reference")
    cams = [grad_cam(stages.model, case, list(BLOCKS), target) for stages in trained.values()]
    return Section(
        "Grad-CAM of every block",
        f"What raises the logit of {organ} inside its reference contour, for one test slice of site "
        f"{site}, after the last stage. All blocks come from one forward and one backward pass.",
        [grad_cams(cams, names)],
        [("Range and state of each map", _named([cam.table() for cam in cams], names))],
    )


def _masked(trained: Mapping[str, Stages], task: Task) -> Section:
    name, stages = list(trained.items())[-1]
    case = explained_case(task, stages.sites[0])
    masked = mask_latent(stages.model, case, scheme="channel", fraction=0.5, soft=False, skips="keep")
    return Section(
        "A masked latent",
        f"Half of the bottleneck's channels of the {name} network, those with the largest gradient, are set to zero; skip "
        "connections are kept, so that much of the image still reaches the output.",
        [masked_latent(masked, note=f"network: {name}")],
        [("What changed", masked.table())],
    )
