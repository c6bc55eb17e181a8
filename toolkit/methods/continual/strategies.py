"""EWC and LwF as strategies of a sequence: which regularizer they add, and what it learns after every stage."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.errors import choose
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.methods.continual.regularizers import ElasticWeights, LearningWithoutForgetting
from toolkit.registry import register
from toolkit.training.objective import Objective
from toolkit.training.regularizer import Regularizer, keyed_generator
from toolkit.training.run import Run
from toolkit.training.segmentation import fitted_label
from toolkit.training.strategies import Strategy


@register("strategy", "ewc")
@dataclasses.dataclass(frozen=True)
class ElasticWeightConsolidation(Strategy):
    """EWC in the paper's form: `ElasticWeights` with the Fisher information of every finished stage.

    Args:
        weight: lambda. Tried from 0.04 to 40 with scaled Fisher information (benchmarks/results/ewc_weights.csv): 0.4
            pulls about as hard as the objective, 0.04 a tenth of that, 40 holds the network nearly still.
        images: how many training images the Fisher information is averaged over, at most.
        fisher: "images" (mean over images of the squared gradient of the log-likelihood, the paper's), or "last_batch"
            (squared gradient of the objective on one batch, 1 for parameters without gradient), which is what the
            released code of Lifelong-nnU-Net computes, without its loss scale.
        scaled: divide each task's Fisher information by its mean over all parameters. Unscaled, it is so small for
            a mean over voxels that weights of order 1 leave plain fine-tuning.

    Raises:
        ConfigError: an unknown `fisher`.
    """

    name: ClassVar[str] = "ewc"
    weight: float = 0.4
    images: int = 200
    fisher: str = "images"
    scaled: bool = True

    def __post_init__(self) -> None:
        choose("Fisher information called", self.fisher, ("images", "last_batch"))

    def regularizers(self) -> list[Regularizer]:
        """An empty memory."""
        return [ElasticWeights(self.weight)]

    def remember(self, regularizers: list[Regularizer], run: Run) -> None:
        """Add the stage's Fisher information."""
        network = unwrap(run.model)
        if self.fisher == "images":
            fisher = fisher_information(
                network, run.task, run.objective, site=run.site, images=self.images, patch_size=run.config.patch_size
            )
        else:
            fisher = last_batch_fisher(run)
        if self.scaled:
            mean = float(sum(f.double().sum() for f in fisher.values()) / sum(f.numel() for f in fisher.values()))
            fisher = {name: value / mean if mean > 0 else value for name, value in fisher.items()}
        for regularizer in regularizers:
            if isinstance(regularizer, ElasticWeights):
                regularizer.remember(network, fisher)


@register("strategy", "lwf")
@dataclasses.dataclass(frozen=True)
class Distillation(Strategy):
    """LwF in the paper's form: `LearningWithoutForgetting` with the network of every finished stage.

    Args:
        weight: of the sum over the earlier networks.
        temperature: tau.
        reduction: "mean", or "batchmean" as one published framework codes it.
    """

    name: ClassVar[str] = "lwf"
    weight: float = 1.0
    temperature: float = 2.0
    reduction: str = "mean"

    def regularizers(self) -> list[Regularizer]:
        """An empty memory."""
        return [LearningWithoutForgetting(self.weight, self.temperature, self.reduction)]

    def remember(self, regularizers: list[Regularizer], run: Run) -> None:
        """Add the stage's network."""
        for regularizer in regularizers:
            if isinstance(regularizer, LearningWithoutForgetting):
                regularizer.remember(unwrap(run.model))


def fisher_information(
    model: nn.Module, task: Any, objective: Objective, *, site: Any = None, images: int = 200, patch_size: Any = None
) -> dict[str, Tensor]:
    """Mean over at most `images` training images of the squared gradient of their labels' log-likelihood, by parameter.

    The log-likelihood of an image is the mean over its voxels, so that lambda does not depend on the patch. The
    network is in evaluation mode, images are not augmented; nothing about the network changes.
    """
    loader = task.loader("train", site=site, batch_size=1, patch_size=patch_size, augmentation="none")
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in _trained(model).items()}
    device = next(iter(total.values())).device
    count = min(images, len(loader))
    with untouched(model, mode="eval"), torch.enable_grad():
        for step in range(count):
            batch = loader.batch(step)
            logits = objective.logits(model(batch["image"].to(device))).float()
            loss = nn.functional.cross_entropy(logits, fitted_label(batch["label"].to(device), logits))
            for name, square in _squared_gradients(model, loss).items():
                if square is not None:
                    total[name] += square / count
    return total


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _squared_gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """By parameter; None where the loss does not depend on it."""
    parameters = _trained(model)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    squares = (None if gradient is None else gradient.detach().float().square() for gradient in gradients)
    return dict(zip(parameters, squares, strict=True))


def last_batch_fisher(run: Run) -> dict[str, Tensor]:
    """Squared gradient of the objective on the last batch of a run, by parameter; 1 where there is no gradient.

    So the EWC trainer of Lifelong-nnU-Net is coded, which zeroes gradients every batch and keeps the last ones. Left
    out are its loss scale and the EWC term in that loss. The network is in evaluation mode and stays as it is.
    """
    network, config = unwrap(run.model), run.config
    settings = {"batch_size": config.batch_size, "patch_size": config.patch_size, "seed": config.seed}
    loader, parameters = run.task.loader("train", site=run.site, **settings), _trained(network)
    device = next(iter(parameters.values())).device
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in loader.batch(config.steps - 1).items()}
    with untouched(network, mode="eval"), torch.enable_grad():
        outputs = run.objective.forward_pass(network, batch, keyed_generator(config.seed, config.steps - 1, "fisher"))
        loss = torch.stack(list(run.objective(outputs, batch).values())).sum()
        squares = _squared_gradients(network, loss)
    return {name: torch.ones_like(parameters[name]) if one is None else one for name, one in squares.items()}
