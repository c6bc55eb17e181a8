"""`make gpu-check`: what the toolkit computes on a GPU against what it computes on the CPU, in one table."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.data.catalogue import load_task
from toolkit.data.task import Task
from toolkit.explain.gradcam import grad_cam
from toolkit.inference.extract import extract
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.unet import unet
from toolkit.process_state import seeded
from toolkit.training.config import TrainConfig
from toolkit.training.engine import sound_backward
from toolkit.training.protocol import Regularizer
from toolkit.training.run import Run
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep
from toolkit.training.train import resume, train

LAYERS = ("encoder.1", "bottleneck", "head_input")
Method = Callable[[], Regularizer] | None
METHODS: dict[str, Method] = {"plain": None, "SegReg": SegReg, "SelfReg": SelfReg, "dispersive": Dispersive}
METHODS["latent augmentation"] = LatentAugmentation
CLASSES = 4
Check = tuple[str, float, float]  # what was compared, the number (NaN where there is none), what it must not exceed


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the check is: steps of each training, side and channels of the single steps."""

    steps: int = 30
    side: int = 64
    side_3d: int = 32
    channels: tuple[int, ...] = (16, 32, 64)
    precisions: tuple[str, ...] = ("32", "bf16")


def gpu_check(device: str = "cuda", sizes: Sizes | None = None) -> int:
    """Print the table of all comparisons; exit status 0 if all agree or if there is no GPU, else 1.

    Args:
        device: what is compared with the CPU; "cpu" tries the check itself.
        sizes: how much work; None = for a GPU, a few minutes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("This machine has no CUDA device that torch can use; there is nothing to check.")
        return 0
    sizes, task, started, failed = sizes or Sizes(), load_task("phantom-cardiac"), time.perf_counter(), 0
    name = torch.cuda.get_device_name(0) if device == "cuda" else device
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print(f"{'':<6}{'what, against the CPU in fp32':<62}{'measured':>10}{'limit':>10}")
    sections = (_single_steps, _analyses, _training, _kill_and_resume)
    convolutions = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 rounds products to ten bits
    with tempfile.TemporaryDirectory() as folder, convolutions:
        checks = (one for section in sections for one in section(task, device, sizes, Path(folder)))
        for what, measured, limit in checks:
            passed = measured <= limit  # NaN is not
            print(f"{'ok' if passed else 'FAIL':<6}{what:<62}{measured:>10.3g}{limit:>10.3g}", flush=True)
            failed += not passed
    print("not run: several GPUs and machines (torchrun), nccl, networks of the user, precision 16, compile=True")
    print(f"{failed} failed, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of the second."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _network(codes: bool, dims: int, sizes: Sizes) -> nn.Module:
    with seeded(0):
        if codes:
            return fast_slow_network(1, CLASSES, width=sizes.channels[0] // 2, dims=dims)
        return unet(1, CLASSES, channels=sizes.channels, dims=dims)


def _single_steps(task: Task, device: str, sizes: Sizes, folder: Path) -> Iterable[Check]:
    """Loss and gradients of one step of every method, in 2D and 3D, from the same weights, batch and draws."""
    for dims in (2, 3):
        side = sizes.side if dims == 2 else sizes.side_3d
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(0, CLASSES, (4, 1, *[side] * dims), generator=generator)
        batch = {"image": (label + torch.rand(label.shape, generator=generator)) / CLASSES, "label": label}
        for name, method in METHODS.items():
            loss, gradient = _step_on("cpu", "32", method, dims, sizes, batch)
            codes = method is LatentAugmentation
            for precision in sizes.precisions:
                other = _step_on(device, precision, method, dims, sizes, batch)
                limits = (1e-4, 0.1 if codes else 1e-2) if precision == "32" else (0.05, 0.35)
                what = f"{name}, {dims}D, {precision}:"
                yield f"{what} loss of a step", abs(other[0] - loss) / abs(loss), limits[0]
                if precision == "32" or not codes:  # rounding moves masks and rectifiers of the codes, and all behind
                    yield f"{what} gradient of a step", relative_difference(other[1], gradient), limits[1]


def _step_on(
    device: str, precision: str, method: Method, dims: int, sizes: Sizes, batch: dict[str, Any]
) -> tuple[float, Tensor]:
    codes = method is LatentAugmentation
    network = _network(codes, dims, sizes).to(device)
    objective = FastSlowObjective() if codes else SegmentationObjective()
    step = TrainingStep(network, objective, () if method is None else (method(),))
    there, loss = {key: value.to(device) for key, value in batch.items()}, 0.0
    with seeded(0):
        for part in range(step.parts(0)):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                total = step(there, part=part).total
            if total is not None:
                with sound_backward(network if precision == "bf16" else None):
                    total.backward()
                loss += float(total.detach())
    return loss, torch.cat([p.grad.flatten().float().cpu() for p in network.parameters() if p.grad is not None])


def _analyses(task: Task, device: str, sizes: Sizes, folder: Path) -> Iterable[Check]:
    """Features and Grad-CAM maps of the same weights."""
    cases = task.cases("val")[:8]
    network = _network(False, 2, sizes)
    features, maps = {}, {}
    for place in ("cpu", device):
        network.to(place)
        features[place, "32"] = extract(network, cases, list(LAYERS), pool="voxels", samples=16)
        maps[place] = grad_cam(network, cases[0], "decoder.*", 1)
    with torch.autocast(device, torch.bfloat16):
        features[device, "bf16"] = extract(network, cases, list(LAYERS), pool="voxels", samples=16)
    for precision, limit in (("32", 1e-4), ("bf16", 0.05)):
        for layer in LAYERS:
            rows, reference = features[device, precision].rows(layer), features["cpu", "32"].rows(layer)
            yield f"features of {layer}, {precision}", relative_difference(rows, reference), limit
    for layer in maps["cpu"].layers:
        yield f"Grad-CAM at {layer}", relative_difference(maps[device][layer], maps["cpu"][layer]), 1e-3


def _config(device: str, precision: str, steps: int) -> TrainConfig:
    return TrainConfig(
        steps, device=device, precision=precision, select="last", log_every=1, validate_every=0, checkpoint_every=5
    )


def _training(task: Task, device: str, sizes: Sizes, folder: Path) -> Iterable[Check]:
    """Short trainings with SegReg: the first loss, the last one, and that it falls."""
    losses: dict[int, list[float]] = {}
    for place, precision in (("cpu", "32"), *((device, precision) for precision in sizes.precisions)):
        config, out = _config(place, precision, sizes.steps), folder / f"{place}-{precision}-{len(losses)}"
        run = train(_network(False, 2, sizes), task, None, SegReg(), config, out=out, progress=False)
        losses[len(losses)] = run.history["total"].dropna().tolist()
        if len(losses) > 1:
            limit = 1e-3 if precision == "32" else 0.05
            ours, reference = losses[len(losses) - 1], losses[0]
            yield f"training, {precision}: first loss", abs(ours[0] / reference[0] - 1), limit
            yield f"training, {precision}: loss after {sizes.steps} steps", abs(ours[-1] / reference[-1] - 1), 0.25
            yield f"training, {precision}: last loss over first", ours[-1] / ours[0], 0.98


def _kill_and_resume(task: Task, device: str, sizes: Sizes, folder: Path) -> Iterable[Check]:
    """Two processes train on the device at once; one is killed and resumed, and must end like the other."""
    config = _config(device, "32", sizes.steps)
    whole, killed = (
        train(_network(False, 2, sizes), task, None, SegReg(), config, out=folder / name, background=True)
        for name in ("whole", "killed")
    )
    _kill_after(killed, 5)  # its first checkpoint
    whole.wait(timeout=240)
    with torch.backends.cudnn.flags(enabled=True):  # as in the children, TF32 included
        resumed = resume(killed.path, progress=False)
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    difference = max(relative_difference(a.detach(), b.detach()) for a, b in pairs)
    yield "two processes at once; one killed and resumed: weights", difference, 0.0 if device == "cpu" else 1e-2


def _kill_after(run: Run, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.running and run.step < step:
        time.sleep(0.01)
    if run._process is not None and run.running:
        run._process.kill()
        run._process.wait()
