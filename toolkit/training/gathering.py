"""A statistic of the whole batch under distributed training: rows drawn from all processes' images, with gradient.

The training loop gives process r of W every W-th image of the batch, starting with r, and averages parameter gradients.
A statistic that is no mean over images (a distance between distributions) therefore has to see all rows. They are few
and of a fixed number, so every process evaluates it on all of them; the cost does not grow with the number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from toolkit.training.sampling import rows_at


def process() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside distributed training."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def mean_of_all(values: Tensor) -> Tensor:
    """Mean over processes of a tensor without graph (the tensor itself outside distributed training)."""
    _, size = process()
    if size == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / size


def sum_of_all(values: Tensor) -> Tensor:
    """Sum over processes, differentiable; its gradient is scaled like that of `rows_of_all`."""
    _, size = process()
    if size == 1:
        return values
    own = values.detach()
    total = own.clone()
    distributed.all_reduce(total)
    return total + size * (values - own)


def labels_of_all(labels: Tensor, device: torch.device) -> Tensor:
    """Labels (B, positions) of every process as (W B, positions), in the order of the undivided batch; on the CPU."""
    _, size = process()
    if size == 1:
        return labels
    own = labels.to(device).contiguous()
    parts = [torch.empty_like(own) for _ in range(size)]
    distributed.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten(0, 1).cpu()


def rows_of_all(feature: Tensor, index: Tensor) -> Tensor:
    """The rows (N, C) at positions counted through the undivided batch, from every process; differentiable.

    Args:
        feature: this process's map (B, C, *S).
        index: (N,) positions, image * positions + position, the same on all processes.

    A process sends gradient through its own rows only, multiplied by the number of processes: all of them compute the
    same loss, so this is what a sum over processes would give, and the averaged parameter gradients are those of one
    process with the whole batch.
    """
    rank, size = process()
    if size == 1:
        return rows_at(feature, index)
    positions = feature[0, 0].numel()
    image = torch.div(index, positions, rounding_mode="floor")
    owner = image % size
    local = torch.div(image, size, rounding_mode="floor") * positions + index % positions
    own = rows_at(feature, local[owner == rank])
    own = own if own.dtype == torch.float64 else own.float()
    counts = [int((owner == other).sum()) for other in range(size)]
    padded = own.new_zeros(max(counts), own.shape[1])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(parts, padded)
    parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
    parts[rank] = own.detach() + size * (own - own.detach())
    place = torch.argsort(torch.argsort(owner, stable=True)).to(own.device, non_blocking=True)
    return torch.cat(parts).index_select(0, place)
