"""Loss and entropy of logits, for exclusive classes, one output and overlapping regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import DataError
from toolkit.inference.network import Predictor


def losses(
    predictor: Predictor, logits: Tensor, clean: Tensor, label: Tensor | None, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, *S) with the label, or with the clean prediction; and where it counts (B, *S) bool."""
    if label is not None:
        real = real & (label >= 0)  # negative labels mark voxels to ignore
    if predictor.activation.overlapping(logits.shape[1]):
        wanted = (clean.detach() > 0).float() if label is None else predictor.activation.targets(label)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        return torch.where(real[:, 0], each, torch.zeros_like(each)), real[:, 0]
    classes = predictor.labels(clean.detach(), {0: "", 1: ""}).long() if label is None else label[:, 0]
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    if int(classes.max()) >= logits.shape[1]:
        what = f"The label holds class {int(classes.max())}, the network gives {logits.shape[1]} classes."
        raise DataError(what, fix="Use the label of the task that the network was trained on, or no label.")
    classes = torch.where(real[:, 0], classes, torch.full_like(classes, -1))
    return F.cross_entropy(logits, classes, ignore_index=-1, reduction="none"), real[:, 0]


def mean_loss(each: Tensor, real: Tensor) -> Tensor:
    """Mean over the voxels that count."""
    return each.sum() / real.sum().clamp_min(1)


def entropy_of(predictor: Predictor, logits: Tensor, temperature: float) -> Tensor:
    """(B, *S) bits; of overlapping regions the mean of the outputs' own."""
    logits = logits / temperature
    if predictor.activation.overlapping(logits.shape[1]):
        yes = logits.sigmoid().unsqueeze(2)
        return torch.stack([entropy_map(torch.cat((p, 1 - p), 1)) for p in yes.unbind(1)]).mean(0)
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    return entropy_map(logits.softmax(1))


def entropy_map(probabilities: Tensor) -> Tensor:
    """Entropy in bits (B, *S) of class probabilities (B, K, *S): -sum q log2(q + 1e-7), as Chen et al. drew it."""
    return -(probabilities * torch.log2(probabilities + 1e-7)).sum(1)
