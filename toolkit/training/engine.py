"""Lightning Fabric, set up for one `TrainingStep`, and the machine it runs on: device, precision, processes, threads."""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toolkit.errors import ConfigError, ToolkitWarning
from toolkit.features.modules import own_precision, refuse_scripted
from toolkit.features.provenance import versions
from toolkit.process_state import core_count, seed_all
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import keyed_generator
from toolkit.training.step import TrainingStep

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_MOST_WORKERS = 4  # more threads than this wait for one another, not for the device
_PRECISION = {"bf16": "bf16-mixed", "16": "16-mixed"}


def build_fabric(config: TrainConfig, several_parts: bool = False) -> Fabric:
    """Fabric with the configured device, precision and number of processes, launched; `several_parts`: backward passes a step."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    device, here = resolve_device(config), int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    if here != config.devices:
        what = f"torchrun started {here} processes on this machine, but devices={config.devices}."
        fix = f"Set TrainConfig(devices={here}), or start with: torchrun --nproc-per-node {config.devices} script.py"
        raise ConfigError(what, where=f"TrainConfig(devices={config.devices})", fix=fix)
    machines = int(os.environ["WORLD_SIZE"]) // here if "LOCAL_WORLD_SIZE" in os.environ else 1
    processes = config.devices * machines
    if config.batch_size % processes:
        raise ConfigError(f"A batch of {config.batch_size} cannot be shared evenly by {processes} processes.")
    settings: dict[str, Any] = {"accelerator": device.type, "devices": config.devices, "num_nodes": machines}
    if processes > 1:
        settings["strategy"] = DDPStrategy(broadcast_buffers=False, find_unused_parameters=several_parts)
    elif device.index is not None and device.type == "cuda":
        settings["devices"] = [device.index]
    if config.precision == "32":
        fabric = Fabric(precision="32-true", **settings)
    else:
        fabric = Fabric(plugins=[_mixed_precision(_PRECISION[config.precision], device.type)], **settings)
    fabric.launch()
    return fabric


@contextlib.contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Every module's own train or eval mode, which may be changed inside the block, back after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def is_first_process() -> bool:
    """Whether this process writes files: True unless a launcher gave it a rank above 0."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def check_network(model: nn.Module, config: TrainConfig) -> None:
    """Refuse a network that cannot be trained as it is.

    A network in bfloat16, float16 or float64 is trained in it: inputs are cast to it, losses are computed in single
    precision or better, and the optimizer's state has the precision of the weights.
    """
    refuse_scripted(model)
    own = own_precision(model)
    if own == torch.float16 and (config.optimizer in ("adam", "adamw") or config.precision == "16"):
        what = "a loss scale needs float32 weights" if config.precision == "16" else "Adam's epsilon is 0 in float16"
        fix = 'Pass model.float() (TrainConfig(precision="bf16") makes its passes in half precision), '
        fix += 'model.bfloat16(), or TrainConfig(optimizer="sgd").'
        raise ConfigError(f"The network's weights are float16, and {what}.", where=type(model).__name__, fix=fix)
    if own in (torch.float16, torch.bfloat16):
        kind = str(own).removeprefix("torch.")
        what = f"The network's weights are {kind}: steps smaller than their rounding are lost."
        fix = 'model.float() with TrainConfig(precision="bf16") makes its passes in half precision and loses none.'
        warnings.warn(f"{what} {fix}", ToolkitWarning, stacklevel=4)


