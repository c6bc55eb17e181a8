"""Whether each regularizer does anything: its gradient compared with the objective's, with a warning if it is off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from toolkit.errors import ProtocolError, RegularizerWarning
from toolkit.measure.regularizer_health import status as status_of
from toolkit.training.protocol import Regularizer

ADVICE = {
    "dead": "its gradient does not reach the tapped layers; check its taps, or raise its weight",
    "dominant": "it outweighs the objective; lower its weight unless that is meant",
}
PATIENCE = 3  # logged steps in a row before anyone is warned: the first steps of a run are no evidence


def gradient_ratio(regularizer: float, objective: float) -> float:
    """sqrt(regularizer) / sqrt(objective) of two squared gradient norms; NaN if both are 0."""
    if objective > 0:
        return math.sqrt(regularizer) / math.sqrt(objective)
    return math.inf if regularizer > 0 else math.nan


def check_gradient(regularizer: Regularizer, features: Mapping[str, Tensor], loss: Tensor) -> None:
    """Look at a regularizer's first active step: does its loss reach anything that learns?"""
    if not torch.is_grad_enabled():
        return
    without = [] if regularizer.deferred else [name for name, tensor in features.items() if not tensor.requires_grad]
    if without and len(without) == len(features) and not loss.requires_grad:
        what = f"The regularizer {regularizer.name!r} has no gradient: none of the layers it reads has one."
        fix = "They lie in a frozen part, or inside a reentrant checkpoint (use_reentrant=False keeps the gradient). "
        fix += "Read a layer that learns, or take the regularizer out."
        raise ProtocolError(what, where=", ".join(without), fix=fix)
    if not loss.requires_grad:
        text = f"The regularizer {regularizer.name!r} adds no gradient in its first step: its loss is a constant there."
    elif without:
        text = f"The regularizer {regularizer.name!r} reads layers without gradient: {', '.join(without)}."
    else:
        return
    warnings.warn(text, RegularizerWarning, stacklevel=2)


class GradientMonitor:
    """Counts how long each regularizer has been dead or dominant and warns once for each of the two."""

    def __init__(self) -> None:
        self._streak: dict[str, tuple[str, int]] = {}
        self._warned: set[tuple[str, str]] = set()

    def observe(self, ratios: Mapping[str, float], step: int) -> dict[str, str]:
        """Status of every regularizer at this logged step."""
        statuses = {name: status_of(ratio) for name, ratio in ratios.items()}
        for name, status in statuses.items():
            before, count = self._streak.get(name, ("", 0))
            self._streak[name] = (status, count + 1 if status == before else 1)
            if status not in ADVICE or self._streak[name][1] != PATIENCE or (name, status) in self._warned:
                continue
            self._warned.add((name, status))
            what = f"The regularizer {name!r} is {status} at step {step}: its gradient is {ratios[name]:.3g} times"
            warnings.warn(f"{what} the objective's ({ADVICE[status]}).", RegularizerWarning, stacklevel=2)
        return statuses
