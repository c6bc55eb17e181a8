"""`make gpu-check`: train and extract on CUDA in fp32 and bf16 and compare with the CPU."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.features.process_state import guarded_random_state
from toolkit.inference.extract import extract
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import UNet, unet
from toolkit.training.config import TrainConfig
from toolkit.training.seeding import seed_step
from toolkit.training.train import train

if TYPE_CHECKING:
    from toolkit.data.task import Task

LAYERS = ("encoder.1", "bottleneck", "head_input")


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        found: the number that was measured.
        limit: what it must not exceed.
    """

    name: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the number is within its limit (NaN is not)."""
        return self.found <= self.limit


def gpu_check(steps: int = 30) -> int:
    """Print what was compared; exit status 0 if all agree or if there is no GPU, else 1."""
    if not torch.cuda.is_available():
        print("This machine has no CUDA device that torch can use; there is nothing to check.")
        return 0
    from toolkit.data.catalogue import load_task

    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    task = load_task("phantom-cardiac")
    checks = [*_extraction(task), *_training(task, steps)]
    for check in checks:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.found:.3g} (limit {check.limit:.3g})")
    return 0 if all(check.passed for check in checks) else 1


def _network(task: Task) -> UNet:
    with guarded_random_state():
        seed_step(0, 0)
        return unet(task.channels, len(task.classes))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of the second."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _extraction(task: Task) -> list[Check]:
    """The same weights on both devices; fp32 without TF32, and bf16 under autocast against fp32."""
    cases = task.cases("val")[:16]
    network = _network(task)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        on_cpu = extract(network, cases, list(LAYERS), pool="voxels", samples=16)
        network.cuda()
        on_gpu = extract(network, cases, list(LAYERS), pool="voxels", samples=16)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            mixed = extract(network, cases, list(LAYERS), pool="voxels", samples=16)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return [
        Check(
            f"features of {layer}, {name} against CPU fp32",
            relative_difference(found.rows(layer), on_cpu.rows(layer)),
            limit,
        )
        for name, found, limit in (("fp32", on_gpu, 1e-4), ("bf16", mixed, 0.03))
        for layer in LAYERS
    ]


def _training(task: Task, steps: int) -> list[Check]:
    """First losses of the same run on both devices, and that the loss falls everywhere."""
    checks = []
    losses: dict[tuple[str, str], list[float]] = {}
    for device, precision in (("cpu", "32"), ("cuda", "32"), ("cuda", "bf16")):
        config = TrainConfig(
            steps=steps,
            batch_size=16,
            precision=precision,
            device=device,
            log_every=1,
            validate_every=0,
            checkpoint_every=0,
            select="last",
        )
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = train(_network(task), task, None, SegReg(), config, Path(folder) / "run", progress=False)
            history = run.history
        total = history["total"].dropna().tolist()
        losses[device, precision] = total
        name = f"{device} {precision}"
        print(
            f"      {name}: {steps} steps in {time.perf_counter() - started:.1f} s, loss {total[0]:.4f} to {total[-1]:.4f}"
        )
        checks.append(Check(f"{name}: last loss over first", total[-1] / total[0], 0.9))
    reference = losses["cpu", "32"]
    for key, limit in ((("cuda", "32"), 1e-3), (("cuda", "bf16"), 0.02)):
        difference = abs(losses[key][0] - reference[0]) / reference[0]
        checks.append(Check(f"first loss, {' '.join(key)} against CPU", difference, limit))
        final = abs(losses[key][-1] - reference[-1]) / reference[-1]
        checks.append(Check(f"loss after {steps} steps, {' '.join(key)} against CPU", final, 0.25))
    return checks
