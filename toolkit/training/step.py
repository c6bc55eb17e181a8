"""One training step as one module: the network, the objective and the regularizers behind `forward`.

Fabric wraps this module and nothing else, so every pass that a regularizer makes through the raw network happens
inside the wrapped call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ProtocolError
from toolkit.features.capture import Tape, capture
from toolkit.features.modules import own_precision
from toolkit.features.names import stages
from toolkit.features.provenance import mark_trained_with
from toolkit.inference.activation import Activation
from toolkit.inference.memory import defaults_of
from toolkit.training.health import check_gradient
from toolkit.training.protocol import Loss, Objective, Regularizer, StepContext, keyed_generator
from toolkit.training.segmentation import WAITING, as_objective


@dataclasses.dataclass
class PartialLoss:
    """One part of a step: its total to back-propagate and its named terms for the history."""

    total: Tensor | None  # differentiable scalar (weighted sum), or None if this part had nothing to add
    terms: dict[str, Tensor]  # detached, unweighted values by `owner/term`
    # the weight each regularizer term, and the objective where it has one, was multiplied with
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    # squared gradient norms at the probes, by owner (logging steps only)
    gradients: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class TrainingStep(nn.Module):
    """Network + objective + regularizers; `forward(batch, part, step, ...)` returns one `PartialLoss`.

    Part 0 is the objective and every regularizer that shares its graph. Each deferred regularizer is one further
    part, computed from detached features after part 0 has been back-propagated.

    Args:
        model: the raw network; the user's object, not copied.
        objective: makes the forward pass and the supervised terms.
        regularizers: added to the objective with their own weights.
        seed: base seed of the generators handed out.
        aliases: overrides of layer aliases, for example {"head_input": "final:input"}.

    Raises:
        ProtocolError: the network lacks a method that the objective or a regularizer requires.

    Example:
        >>> step = tk.TrainingStep(model, tk.SegmentationObjective(), [tk.SegReg()])
        >>> partial = step(task.loader("train", batch_size=2).batch(0), 0, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | Loss,
        regularizers: Sequence[Regularizer] = (),
        *,
        seed: int = 0,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = as_objective(objective)
        self.regularizers = tuple(regularizers)
        self.seed = seed
        self.aliases = dict(aliases or {})
        self.probe_seconds = 0.0  # spent on gradient ratios since the loop last set it to 0
        self._context: StepContext | None = None
        self._tape: Tape | None = None
        self._taps_of: dict[str, tuple[str, ...]] = {}
        self._seen: set[str] = set()  # regularizers whose first active step was checked
        require_methods(model, self.objective.requires, self.objective.name)
        for regularizer in self.regularizers:
            require_methods(model, regularizer.requires, regularizer.name)
        mark_trained_with(model, [regularizer.name for regularizer in self.regularizers])

    def parts(self, step: int) -> int:
        """Number of parts this step has: 1, plus one for every active deferred regularizer."""
        return 1 + len(self._deferred(step))

    def forward(
        self, batch: Mapping[str, Any], part: int = 0, step: int = 0, logging: bool = False, stage: int = 0
    ) -> PartialLoss:
        """Compute one part; parts must be asked for in order, each back-propagated before the next."""
        if part == 0:
            return copy_context().run(self._first_part, batch, step, logging, stage)  # which sets WAITING
        if self._context is None or self._tape is None:
            raise ProtocolError("A deferred part was asked for before part 0 of the same step.")
        deferred = self._deferred(step)
        result, regularizer = PartialLoss(total=None, terms={}), deferred[part - 1]
        self.add(result, regularizer, self.context_for(regularizer, self._context, self._tape))
        if regularizer is deferred[-1]:
            self._context = self._tape = None
        return result

    def _deferred(self, step: int) -> list[Regularizer]:
        return [r for r in self.regularizers if r.deferred and r.active(step)]

    def wanted(self, regularizer: Regularizer, image: Tensor | None = None) -> tuple[str, ...]:
        """The regularizer's taps on this network; one that looks at the network sees a pass on an image (B, C, *S)."""
        if regularizer.name not in self._taps_of:
            if image is not None and type(regularizer).taps_on is not Regularizer.taps_on:
                stages(self.model, image[:1])  # remembered with the network
            self._taps_of[regularizer.name] = tuple(regularizer.taps_on(self.model))
        return self._taps_of[regularizer.name]

    def layers(self, channels: int, size: Sequence[int] | None) -> dict[str, list[str]]:
        """What each regularizer taps on an image of the training's size; empty where that size is not known."""
        if not self.regularizers or size is None:
            return {}
        image = torch.zeros(1, channels, *size, device=next(self.model.parameters()).device)
        return {regularizer.name: list(self.wanted(regularizer, image)) for regularizer in self.regularizers}

    def _first_part(self, batch: Mapping[str, Any], step: int, logging: bool, stage: int) -> PartialLoss:
        WAITING.set(logging)
        active = [r for r in self.regularizers if r.active(step)]
        wanted = tuple(dict.fromkeys(tap for r in active for tap in self.wanted(r, batch.get("image"))))
        generator = keyed_generator(self.seed, step, self.objective.name)
        batch = prepared(self.model, batch)
        with capture(self.model, wanted, aliases=self.aliases) as tape:
            outputs = self.objective.forward_pass(self.model, batch, generator)
        context = StepContext(batch=batch, model=self.model, outputs=outputs, step=step, logging=logging, stage=stage)
        objective_terms = self.objective(outputs, batch)
        objective = torch.stack([term.float() for term in objective_terms.values()]).sum()
        scale = math.prod(regularizer.objective_weight(step) for regularizer in active)
        result = PartialLoss(
            total=objective * scale if scale != 1.0 else objective,
            terms={f"{self.objective.name}/{name}": value.detach() for name, value in objective_terms.items()},
        )
        if scale != 1.0:
            result.weights[self.objective.name] = scale
        for regularizer in active:
            if not regularizer.deferred:
                self.add(result, regularizer, self.context_for(regularizer, context, tape))
        if logging:
            for regularizer in active:
                probes = regularizer.gradient_probes(self.context_for(regularizer, context, tape))
                result.gradients[f"{self.objective.name}@{regularizer.name}"] = self._probe(objective * scale, probes)
        if any(r.deferred for r in active):
            self._context, self._tape = dataclasses.replace(context, outputs=None), tape.detached()
        return result

    def context_for(self, regularizer: Regularizer, context: StepContext, tape: Tape) -> StepContext:
        """The context with the regularizer's own features and generator."""
        features = {name: tensor for tap in self.wanted(regularizer) for name, tensor in tape.matching(tap).items()}
        generator = keyed_generator(self.seed, context.step, regularizer.name)
        return dataclasses.replace(context, features=features, generator=generator)

    def add(self, result: PartialLoss, regularizer: Regularizer, context: StepContext) -> tuple[Tensor, Any]:
        """Add the regularizer's weighted terms to `result`; returns their sum and where its gradient is compared.

        Raises:
            ProtocolError: a term without weight, or no layer that it reads can ever have a gradient.

        Warns:
            RegularizerWarning: it has no gradient in the first step in which it is active.
        """
        # feature losses run in full precision; a deferred one makes network passes and keeps autocast
        full = torch.autocast(context.batch["image"].device.type, enabled=False)
        with contextlib.nullcontext() if regularizer.deferred else full:
            terms = regularizer(context)
        weights = regularizer.weights(context.step)
        if terms.keys() - weights.keys():
            what = f"Regularizer {regularizer.name!r} returns the terms {list(terms)}, weights() names {list(weights)}."
            raise ProtocolError(what, where=type(regularizer).__name__, fix="Use the same names in both.")
        addition = torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()
        if regularizer.name not in self._seen:
            self._seen.add(regularizer.name)
            check_gradient(regularizer, context.features, addition)
        result.total = addition if result.total is None else result.total + addition
        result.terms |= {f"{regularizer.name}/{name}": term.detach() for name, term in terms.items()}
        result.weights |= {f"{regularizer.name}/{name}": weights[name] for name in terms}
        probes = regularizer.gradient_probes(context)
        if context.logging:
            result.gradients[regularizer.name] = self._probe(addition, probes)
        return addition, probes

    def _probe(self, loss: Tensor, probes: Sequence[Tensor]) -> Tensor:
        started = _clock(loss.device)
        squared = squared_norm(loss, probes)
        self.probe_seconds += _clock(loss.device) - started
        return squared


def prepared(model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The image in the network's own precision, and the masks of the task's regions as `regions`, if it has any."""
    own = own_precision(model)
    if own != torch.float32:
        batch = {**batch, "image": batch["image"].to(own)}
    regions = defaults_of(model).regions
    return {**batch, "regions": Activation(None, regions).targets(batch["label"])} if regions else batch


def require_methods(model: nn.Module, methods: Sequence[str], owner: str) -> None:
    """Check a structural need."""
    missing = [name for name in methods if not callable(getattr(model, name, None))]
    if missing:
        offered = [name for name in methods if name not in missing]
        public = [n for n in dir(type(model)) if not n.startswith("_") and n not in dir(nn.Module)]
        what = f"{owner!r} needs {', '.join(methods)} of a network; {type(model).__name__} lacks {', '.join(missing)}."
        where = f"offered: {', '.join(offered) or 'none of them'}; its own public names: {', '.join(public) or 'none'}"
        fix = "Use toolkit.fast_slow_network(...), or give your network these methods."
        raise ProtocolError(what, where=where, fix=fix)


def squared_norm(loss: Tensor, probes: Sequence[Tensor]) -> Tensor:
    """Squared norm of the gradient of a loss at some tensors; 0 where it does not reach them."""
    tracked = [probe for probe in probes if probe.requires_grad]
    if not tracked or not loss.requires_grad:
        return loss.new_zeros(())
    gradients = torch.autograd.grad(loss, tracked, retain_graph=True, allow_unused=True)
    return sum((g.float().pow(2).sum() for g in gradients if g is not None), loss.new_zeros(()))


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
