"""A network whose process is killed once, in the middle of a training or of an analysis."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


class Dying(nn.Module):
    """Kills its process at the given forward pass unless the marker, which it leaves, is there."""

    def __init__(self, marker: str, at: int, training: bool = True) -> None:
        super().__init__()
        self.marker, self.at, self.passes, self.deadly = marker, at, 0, training
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        self.passes += 1
        due = self.training is torch.is_grad_enabled() is self.deadly and self.passes == self.at
        if due and not Path(self.marker).exists():
            Path(self.marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.conv(image)
