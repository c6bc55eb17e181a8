"""EWC and LwF: regularizers that remember earlier tasks, and the strategies of a sequence that teach them after a stage.

The regularizers start empty, and are then skipped like a weight of 0; what they keep is stored in every checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.errors import CheckpointError, ConfigError, choose
from toolkit.features.logits import find_logits
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.inference.memory import defaults_of
from toolkit.process_state import guarded_random_state
from toolkit.registry import register
from toolkit.training.protocol import Objective, Regularizer, StepContext, keyed_generator
from toolkit.training.run import Run
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import prepared
from toolkit.training.strategies import Strategy
from toolkit.training.train import training_loader


@register("regularizer", "elastic_weights")
@dataclasses.dataclass(frozen=True)
class ElasticWeights(Regularizer):
    """EWC (Kirkpatrick et al. 2017): 1/2 sum over earlier tasks k and parameters i of F_i^k (theta_i - theta_i^k)^2.

    Term: `penalty`. The sum over the tasks is kept as one quadratic (its curvature, its minimum and its value there),
    so the memory does not grow with the number of tasks. A parameter that was not there before is free.

    Args:
        weight: lambda. It scales with the Fisher information that is handed over.
    """

    name: ClassVar[str] = "elastic_weights"

    weight: float = 0.4
    _kept: dict[str, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def weights(self, step: int) -> dict[str, float]:
        """The weight; 0 before the first task has ended."""
        return {"penalty": self.weight if self._kept else 0.0}

    def remember(self, model: nn.Module, fisher: Mapping[str, Tensor]) -> None:
        """Add a task: the network after it, and the Fisher information of its parameters by name."""
        for name, parameter in model.named_parameters():
            if name not in fisher:
                continue
            anchor, curvature = parameter.detach().cpu().double(), fisher[name].detach().cpu().double()
            before, centre, base = torch.zeros_like(curvature), anchor, torch.zeros((), dtype=torch.float64)
            if f"curvature/{name}" in self._kept:
                parts = [self._kept[f"{part}/{name}"].cpu().double() for part in ("curvature", "centre", "base")]
                before, centre, base = parts
            total = before + curvature
            # a (x - m)^2 + f (x - t)^2 = (a + f) (x - c)^2 + a f / (a + f) (m - t)^2
            share = torch.where(total > 0, curvature / total, torch.zeros_like(total))
            self._kept[f"curvature/{name}"] = total.float()
            self._kept[f"base/{name}"] = base + (before * share * (centre - anchor).square()).sum()
            self._kept[f"centre/{name}"] = (centre + share * (anchor - centre)).float()

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """The penalty at the present weights."""
        total = torch.zeros((), device=context.batch["image"].device)
        for name, parameter in context.model.named_parameters():
            if f"curvature/{name}" in self._kept:
                parts = [f"{part}/{name}" for part in ("curvature", "centre", "base")]
                self._kept.update({part: self._kept[part].to(parameter.device) for part in parts})  # moved once
                curvature, centre, base = (self._kept[part] for part in parts)
                total = total + (curvature * (parameter.float() - centre).square()).sum() + base.to(total)
        return {"penalty": total / 2}

    def gradient_probes(self, context: StepContext) -> Sequence[Tensor]:
        """The parameters: there is no tap."""
        return [p for p in context.model.parameters() if p.requires_grad]


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 2.0, reduction: str = "mean") -> Tensor:
    """KL(softmax(teacher / tau) || softmax(logits / tau)) over the classes of (B, K, *S) logits.

    Args:
        logits: of the network that learns.
        teacher: of an earlier one, with as many classes.
        temperature: tau; there is no factor tau^2, as in Li and Hoiem 2016.
        reduction: "mean" over images and voxels, or "batchmean": summed over voxels, so that the weight grows with the
            patch, as one published segmentation framework does.
    """
    choose("reduction", reduction, ("mean", "batchmean"), where="distillation")
    if logits.shape != teacher.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(teacher.shape)}"
        raise ConfigError(f"The logits must have one shape, not {shapes}.", where="distillation")
    now = (logits / temperature).log_softmax(1)
    then = (teacher / temperature).log_softmax(1)
    divergence = (then.exp() * (then - now)).sum(1)
    return divergence.sum() / len(logits) if reduction == "batchmean" else divergence.mean()


@register("regularizer", "learning_without_forgetting")
@dataclasses.dataclass(frozen=True)
class LearningWithoutForgetting(Regularizer):
    """LwF (Li and Hoiem 2016): the outputs of the networks of earlier tasks, on the present images, are kept.

    Term: `distillation`, the sum of `distillation(...)` over the earlier networks; one extra pass without gradient for
    each. With constant classes one shared head serves all tasks; of a sigmoid every output has two classes. Works
    where the objective's pass gives logits.

    Args:
        weight: factor on the sum.
        temperature: tau.
        reduction: of `distillation`.
    """

    name: ClassVar[str] = "learning_without_forgetting"

    weight: float = 1.0
    temperature: float = 2.0
    reduction: str = "mean"
    _memory: list[dict[str, Tensor]] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)
    _teachers: list[nn.Module] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        choose("reduction", self.reduction, ("mean", "batchmean"), where="LearningWithoutForgetting")

    def weights(self, step: int) -> dict[str, float]:
        """The weight; 0 before the first task has ended."""
        return {"distillation": self.weight if self._memory else 0.0}

    def remember(self, model: nn.Module) -> None:
        """Add a task: the network after it."""
        self._memory.append({k: v.detach().cpu().clone() for k, v in model.state_dict().items()})

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """The sum over the earlier networks."""
        image = context.batch["image"]

        def classes(outputs: Any) -> Tensor:
            z = find_logits(outputs, image).float()
            own = z.shape[1] == 1 or defaults_of(context.model).activation == "sigmoid"
            return torch.stack((torch.zeros_like(z), z), 1) if own else z

        for weights in self._memory[len(self._teachers) :]:
            teacher = copy.deepcopy(context.model).requires_grad_(False).eval()
            teacher.load_state_dict(weights)
            self._teachers.append(teacher)
        terms, now = [], classes(context.outputs)
        for teacher in self._teachers:
            with torch.no_grad(), guarded_random_state():  # a copy of our own: nothing of it is given back
                then = classes(teacher(image))
            terms.append(distillation(now, then, self.temperature, self.reduction))
        return {"distillation": torch.stack(terms).sum()}

    def gradient_probes(self, context: StepContext) -> Sequence[Tensor]:
        """The logits: there is no tap."""
        return [find_logits(context.outputs, context.batch["image"])]

    def state_dict(self) -> dict[str, Any]:
        """The weights of the earlier networks."""
        return {f"{k}/{name}": v for k, weights in enumerate(self._memory) for name, v in weights.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            CheckpointError: names that this class does not write.
        """
        self._memory.clear()
        self._teachers.clear()
        for name, value in state.items():
            index, _, key = name.partition("/")
            if not index.isdigit() or int(index) > len(self._memory):
                raise CheckpointError("The stored state is not one of LearningWithoutForgetting.", where=name)
            if int(index) == len(self._memory):
                self._memory.append({})
            self._memory[int(index)][key] = value


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
            place = {"site": run.site, "patch_size": run.config.patch_size}
            fisher = fisher_information(network, run.task, run.objective, images=self.images, **place)
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

    The log-likelihood is the mean over voxels (and regions), without those of the objective's `ignore_label`, so that
    lambda does not depend on the patch. Evaluation mode, no augmentation; nothing about the network changes.
    """
    loader = task.loader("train", site=site, batch_size=1, patch_size=patch_size, augmentation="none")
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in _trained(model).items()}
    count = min(images, len(loader))
    likelihood = SegmentationObjective(dice=0.0, ignore_label=getattr(objective, "ignore_label", None))
    with untouched(model, mode="eval"), torch.enable_grad():
        for step in range(count):
            batch = _prepared(model, loader.batch(step))
            loss = likelihood(objective.logits(model(batch["image"])).float(), batch)["cross_entropy"]
            for name, square in _squared_gradients(model, loss).items():
                if square is not None:
                    total[name] += square / count
    return total


def _prepared(model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    device = next(model.parameters()).device
    return prepared(model, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})


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
    loader, parameters = training_loader(run.task, config, run.site), _trained(network)
    batch = _prepared(network, loader.batch(config.steps - 1))
    with untouched(network, mode="eval"), torch.enable_grad():
        outputs = run.objective.forward_pass(network, batch, keyed_generator(config.seed, config.steps - 1, "fisher"))
        squares = _squared_gradients(network, torch.stack(list(run.objective(outputs, batch).values())).sum())
    return {name: torch.ones_like(parameters[name]) if one is None else one for name, one in squares.items()}
