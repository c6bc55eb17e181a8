"""One training step of every regularizer on the stand-in device, and on the CPU; prints what was seen as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from every_regularizer import NAMES, batch, made, network_for, objective_for
from standin_device import AVAILABLE, NAME, WAITS
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.inference.memory import remember
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.engine import seed_step
from toolkit.training.optimizer import build_optimizer
from toolkit.training.protocol import Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

SMALL: dict[str, Any] = {"samples": 256, "directions": 16}
READINGS: dict[str, Callable[[], Regularizer]] = {
    "segreg": lambda: SegReg(**SMALL),
    "segreg, rows balanced over classes": lambda: SegReg(**SMALL, sampling="class_balanced"),
    "segreg, by class": lambda: SegReg(**SMALL, divergence="class_conditional", classes=2),
    "segreg, gaussian_kl": lambda: SegReg(**SMALL, divergence="gaussian_kl"),
    "dispersive, median": lambda: Dispersive(tau="median", bank_size=4),
    "dispersive, positions": lambda: Dispersive(layout="positions", samples=32, variant="infonce_cosine"),
    "latent_augmentation": lambda: LatentAugmentation(1.0, ("dropout",), ("channel",)),
    "latent_augmentation, spatial": lambda: LatentAugmentation(1.0, ("spatial",), ("spatial",), soft=False),
}


def main() -> None:
    methods = {name: partial(made, name) for name in NAMES} | READINGS
    print(json.dumps({name: step_of(method) for name, method in methods.items()} | {"refused": refused()}))


def step_of(method: Callable[[], Regularizer]) -> dict[str, Any]:
    """Loss and gradient of a logged step here and there, and what waits in the next step, which is not logged."""
    seen: dict[str, Any] = {}
    for device in ("cpu", NAME):
        regularizer = method()
        objective = objective_for(regularizer)
        if isinstance(objective, SegmentationObjective):
            objective = SegmentationObjective(class_weights=(0.5, 1.0))
        step = TrainingStep(network_for(regularizer).to(device), objective, [regularizer])
        there = {key: value[:2, :, :32, :32].to(device) for key, value in batch().items()}
        optimizer = build_optimizer(step, TrainConfig(2))
        loss = _one(step, there, 0, logging=True)
        gradients = [p.grad.flatten().cpu() for p in step.parameters() if p.grad is not None]
        seen[device] = [loss.item(), torch.cat(gradients).norm().item(), torch.cat(gradients).sum().item()]
        optimizer.step()
        optimizer.zero_grad()
        WAITS.clear()
        _one(step, there, 1, logging=False)
        optimizer.step()
        seen["waits"] = list(WAITS)
        regularizer.diagnostics()
    return seen


def _one(step: TrainingStep, batch: dict[str, Tensor], index: int, logging: bool) -> Tensor:
    seed_step(0, index)
    total = torch.zeros((), device=batch["image"].device)
    for part in range(step.parts(index)):
        result = step(batch, part=part, step=index, logging=logging)
        if result.total is not None:
            result.total.backward()
            total = total + result.total.detach()
    return total


def refused() -> dict[str, Any]:
    """What the device refuses or waits for, tried one by one; and a label too many."""
    there, seen = torch.arange(6.0, device=NAME), {}
    tries: dict[str, Callable[[], Any]] = {
        "mixed": lambda: there + torch.ones(6),
        "generator": lambda: torch.rand(2, device=NAME, generator=torch.Generator()),
        "numpy": lambda: there.numpy(),
        "item": lambda: there.sum().item(),
        "truth": lambda: bool(there.sum() > 0),
        "mask": lambda: there[there > 2],
        "back": lambda: there.cpu(),
        "constant": lambda: torch.tensor([1.0, 2.0], device=NAME),
        "number": lambda: there * torch.tensor(2.0) + 1,
        "asynchronous": lambda: torch.ones(6).to(NAME, non_blocking=True),
        "label": lambda: _label_beyond_the_outputs(False),
        "regions": lambda: _label_beyond_the_outputs(True),
    }
    for name, attempt in tries.items():
        WAITS.clear()
        try:
            attempt()
            seen[name] = f"{len(WAITS)} waits"
        except (ConfigError, RuntimeError, TypeError) as error:
            seen[name] = str(error)
    return seen


def _label_beyond_the_outputs(regions: bool) -> None:
    step = TrainingStep(unet(1, 2, channels=(4, 8)).to(NAME), SegmentationObjective())
    if regions:
        remember(step.model, regions={"all": (1, 2), "core": (2,)})
    image, label = torch.rand(2, 1, 16, 16).to(NAME), torch.full((2, 1, 16, 16), 2).to(NAME)
    WAITS.clear()
    step({"image": image, "label": label}, logging=not regions)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main() if AVAILABLE else print("{}")
