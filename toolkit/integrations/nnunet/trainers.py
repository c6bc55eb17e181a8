"""Trainer classes of nnU-Net v2 that add a regularizer to its loss and change nothing else.

nnU-Net finds them by name when the variable `nnUNet_extTrainer` holds `toolkit.integrations.nnunet.EXTERNAL`, while
training and again while predicting. Architecture, augmentation, sampling, plans and checkpoints are the stock
trainer's; with weight 0 so is every bit of the weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.modules import unwrap
from toolkit.files import write_atomically
from toolkit.results import as_table
from toolkit.training.attach import attach
from toolkit.training.history import HistoryWriter, truncate
from toolkit.training.protocol import Regularizer

CUDA = torch.device("cuda")
SETTINGS = "TOOLKIT_REGULARIZER"  # environment variable with the regularizer's settings as JSON


class _RegularizedLoss(nn.Module):
    """nnU-Net's loss plus the regularizer's, which only the training step adds."""

    def __init__(self, stock: nn.Module, trainer: RegularizedTrainer) -> None:
        super().__init__()
        self.stock = stock
        self.add = trainer.regularizer_loss

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        loss = self.stock(outputs, targets)
        extra = self.add(targets) if torch.is_grad_enabled() else None
        return loss if extra is None else extra[0] * loss + extra[1]


class RegularizedTrainer(nnUNetTrainer):
    """Base of the trainers below; a trainer of one's own names a regularizer class.

    The settings are those of the class, then the entry `toolkit` of the plans, then the JSON in the environment
    variable `TOOLKIT_REGULARIZER`, for example `{"weight": 0.1}`; they are written to `regularizer.json` in the output
    folder. Terms are logged once an epoch, to nnU-Net's log and to `history.jsonl`.
    """

    regularizer_class: ClassVar[type[Regularizer] | str]  # or the name under which it is registered
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._images: Tensor | None = None
        self._attached: Any = None
        self._step = 0
        self._terms: list[dict[str, float]] = []  # of the steps of this epoch

    def regularizer(self) -> Regularizer:
        """The regularizer with its settings.

        Raises:
            ConfigError: settings that are no JSON object or that the regularizer does not take.
        """
        settings = {**self.settings, **self.plans_manager.plans.get("toolkit", {})}
        if text := os.environ.get(SETTINGS):
            try:
                given = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"This is not JSON: {error}.", where=SETTINGS, fix='{"weight": 0.1}') from error
            if not isinstance(given, dict):
                raise ConfigError("The settings are not a JSON object.", where=SETTINGS, fix='{"weight": 0.1}')
            settings.update(given)
        kind = self.regularizer_class
        if isinstance(kind, str):
            return registry.build("regularizer", {"name": kind, "arguments": settings})
        try:
            return kind(**settings)
        except TypeError as error:
            raise ConfigError(f"{kind.__name__}: {error}.", where=SETTINGS) from error

    def initialize(self) -> None:
        """The stock set-up, then the taps: before the first pass, so that a compiled network honours them."""
        super().initialize()
        regularizer = self.regularizer()
        record = {"name": regularizer.name, "settings": vars(regularizer)}
        write_atomically(Path(self.output_folder) / "regularizer.json", json.dumps(record, indent=1, default=str))
        if any(regularizer.active(step) for step in (0, 10**9)):
            self._attached = attach(regularizer, unwrap(self.network))
            self.print_to_log_file(f"{regularizer.name} reads {', '.join(regularizer.taps_on(unwrap(self.network)))}")

    def _build_loss(self) -> nn.Module:
        return _RegularizedLoss(super()._build_loss(), self)

    def regularizer_loss(self, targets: Any) -> tuple[float, Tensor] | None:
        """For the batch at hand the factor on nnU-Net's loss and the regularizer's weighted one; None with weight 0."""
        if self._attached is None:
            return None
        labels = targets[0] if isinstance(targets, (list, tuple)) else targets
        self._attached.step = self._step  # of both, in this order
        return self._attached.objective_weight, self._attached.loss({"image": self._images, "label": labels.long()})

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's terms; the step follows from the epoch, so that `--c` goes on with the same draws."""
        super().on_train_epoch_start()
        self._step, self._terms = self.current_epoch * self.num_iterations_per_epoch, []

    def train_step(self, batch: dict) -> dict:
        """The stock step; the loss adds the regularizer's terms."""
        self._images = batch["data"].to(self.device, non_blocking=True)
        result = super().train_step(batch)
        self._images, self._step = None, self._step + 1
        if self._attached is not None:
            self._terms.append({name: float(value) for name, value in self._attached.terms.items()})
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the mean of every term over the epoch."""
        super().on_train_epoch_end(train_outputs)
        if self._terms and self.local_rank == 0:
            means = {str(name): float(value) for name, value in as_table(self._terms).fillna(0.0).mean().items()}
            self.print_to_log_file(*(f"{name} {value:.4g}" for name, value in means.items()))
            path = Path(self.output_folder) / "history.jsonl"
            truncate(path, self._step - 1)  # epochs that a killed run took after its checkpoint are taken again
            with HistoryWriter(path) as history:
                history.write({"step": self._step, "event": "train", **means})


class nnUNetTrainerSegReg(RegularizedTrainer):
    """SegReg at the tensor that the segmentation head reads (its loss is our inference from the public paper)."""

    regularizer_class = "segreg"


class nnUNetTrainerSelfReg(RegularizedTrainer):
    """SelfReg-UNet's semantic consistency and internal distillation on nnU-Net's stages."""

    regularizer_class = "selfreg"


class nnUNetTrainerDispersive(RegularizedTrainer):
    """Med-DisSeg's dispersive loss at the bottleneck."""

    regularizer_class = "dispersive"
