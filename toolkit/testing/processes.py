"""Gradients of two processes against those of one; `python -m toolkit.testing.processes` is one of the two."""

from __future__ import annotations

import copy
import datetime
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.unet import unet
from toolkit.process_state import seeded
from toolkit.testing.short_runs import demand
from toolkit.training import background
from toolkit.training.engine import share_of
from toolkit.training.protocol import Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def gradients(regularizer: Regularizer, batch: Mapping[str, Tensor], model: nn.Module, wrap: Any = None) -> Tensor:
    """Parameter gradients of one step of a float64 network under soft Dice by image and a regularizer, as one vector."""
    step: nn.Module = TrainingStep(model, SegmentationObjective(batch_dice=False), [regularizer])
    called = step if wrap is None else wrap(step)  # DDP must live until the backward pass is over
    called(batch).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def difference_between_processes(regularizers: Mapping[str, Regularizer], folder: Path) -> float:
    """Largest relative difference between gradients of one process and of two that share its batch."""
    parcel = background.packed({name: copy.deepcopy(one) for name, one in regularizers.items()})
    arguments = [str(folder / "rendezvous"), str(folder / "gradients")]
    started = [
        background.start_module("toolkit.testing.processes", [str(rank), *arguments], parcel, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    errors = []
    for process in started:
        with process:  # waits for it and closes its pipes
            errors.append(process.stderr.read().decode())  # type: ignore[union-attr]
    demand(not any(p.returncode for p in started), "\n".join(errors))
    shared = torch.load(folder / "gradients", weights_only=True)
    worst = 0.0
    for name, regularizer in regularizers.items():
        whole = gradients(copy.deepcopy(regularizer), shared_batch(), double_network())
        worst = max(worst, float((whole - shared[name]).norm() / whole.norm()))
        demand(worst < 1e-9, f"{name}: the gradients of two processes differ by {worst:.2g} of their norm")
    return worst


def shared_batch() -> dict[str, Tensor]:
    """Four images in float64, whose labels differ from share to share."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 16, 16, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (4, 1, 16, 16), generator=generator)
    label[0] = label[0].clamp_max(1)  # shares of unequal content
    return {"image": image, "label": label}


def double_network() -> nn.Module:
    """A U-Net in float64 that does not mix images."""
    with seeded(0):
        return unet(1, 3, channels=(4, 8)).double()  # instance norm: no statistics shared between images


def _child(rank: int, rendezvous: str, out: str) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    regularizers = background.received(sys.stdin.buffer)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=200)
    )
    batch = share_of(shared_batch(), rank, 2)

    def wrap(step: nn.Module) -> nn.Module:
        return DistributedDataParallel(step, broadcast_buffers=False)

    vectors = {name: gradients(one, batch, double_network(), wrap) for name, one in regularizers.items()}
    if rank == 0:
        torch.save(vectors, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2], sys.argv[3])
