"""Which positions of a feature map become rows, drawn uniformly or balanced over classes; and rows of all processes.

The training loop gives process r of W every W-th image of the batch, starting with r, and averages parameter gradients.
A statistic that is no mean over images (a distance between distributions) therefore has to see all rows. They are few
and of a fixed number, so every process evaluates it on all of them; the cost does not grow with the number of processes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, distributed

from toolkit.errors import ConfigError, choose

SAMPLING = ("uniform", "class_balanced")
POOLING = ("pooled", "per_image")


@dataclasses.dataclass(frozen=True)
class RowSample:
    """Positions (N,) counted through batch and space (image * positions + position), their weights if unequal, their labels if known."""

    index: Tensor
    weights: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return int(self.index.numel())

    @property
    def effective_size(self) -> float:
        """1 / sum of squared weights: N for equal weights."""
        return float(len(self)) if self.weights is None else float(1.0 / self.weights.square().sum())


def labels_at(label: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Label map (B, 1, *S) at a feature map's spatial size, nearest neighbour, as (B, positions) on the CPU."""
    if tuple(label.shape[2:]) != tuple(size):
        label = torch.nn.functional.interpolate(label.float(), size=tuple(size), mode="nearest")
    return label.flatten(1).long().cpu()


def rows_at(feature: Tensor, index: Tensor) -> Tensor:
    """The rows (N, C) of a channel-first map (B, C, *S) at flat positions; differentiable."""
    flat = feature.flatten(2)
    index = index.to(feature.device, non_blocking=True)
    positions = flat.shape[2]
    return flat[torch.div(index, positions, rounding_mode="floor"), :, index % positions]


def choose_rows(
    images: int,
    positions: int,
    samples: int,
    generator: torch.Generator,
    *,
    sampling: str = "uniform",
    pooling: str = "pooled",
    labels: Tensor | None = None,
    ignore_label: int | None = None,
) -> list[RowSample]:
    """Draw rows from `images` maps of `positions` each: one sample of the pooled batch, or one an image.

    `samples` is the total; per image each image gets samples // images. "class_balanced" draws equally many rows of
    every class present (all rows of a class that has fewer) and weights them so that classes count equally.
    """
    choose("sampling", sampling, SAMPLING)
    choose("pooling", pooling, POOLING)
    balanced = sampling == "class_balanced"
    if labels is None and (balanced or ignore_label is not None):
        raise ConfigError("Class-balanced sampling and ignore_label need labels in the batch.")
    shares = 1 if pooling == "pooled" else images
    count, span = samples // shares, images * positions // shares
    flat = None if labels is None else labels.reshape(shares, span)
    chosen = []
    for share in range(shares):
        labels_here = None if flat is None else flat[share]
        if labels_here is not None and balanced:
            sample = _balanced(labels_here, count, generator, ignore_label)
        else:
            usable = torch.arange(span)
            if labels_here is not None and ignore_label is not None:
                usable = torch.nonzero(labels_here != ignore_label).flatten()
            sample = RowSample(usable[torch.randperm(len(usable), generator=generator)[:count]])
        labels_there = None if labels_here is None else labels_here[sample.index]
        chosen.append(RowSample(sample.index + share * span, sample.weights, labels_there))
    return chosen


def _balanced(labels: Tensor, count: int, generator: torch.Generator, ignore_label: int | None) -> RowSample:
    present = [c for c in labels.unique().tolist() if c != ignore_label]
    if not present:
        return RowSample(torch.empty(0, dtype=torch.long))
    quota = max(1, count // len(present))
    index, weights = [], []
    for value in present:
        members = torch.nonzero(labels == value).flatten()
        members = members[torch.randperm(len(members), generator=generator)[:quota]]
        index.append(members)
        weights.append(torch.full((len(members),), 1.0 / (len(present) * len(members))))
    return RowSample(torch.cat(index), torch.cat(weights))


def process() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside distributed training."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def of_every_process(own: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, by rank; without graph."""
    own = own.contiguous()
    parts = [torch.empty_like(own) for _ in range(process()[1])]
    distributed.all_gather(parts, own)
    return parts


def mean_of_all(values: Tensor) -> Tensor:
    """Mean over processes of a tensor without graph (the tensor itself outside distributed training)."""
    return sum_of_all(values) / process()[1]


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
    return torch.stack(of_every_process(labels.to(device)), dim=1).flatten(0, 1).cpu()


def rows_of_all(feature: Tensor, index: Tensor) -> Tensor:
    """The rows (N, C) at positions counted through the undivided batch, from every process; differentiable.

    `feature` is this process's map (B, C, *S), `index` (N,) image * positions + position, the same on all processes.
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
    parts = [part[:count] for part, count in zip(of_every_process(padded), counts, strict=True)]
    parts[rank] = own.detach() + size * (own - own.detach())
    place = torch.argsort(torch.argsort(owner, stable=True)).to(own.device, non_blocking=True)
    return torch.cat(parts).index_select(0, place)
