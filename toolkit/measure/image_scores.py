"""Scores of binary masks image by image, as the polyp and gland literature reports them."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_SCORES = ("iou", "dice", "recall", "precision", "accuracy", "f2")


def image_scores(probability: Tensor, target: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU, Dice, recall, precision, accuracy and F2 (columns `IMAGE_SCORES`) of each image, (N, 6) float64.

    1e-15 is added to every numerator and denominator: two empty masks score 1, and an empty prediction has precision
    1. "mIoU" and "mDSC" of that literature are the means of the first two columns over images.

    Args:
        probability: (N, ...) foreground probabilities; foreground is strictly above the threshold.
        target: (N, ...) of the same shape; foreground is strictly above 0.5.
        threshold: of the prediction.

    Example:
        >>> tk.image_scores(torch.tensor([[0.9, 0.8, 0.2]]), torch.tensor([[1, 0, 0]]))[0, 0]
        tensor(0.5000, dtype=torch.float64)
    """
    predicted = (probability > threshold).flatten(1).double()
    truth = (target > 0.5).flatten(1).double()
    hit = (predicted * truth).sum(dim=1)
    positives, wanted = predicted.sum(dim=1), truth.sum(dim=1)
    epsilon = 1e-15

    def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
        return (numerator + epsilon) / (denominator + epsilon)

    recall, precision = ratio(hit, wanted), ratio(hit, positives)
    accuracy = (predicted == truth).double().mean(dim=1)
    columns = [
        ratio(hit, positives + wanted - hit),
        ratio(2 * hit, positives + wanted),
        recall,
        precision,
        accuracy,
        5 * precision * recall / (4 * precision + recall + epsilon),
    ]
    return torch.stack(columns, dim=1)
