"""Gradients of one step in float64, of one process or of two that share its batch.

    python two_ranks_program.py OUT RANK SIZE RENDEZVOUS

With SIZE 1 the whole batch; otherwise rank RANK takes every SIZE-th image, as the training loop does. Rank 0 writes
one set of parameter gradients per setting to OUT.
"""

from __future__ import annotations

import datetime
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.unet import unet
from toolkit.training.attach import attach
from toolkit.training.engine import share_of
from toolkit.training.regularizer import Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

SETTINGS: dict[str, Regularizer] = {
    "epps_pulley": SegReg(weight=10.0, samples=300, directions=16),
    "two taps": SegReg(weight=10.0, tap=("head_input", "bottleneck"), samples=200, directions=8),
    "class_balanced": SegReg(weight=10.0, samples=240, directions=16, sampling="class_balanced"),
    "per_image": SegReg(weight=10.0, samples=400, directions=16, pooling="per_image", ignore_label=0),
    "null_centred": SegReg(weight=10.0, samples=300, directions=16, null_centred=True, convex=False),
    "sliced_wasserstein": SegReg(divergence="sliced_wasserstein", samples=300, directions=16),
    "gaussian_kl": SegReg(divergence="gaussian_kl", samples=300),
    "covariance": SegReg(divergence="covariance", samples=300),
    "variance_covariance": SegReg(divergence="variance_covariance", samples=300),
    "gaussian_kernel": SegReg(divergence="gaussian_kernel", samples=300),
    "nearest_neighbour": SegReg(divergence="nearest_neighbour", samples=300),
    "class_conditional": SegReg(divergence="class_conditional", classes=3, samples=500, directions=16),
    "dispersive": Dispersive(weight=5.0),
    "selfreg": SelfReg(scr=1.0, ifd=1.0),
}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 16, 16, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (4, 1, 16, 16), generator=generator)
    label[0] = label[0].clamp_max(1)  # shares of unequal content
    return {"image": image, "label": label}


def gradients(regularizer: Regularizer, rank: int, size: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8)).double()  # instance norm: no statistics shared between images
    step: nn.Module = TrainingStep(network, SegmentationObjective(), [regularizer])
    wrapped = step if size == 1 else DistributedDataParallel(step, broadcast_buffers=False)
    wrapped(share_of(batch(), rank, size)).total.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def gradients_in_a_loop(regularizer: Regularizer, rank: int, size: int) -> dict[str, torch.Tensor]:
    """The same in a loop of one's own, around the network in DDP."""
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8)).double()
    reg, objective = attach(regularizer, network), SegmentationObjective(batch_dice=False)
    wrapped = network if size == 1 else DistributedDataParallel(network)
    share = share_of(batch(), rank, size)
    loss = torch.stack(list(objective(wrapped(share["image"]), share).values())).sum()
    (loss + reg.loss(share)).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    out, rank, size, rendezvous = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=200),
        )
    found = {name: gradients(regularizer, rank, size) for name, regularizer in SETTINGS.items()}
    for name in ("epps_pulley", "dispersive"):
        found[f"{name}, attached"] = gradients_in_a_loop(SETTINGS[name], rank, size)
    found["plain"] = gradients(SegReg(weight=0.0), rank, size)
    if rank == 0:
        torch.save(found, out)
    if size > 1:
        distributed.barrier()
        distributed.destroy_process_group()
