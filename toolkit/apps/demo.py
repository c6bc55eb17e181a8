"""The main job on the embedded task: two networks, two sites in sequence, one page of figures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from toolkit.errors import ConfigError
from toolkit.features.process_state import guarded_random_state
from toolkit.files import seal
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.regularizer import Regularizer
from toolkit.training.seeding import seed_step
from toolkit.training.sequence import RECORD, Stages, resume_sequence, train_sequence

if TYPE_CHECKING:
    from tqdm import tqdm

    from toolkit.data.task import Task

ANALYSIS_UNITS = 100  # length of the analysis on the progress bar, in training steps


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Size of the demo."""

    out: str = "runs/demo"  # folder of the runs and the report
    task: str = "phantom-cardiac"  # name of the task
    sites: tuple[str, ...] | None = None  # two sites, trained one after the other; None = the task's first two
    steps: int = 200  # optimizer steps on each site
    batch_size: int = 16  # images in a step
    size: int | None = None  # edge of the training patches in pixels; None = the task's own
    weight: float = 0.1  # weight of SegReg
    seed: int = 0  # of everything
    precision: str = "32"  # "32" or "bf16"
    device: str = "auto"  # "auto", "cpu" or "cuda"

    def config(self) -> TrainConfig:
        """Settings of every stage."""
        return TrainConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            precision=self.precision,
            device=self.device,
            patch_size=None if self.size is None else (self.size, self.size),
            checkpoint_every=max(1, self.steps // 2),
            validate_every=max(1, self.steps // 4),
            log_every=max(1, self.steps // 40),
            keep_checkpoints=1,
        )


def run_demo(settings: DemoSettings | None = None) -> Path:
    """Train, evaluate, analyse and write `report.html`; what an earlier call finished is used again.

    Prints what it reuses, then shows one progress bar, and prints the path of the report last.

    Raises:
        ConfigError: the folder holds a demo with other settings, or the task has fewer than two sites.
    """
    from toolkit.apps.demo_report import write_demo_report
    from toolkit.data.catalogue import load_task

    settings = settings or DemoSettings()
    task = load_task(settings.task)
    sites = settings.sites or task.sites[:2]
    if len(sites) < 2:
        raise ConfigError("The demo trains on two sites, one after the other.", where=f"sites={sites}")
    out = Path(settings.out)
    report, stamp = out / "report.html", out / "report.json"
    networks: dict[str, Regularizer | None] = {"plain": None, "SegReg": SegReg(weight=settings.weight)}
    missing = {name: _missing_steps(out / name.lower(), settings, sites) for name in networks}
    key = _key(settings, sites, task)
    if not any(missing.values()) and report.is_file() and _read_key(stamp) == key:
        print(f"Nothing to do: both networks and the report are there. Delete {out} to start afresh.")
        print(report.resolve())
        return report
    for name, steps in missing.items():
        if steps == 0:
            print(f"Reusing the trained network in {out / name.lower()}.")
        elif steps < settings.steps * len(sites):
            print(f"Continuing the training in {out / name.lower()}.")
    started = time.perf_counter()
    with _progress(sum(missing.values()) + ANALYSIS_UNITS) as bar:
        trained = {
            name: _train(name, regularizer, task, sites, settings, bar) for name, regularizer in networks.items()
        }
        write_demo_report(trained, task, report, bar, ANALYSIS_UNITS)
    stamp.write_text(json.dumps({"key": key}), encoding="utf-8")
    print(f"Done in {time.perf_counter() - started:.0f} s. The report:")
    print(report.resolve())
    return report


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tqdm[Any]]:
    from tqdm.auto import tqdm

    form = "{desc:<34} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=total, bar_format=form, desc="preparing", smoothing=0.1) as bar:
        yield bar


def _train(
    name: str,
    regularizer: Regularizer | None,
    task: Task,
    sites: tuple[str, ...],
    settings: DemoSettings,
    bar: tqdm[Any],
) -> Stages:
    path = Path(settings.out) / name.lower()
    with guarded_random_state():
        seed_step(settings.seed, 0)
        model = unet(task.channels, len(task.classes))
    with _counted(model, bar, f"training {name} on {' then '.join(sites)}"):
        if (path / RECORD).is_file():
            return resume_sequence(path, model, task, progress=False)
        return train_sequence(model, task, sites, regularizer, settings.config(), out=path, progress=False)


@contextlib.contextmanager
def _counted(model: nn.Module, bar: tqdm[Any], text: str) -> Iterator[None]:
    """Move the bar by one for every training pass of the network; copies of the network do not inherit this."""
    bar.set_description_str(text)

    def count(module: nn.Module, _: Any) -> None:
        if module is model and module.training:
            bar.update()

    handle = register_module_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _missing_steps(path: Path, settings: DemoSettings, sites: tuple[str, ...]) -> int:
    """Optimizer steps that a sequence still lacks; an interrupted stage goes on from its newest checkpoint."""
    from toolkit.training import checkpoint as checkpoints
    from toolkit.training.directory import RunDirectory

    total = settings.steps * len(sites)
    if not (path / RECORD).is_file():
        return total
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    recorded = {**TrainConfig().to_dict(), **record["config"]}, tuple(record["sites"])
    if recorded != (settings.config().to_dict(), tuple(sites)):
        raise ConfigError(
            "This folder holds a demo with other settings.",
            where=str(path),
            fix=f"Choose another folder with --out, or delete {path.parent}.",
        )
    stages = [checkpoints.steps_on_disk(RunDirectory(folder).checkpoints) for folder in path.glob("stage-*")]
    return total - sum(max(steps, default=0) for steps in stages)


def _key(settings: DemoSettings, sites: tuple[str, ...], task: Task) -> str:
    from toolkit import __version__

    values = {**dataclasses.asdict(settings), "out": "", "sites": list(sites), "data": task.content_hash()}
    return seal({**values, "toolkit": __version__})


def _read_key(stamp: str | os.PathLike[str]) -> str:
    try:
        return str(json.loads(Path(stamp).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
