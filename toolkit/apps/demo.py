"""The main job on the embedded task: two networks, two sites in sequence, one page of figures."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

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
    from toolkit.data.task import Task


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

    Prints what it reuses, shows a progress bar a training, and prints the path of the report last.

    Raises:
        ConfigError: the folder holds a demo with other settings, or the task has fewer than two sites.
    """
    from toolkit import __version__
    from toolkit.apps.demo_report import write_demo_report
    from toolkit.data.catalogue import load_task

    settings, started = settings or DemoSettings(), time.perf_counter()
    task = load_task(settings.task)
    sites = settings.sites or task.sites[:2]
    if len(sites) < 2:
        raise ConfigError("The demo trains on two sites, one after the other.", where=f"sites={sites}")
    out = Path(settings.out)
    report, stamp = out / "report.html", out / "report.key"
    made_from = {"sites": list(sites), "data": task.content_hash(), "toolkit": __version__}
    key = seal({**dataclasses.asdict(settings), "out": "", **made_from})
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
    path: Path, regularizer: Regularizer | None, task: Task, sites: tuple[str, ...], settings: DemoSettings
) -> Stages:
    with guarded_random_state():
        seed_step(settings.seed, 0)
        model = unet(task.channels, len(task.classes))
    if not (path / RECORD).is_file():
        return train_sequence(model, task, sites, regularizer, settings.config(), out=path)
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    if ({**TrainConfig().to_dict(), **record["config"]}, record["sites"]) != (settings.config().to_dict(), list(sites)):
        fix = f"Choose another folder with --out, or delete {path.parent}."
        raise ConfigError("This folder holds a demo with other settings.", where=path, fix=fix)
    print(f"Reusing the training in {path}.")
    return resume_sequence(path, model, task)
