"""The offline bundle of the workshop: data, small trained networks of all methods, stored features, notebooks.

`build_bundle` writes it, `open_bundle` checks every file against the manifest and reads it. What is written depends on
the settings alone (and on the processor, whose last bits can differ): no times, no paths, no random names.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from toolkit import registry
from toolkit.apps.workshop_text import README
from toolkit.data.arrays import task_from_arrays
from toolkit.data.catalogue import load_task
from toolkit.data.source import file_sha256
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError
from toolkit.features.store import Features, open_features
from toolkit.inference.extract import extract
from toolkit.inference.memory import remember
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.load import load_weights, save_weights
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.objective import Objective
from toolkit.training.regularizer import Regularizer
from toolkit.training.seeding import seeded
from toolkit.training.sequence import train_sequence

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
UNIT_RANGE = "range:2,98"  # what the fast/slow network needs
LAYERS = {"unet": ("encoder.1", "bottleneck", "head_input"), "fast_slow": ("image_code", "head_input")}
NOT_FOR_LEARNERS = ("solution", "instructor")


@dataclasses.dataclass(frozen=True)
class BundleSettings:
    """Size of the bundle."""

    steps: int = 150  # optimizer steps on each site
    batch_size: int = 12  # images in a step
    size: int = 96  # edge of the training patches
    channels: tuple[int, ...] = (8, 16, 32, 64)  # of the U-Net's levels
    width: int = 8  # of the fast/slow network
    sites: tuple[str, str] = ("A", "B")  # trained one after the other
    subjects: int | None = None  # at most so many subjects of a site and split; None = all
    samples: int = 16  # voxels per class and image in the stored features
    seed: int = 0  # of everything

    @classmethod
    def small(cls) -> BundleSettings:
        """Seconds instead of minutes: the networks are hardly trained."""
        return cls(steps=6, batch_size=6, size=64, channels=(6, 12, 24), width=3, subjects=4, samples=6)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """An opened bundle."""

    path: Path  # its folder
    task: Task  # the data
    unit_task: Task  # the same with images in [0, 1], for the fast/slow network
    networks: dict[str, list[nn.Module]]  # per method, the network after each site
    features: dict[str, list[Features]]  # per method, features of the first site's test patients after each site
    scores: pd.DataFrame  # Dice per method, stage, site, case and class on the test split
    settings: dict[str, Any]  # what it was made with


def methods(settings: BundleSettings) -> dict[str, tuple[str, Objective | None, Regularizer | None]]:
    """Name -> kind of network, objective and regularizer."""
    return {
        "plain": ("unet", None, None),
        "segreg": ("unet", None, SegReg(weight=0.1, samples=1024, directions=64)),
        "selfreg": ("unet", None, SelfReg()),
        "dispersive": ("unet", None, Dispersive()),
        "latent_augmentation": ("fast_slow", FastSlowObjective(), LatentAugmentation()),
    }


def build_bundle(
    out: str | Path,
    settings: BundleSettings | None = None,
    *,
    notebooks: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Train the networks and write the bundle; the folder appears whole or not at all.

    Args:
        out: folder to write; an earlier bundle there is replaced, anything else is left alone.
        settings: sizes; None = those of a real workshop (minutes on two cores).
        notebooks: folder of the notebooks to take along; exercises of the workshop notebook lose their solutions.
        progress: show a bar for each training.

    Raises:
        ConfigError: `out` holds something that is no bundle.
    """
    settings = settings or BundleSettings()
    target = Path(out)
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ConfigError("The folder holds something else.", where=str(target), fix="Name an empty or new one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".workshop-") as temporary:
        new = Path(temporary) / "bundle"
        _write_data(load_task("phantom-cardiac"), settings, new / "data")
        _write_networks(settings, new, Path(temporary) / "runs", progress)
        if notebooks is not None:
            _write_notebooks(Path(notebooks), new / "notebooks")
        (new / "README.md").write_text(README, encoding="utf-8")
        _write_manifest(new, settings)
        if target.exists():
            shutil.rmtree(target)
        new.replace(target)
    return target


def open_bundle(path: str | Path) -> Workshop:
    """Check a bundle against its manifest and read it.

    Raises:
        DataError: no bundle, or a file that is missing or has other bytes than recorded.
    """
    import pandas as pd

    folder = Path(path)
    record = check_bundle(folder)
    networks: dict[str, list[nn.Module]] = {}
    features: dict[str, list[Features]] = {}
    for name, config in record["networks"].items():
        for stage in (1, 2):
            network = registry.build("model", config)
            load_weights(network, folder / "networks" / f"{name}_{stage}.safetensors")
            remember(network, patch_size=(record["settings"]["size"],) * 2)  # windows of the size it was trained with
            networks.setdefault(name, []).append(network.eval())
            features.setdefault(name, []).append(open_features(folder / "features" / f"{name}_{stage}.zarr"))
    task, unit = (read_data(folder / "data", rule) for rule in (None, UNIT_RANGE))
    return Workshop(folder, task, unit, networks, features, pd.read_csv(folder / "scores.csv"), record["settings"])


def check_bundle(folder: Path) -> dict[str, Any]:
    """The manifest, after every file has been compared with it.

    Raises:
        DataError: see `open_bundle`.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError("This is no workshop bundle.", where=str(folder), fix="Make one with: make workshop.")
    record: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name, known in record["files"].items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != known["sha256"]:
            what = "is missing" if not file.is_file() else "has other bytes than the manifest records"
            raise DataError(f"{name} {what}.", where=str(folder), fix="Copy the bundle again.")
    return record


def unsolved(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook (as JSON) without the cells that are for the instructor."""
    copied = copy.deepcopy(dict(notebook))
    copied["cells"] = [
        cell for cell in copied["cells"] if not set(cell["metadata"].get("tags", [])) & set(NOT_FOR_LEARNERS)
    ]
    return copied


def read_data(folder: Path, normalisation: str | None = None) -> Task:
    """The task in a bundle's data folder."""
    import pandas as pd

    table = pd.read_csv(folder / "cases.csv", dtype={"subject": str}, keep_default_na=False)
    known = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    stacks = {site: np.load(folder / f"site_{site}.npz") for site in known["sites"]}
    pairs = list(zip(table["site"], table["subject"], strict=True))
    columns: dict[str, Any] = {f"{name}s": list(table[name]) for name in ("subject", "site", "split", "group")}
    return task_from_arrays(
        [stacks[site][f"{subject}_image"].astype(np.float32) for site, subject in pairs],
        [stacks[site][f"{subject}_label"] for site, subject in pairs],
        classes={int(index): name for index, name in known["classes"].items()},
        dims=2,
        ids=list(table["subject"]),
        **columns,
        spacing=table[_SPACING].to_numpy().tolist(),
        normalisation=normalisation or known["normalisation"],
        patch_size=known["patch_size"],
        name=known["name"],
    )


def _chosen(task: Task, settings: BundleSettings) -> list[Any]:
    """One case of every stack that the bundle holds."""
    chosen: dict[str, Any] = {}
    counts: dict[tuple[str, str], int] = {}
    for case in task.cases():
        place = case.site, case.split
        if case.volume in chosen or (settings.subjects is not None and counts.get(place, 0) >= settings.subjects):
            continue
        counts[place] = counts.get(place, 0) + 1
        chosen[case.volume] = case
    return list(chosen.values())


def _write_data(task: Task, settings: BundleSettings, folder: Path) -> None:
    import pandas as pd

    folder.mkdir(parents=True)
    stacks: dict[str, dict[str, np.ndarray]] = {site: {} for site in task.sites}
    rows = []
    for case in _chosen(task, settings):
        pair = case.reader.read_raw()
        image = np.asarray(pair.image[0])
        whole = bool(np.array_equal(image, np.round(image)) and image.min() >= 0 and image.max() < 2**16)
        stacks[case.site][f"{case.subject}_image"] = image.astype(np.uint16) if whole else image
        stacks[case.site][f"{case.subject}_label"] = np.asarray(pair.label, dtype=np.uint8)
        rows.append([case.subject, case.site, case.split, case.group, case.slice_spacing, *(case.spacing or ())])
    for site, arrays in stacks.items():
        np.savez_compressed(folder / f"site_{site}.npz", **arrays)  # type: ignore[arg-type]
    pd.DataFrame(rows, columns=["subject", "site", "split", "group", *_SPACING]).to_csv(
        folder / "cases.csv", index=False
    )
    names = ("name", "classes", "sites", "patch_size", "normalisation", "licence")
    _write_json(folder / "task.json", {name: getattr(task, name) for name in names})


def _write_networks(settings: BundleSettings, folder: Path, runs: Path, progress: bool) -> None:
    import pandas as pd

    plain, unit = (read_data(folder / "data", rule) for rule in (None, UNIT_RANGE))
    rarely: dict[str, Any] = {"validate_every": 0, "checkpoint_every": 0, "select": "last"}
    size = (settings.size,) * 2
    config = TrainConfig(settings.steps, settings.batch_size, settings.seed, patch_size=size, **rarely)
    (folder / "networks").mkdir()
    configs, tables = {}, []
    for name, (kind, objective, regularizer) in methods(settings).items():
        task = unit if kind == "fast_slow" else plain
        with seeded(settings.seed):
            network: Any = (
                fast_slow_network(task.channels, len(task.classes), width=settings.width)
                if kind == "fast_slow"
                else unet(task.channels, len(task.classes), channels=settings.channels)
            )
        configs[name] = network.toolkit_config
        options: dict[str, Any] = {"out": runs / name, "objective": objective, "progress": progress}
        stages = train_sequence(network, task, list(settings.sites), regularizer, config, **options)
        cases = task.cases("test", settings.sites[0])
        for number, run in enumerate(stages.stages, start=1):
            save_weights(run.model, folder / "networks" / f"{name}_{number}.safetensors")
            store = folder / "features" / f"{name}_{number}.zarr"
            drawn: dict[str, Any] = {"pool": "voxels", "samples": settings.samples, "seed": settings.seed}
            extract(run.model, cases, list(LAYERS[kind]), **drawn, out=store)
            scores = run.evaluate("test", list(settings.sites), metrics=("dice",))
            tables.append(scores.assign(method=name, stage=number)[_SCORES])
    pd.concat(tables, ignore_index=True).to_csv(folder / "scores.csv", index=False, float_format="%.5f")
    _write_json(folder / "networks" / "networks.json", configs)


_SPACING = ["slices_mm", "rows_mm", "columns_mm"]
_SCORES = ["method", "stage", "site", "case", "class", "metric", "value", "status"]


def _write_notebooks(source: Path, folder: Path) -> None:
    folder.mkdir()
    if (source / "images").is_dir():
        shutil.copytree(source / "images", folder / "images")
    for path in sorted(source.glob("*.ipynb")):
        shutil.copyfile(path, folder / path.name)
        if path.name.endswith("_workshop.ipynb"):
            solved = json.loads(path.read_text(encoding="utf-8"))
            (folder / path.name).rename(folder / path.name.replace("_workshop", "_workshop_solutions"))
            _write_json(folder / path.name, unsolved(solved))


def _write_manifest(folder: Path, settings: BundleSettings) -> None:
    from toolkit import __version__

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    record = {
        "settings": dataclasses.asdict(settings),
        "versions": {"toolkit": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "networks": json.loads((folder / "networks" / "networks.json").read_text(encoding="utf-8")),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        },
    }
    _write_json(folder / MANIFEST, record)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
