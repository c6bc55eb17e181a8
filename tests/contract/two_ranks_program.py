"""Gradients of one step of a loop of one's own in float64, of one process or of two that share its batch.

    python two_ranks_program.py OUT RANK SIZE RENDEZVOUS

With SIZE 1 the whole batch; otherwise rank RANK takes every SIZE-th image. Rank 0 writes the gradients to OUT.
"""

from __future__ import annotations

import datetime
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.testing.processes import double_network, shared_batch
from toolkit.training.attach import attach
from toolkit.training.engine import share_of
from toolkit.training.protocol import Regularizer
from toolkit.training.segmentation import SegmentationObjective


def gradients(regularizer: Regularizer, rank: int, size: int) -> torch.Tensor:
    network = double_network()
    reg, objective = attach(regularizer, network), SegmentationObjective(batch_dice=False)
    wrapped: nn.Module = network if size == 1 else DistributedDataParallel(network)
    share = share_of(shared_batch(), rank, size)
    loss = torch.stack(list(objective(wrapped(share["image"]), share).values())).sum()
    (loss + reg.loss(share)).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


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
    settings = {"segreg": SegReg(weight=10.0, samples=300, directions=16), "dispersive": Dispersive(weight=5.0)}
    found = {name: gradients(regularizer, rank, size) for name, regularizer in settings.items()}
    if rank == 0:
        torch.save(found, out)
    if size > 1:
        distributed.barrier()
        distributed.destroy_process_group()
