"""The analysis half of the demo: scores, features, maps, drift, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.case import Case
from toolkit.data.task import Task
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.masking import mask_latent
from toolkit.explain.targets import Region
from toolkit.features.store import Features
from toolkit.inference.extract import extract
from toolkit.measure.drift import drift
from toolkit.measure.projection import project
from toolkit.measure.similarity import channel_similarity
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.show.compose_compare import transfer_matrices
from toolkit.show.compose_drift import drifts
from toolkit.show.compose_explain import grad_cams, masked_latent
from toolkit.show.compose_measure import channel_similarities, projections
from toolkit.show.compose_training import scores_by_site, training_curves
from toolkit.show.page import Section, write_page
from toolkit.show.report import run_record, settings_table
from toolkit.training.sequence import Stages

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

PENULTIMATE, SHALLOW, DEEP = "head_input", "encoder.1", "bottleneck"

BLOCKS = ("encoder.1", "encoder.2", "encoder.3", "bottleneck", "decoder.3", "decoder.2", "decoder.1", "head")


def write_demo_report(trained: Mapping[str, Stages], task: Task, path: Path, bar: tqdm[Any], units: int) -> Path:
    """Analyse the trained sequences, by the name of the network, and write the page; the bar moves by `units`."""
    steps = (
        ("evaluating on every site", _scores),
        ("extracting features", _similarity_and_drift),
        ("explaining one case", _maps),
        ("masking the latent", _masked),
    )
    sections = [_training(trained)]
    for text, make in steps:
        bar.set_description_str(text)
        sections += make(trained, task)
        bar.update(units // (len(steps) + 1))
    bar.set_description_str("writing the report")
    names = " and ".join(trained)
    write_page(
        f"{task.name}: {names}, {' then '.join(next(iter(trained.values())).sites)}",
        "Two networks with the same first weights and the same data order are trained on one site and then on the next; "
        f"one of them with the SegReg regularizer. {SegReg.caveat} One short training with one seed says nothing about which "
        "method is better: this page shows what the toolkit measures and draws.",
        sections,
        path,
    )
    bar.update(bar.total - bar.n if bar.total is not None else 0)
    bar.set_description_str("finished")
    return path


def _records(trained: Mapping[str, Stages]) -> dict[str, Any]:
    return {"networks": {name: run_record(stages.stages[-1]) for name, stages in trained.items()}}


def _training(trained: Mapping[str, Stages]) -> Section:
    first = next(iter(trained.values()))
    curves = training_curves(
        {name: [run.history for run in stages.stages] for name, stages in trained.items()},
        stages=first.sites,
        provenance=_records(trained),
    )
    import pandas as pd

    columns = [
        settings_table(run_record(stages.stages[-1])).set_index("setting")["value"].rename(name)
        for name, stages in trained.items()
    ]
    tables = [("Settings of the last stage", pd.concat(columns, axis=1).reset_index())]
    text = (
        "Every logged term of the loss, the gradient ratio of the regularizer and the validation scores that chose the "
        "weights of each stage (val split only). Dotted lines mark where a site begins."
    )
    return Section("Training", text, [curves], tables)


def _scores(trained: Mapping[str, Stages], task: Task) -> list[Section]:
    first = next(iter(trained.values()))
    tables = {name: stages.stages[-1].evaluate("test", metrics=("dice",)) for name, stages in trained.items()}
    tables = {name: _in_order(table, task.sites) for name, table in tables.items()}
    matrices = {name: stages.dice("test") for name, stages in trained.items()}
    rows = ["nothing", *first.sites]
    return [
        Section(
            "Dice per site and class",
            f"After the last stage, on the test split of every site, {' and '.join(first.sites)} seen in training and the "
            "others not. Then the two trained sites after every stage: what the second site took from the first.",
            [
                scores_by_site(tables, provenance=_records(trained)),
                transfer_matrices(
                    {name: matrix.to_numpy() for name, matrix in matrices.items()},
                    first.sites,
                    stages=rows,
                    provenance=_records(trained),
                ),
            ],
            [("Dice: mean over test volumes", _summary(tables))],
        )
    ]


def _in_order(table: pd.DataFrame, sites: tuple[str, ...]) -> pd.DataFrame:
    return table.sort_values("site", key=lambda column: column.map(list(sites).index), kind="stable")


def _summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for name, table in tables.items():
        wide = table.pivot_table(index="site", columns="class", values="value", sort=False)
        wide.insert(0, "network", name)
        counts = table.groupby("site", sort=False)["status"].value_counts().unstack(fill_value=0)
        for status in ("missed", "spurious", "both_absent"):
            wide[status] = counts.get(status, 0)
        parts.append(wide.reset_index())
    return pd.concat(parts, ignore_index=True)


def _similarity_and_drift(trained: Mapping[str, Stages], task: Task) -> list[Section]:
    first = next(iter(trained.values()))
    site, names = first.sites[0], list(trained)
    cases = task.cases("test", site=site)
    stores = {name: [_features(run.model, cases) for run in stages.stages] for name, stages in trained.items()}
    similar = [[channel_similarity(sequence[-1], layer) for layer in (SHALLOW, DEEP)] for sequence in stores.values()]
    projected = [project(sequence, PENULTIMATE, method="pca", basis="shared") for sequence in stores.values()]
    drifted = [drift(sequence, PENULTIMATE) for sequence in stores.values()]
    stages = [f"after {one}" for one in first.sites]
    return [
        Section(
            "Channel similarity",
            f"Cosine between the channels of a shallow block ({SHALLOW}) and a deep one ({DEEP}) after the last stage, "
            f"averaged over the test slices of site {site}.",
            [channel_similarities(similar, names)],
            [("Redundancy: mean similarity off the diagonal", _redundancy(similar, names))],
        ),
        Section(
            "Drift of the penultimate features",
            f"The tensor that the segmentation head reads, at the same voxels of the test patients of site {site}, after "
            f"training on {' and after '.join(first.sites)}.",
            [projections(projected, names, stages=stages), drifts(drifted, names)],
            [("Drift, all classes pooled", _pooled(drifted, names))],
        ),
    ]


def _features(model: Any, cases: list[Case]) -> Features:
    return extract(model, cases, [SHALLOW, DEEP, PENULTIMATE], pool="voxels", samples=16)


def _named(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(
        [t.assign(network=n)[["network", *t.columns]] for t, n in zip(tables, names, strict=True)], ignore_index=True
    )


def _redundancy(similar: list[list[Any]], names: list[str]) -> pd.DataFrame:
    table = _named([one.table() for row in similar for one in row], [name for name in names for _ in (SHALLOW, DEEP)])
    return table[table["part"] == "all"][["network", "layer", "form", "redundancy", "sd", "images", "channels", "dead"]]


def _pooled(drifted: list[Any], names: list[str]) -> pd.DataFrame:
    table = _named([one.table() for one in drifted], names)
    columns = ["network", "measure", "kind", "from", "to", "value", "low", "high", "null_low", "null_high", "status"]
    return table[table["class"] == "pooled"][columns]


def explained_case(task: Task, site: str) -> Case:
    """The test slice of a site in which the most classes are present, and of these the one with the most foreground."""
    return max(task.cases("test", site=site), key=lambda c: (len(c.label.unique()), int((c.label > 0).sum())))


def _maps(trained: Mapping[str, Stages], task: Task) -> list[Section]:
    first = next(iter(trained.values()))
    case = explained_case(task, first.sites[0])
    target = list(task.classes.values())[-1]
    cams = [grad_cam(s.model, case, list(BLOCKS), Region(target, inside="reference")) for s in trained.values()]
    return [
        Section(
            "Grad-CAM of every block",
            f"What raises the logit of {target} inside its reference contour, for one test slice of site "
            f"{first.sites[0]}, after the last stage. All blocks come from one forward and one backward pass.",
            [grad_cams(cams, list(trained))],
            [("Range and state of each map", _named([cam.table() for cam in cams], list(trained)))],
        )
    ]


def _masked(trained: Mapping[str, Stages], task: Task) -> list[Section]:
    name, stages = list(trained.items())[-1]
    case = explained_case(task, stages.sites[0])
    masked = mask_latent(stages.model, case, scheme="channel", fraction=0.5, soft=False, skips="keep")
    return [
        Section(
            "A masked latent",
            f"Half of the bottleneck's channels of the {name} network, those with the largest gradient, are set to zero; skip "
            "connections are kept, so that much of the image still reaches the output.",
            [masked_latent(masked, note=f"network: {name}")],
            [("What changed", masked.table())],
        )
    ]