def resolve_device(config: TrainConfig) -> torch.device:
    """The device that `config.device` means on this machine."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        what = f"This machine has {torch.cuda.device_count()} CUDA devices."
        raise ConfigError(what, where=f"device={config.device!r}", fix='Use device="auto" or "cpu".')
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("This machine has no Metal device.", where=f"device={config.device!r}", fix='Use "auto".')
    if config.precision == "16" and device.type != "cuda":
        raise ConfigError("Half precision with loss scaling needs CUDA.", fix='Use precision="bf16" or "32".')
    return device


def _mixed_precision(name: Any, device: str) -> Any:
    from lightning_fabric.plugins.precision import MixedPrecision

    class KeepInputs(MixedPrecision):
        """Autocast without rounding the batch first: losses that compare with the image need all its digits."""

        def convert_input(self, data: Any) -> Any:
            return data

        def backward(self, tensor: Any, model: Any, *args: Any, **kwargs: Any) -> None:
            with sound_backward(model):
                super().backward(tensor, model, *args, **kwargs)

    return KeepInputs(name, device)


@contextlib.contextmanager
def sound_backward(model: nn.Module | None) -> Iterator[None]:
    """A backward pass of a bf16 forward pass on the CPU without oneDNN, where the network has 3D convolutions.

    oneDNN 3.12 (torch 2.13) returns memory it never wrote (up to 1e37) as the bf16 gradient of a 3D convolution's weights
    where its output has sides of 1 or 2; 2D, float32 and torch's own kernels are right.
    """
    solid = model is not None and any(isinstance(module, nn.Conv3d) for module in model.modules())
    before = torch.backends.mkldnn.enabled
    try:  # mkldnn.flags() warns about GPUs of Intel
        torch.backends.mkldnn.enabled = before and not (solid and next(model.parameters()).device.type == "cpu")  # type: ignore
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed the generators of torch, NumPy and Python, so that a resumed run's dropout draws what it would have."""
    seed_all(keyed_generator("global", seed, step, rank).initial_seed())


def share_of(batch: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """The rows of a batch that one process works on: every `world_size`-th, starting with its rank."""
    if world_size == 1:
        return batch
    return {key: value[rank::world_size] for key, value in batch.items()}  # equal shares: see `build_fabric`


def check_compile(step: TrainingStep, config: TrainConfig) -> None:
    """Refuse to compile a network whose passes are not whole calls without hooks."""
    if not config.compile:
        return
    tapping = [r.name for r in step.regularizers if r.taps_on(step.model)]
    partly = [part.name for part in step.regularizers if part.requires]
    partly += [step.objective.name] if step.objective.requires else []
    if tapping or partly:
        reason = "taps layers, and compiled passes call no hooks" if tapping else "calls parts of the network by name"
        what = f"The network cannot be compiled here: {', '.join(tapping or partly)} {reason}."
        fix = "Train with compile=False, or compile blocks that hold no tapped layer: model.encoder['1'].compile()."
        raise ConfigError(what, where="TrainConfig(compile=True)", fix=fix)


@contextlib.contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """The network's calls compiled inside the block, its own way of being called given back after it."""
    before = model._compiled_call_impl
    if wanted and before is None:
        model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = before


def worker_count(config: TrainConfig) -> int:
    """How many threads prepare batches: the configured number, or what this machine has to spare.

    On a GPU the threads only read and crop; on a CPU a thread that augments would take a core from the step itself
    unless one is idle.
    """
    if config.workers is not None:
        return config.workers
    cores = core_count() // config.devices
    if resolve_device(config).type == "cpu":
        return max(0, min(_MOST_WORKERS, cores // (config.threads or torch.get_num_threads()) - 1))
    return max(1, min(_MOST_WORKERS, cores - 1))


def environment(config: TrainConfig) -> dict[str, Any]:
    """Versions, device and thread count, as recorded in `run.json`."""
    device = resolve_device(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions(),
        "system": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": config.threads or torch.get_num_threads(),
        "workers": worker_count(config),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }


def content_hash(task: Any) -> str | None:
    """The task's content hash; None if it offers none."""
    method = getattr(task, "content_hash", None)
    return str(method()) if callable(method) else None


def contents(task: Any) -> dict[str, Any] | None:
    """What the content hash is made of, so that a difference can be named; None if the task does not offer it."""
    method = getattr(task, "contents", None)
    return dict(method()) if callable(method) else None
