"""A regularizer with weight 0 is skipped: the training is the plain one bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import every_regularizer as every
import torch
from torch import Tensor, nn

from toolkit.training.checkpoint import read
from toolkit.training.protocol import Regularizer, StepContext
from toolkit.training.run import Run
from toolkit.training.train import train

CONFIG = {"steps": 6, "batch_size": 4, "validate_every": 3, "checkpoint_every": 6, "log_every": 1}


class Meddler(Regularizer):
    """Would disturb everything that can be disturbed: running statistics and global random numbers."""

    name = "meddler"

    @property
    def taps(self) -> tuple[str, ...]:
        return ("*",)

    def weights(self, step: int) -> dict[str, float]:
        return {"term": 0.0}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        context.model(torch.randn_like(context.batch["image"]))
        return {"term": context.outputs.mean()}


def trained(model: nn.Module, regularizer: Regularizer | None, folder: Path) -> Run:
    return train(model, every.task(), regularizer=regularizer, config=CONFIG, out=folder, progress=False)


def rows(run: Run) -> list[dict[str, Any]]:
    from toolkit.training.history import read_rows

    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_rows(run.directory.history)]


def test_weight_zero_is_plain_training_even_for_one_that_would_disturb_everything(tmp_path: Path) -> None:
    runs = [
        trained(every.network_for(None), given, tmp_path / label)
        for label, given in (("plain", None), ("zero", Meddler()))
    ]
    plain, zero = (read(run.directory.checkpoints, CONFIG["steps"]) for run in runs)
    assert plain.sha256 == zero.sha256
    assert rows(runs[0]) == rows(runs[1])
