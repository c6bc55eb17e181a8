"""One optimizer with named parameter groups for everything that a training step can learn, and its learning rate.

Schedules are functions of the step alone, so that a resumed run needs no schedule state.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from toolkit.errors import ConfigError
from toolkit.training.config import TrainConfig
from toolkit.training.engine import resolve_device
from toolkit.training.step import TrainingStep

_RATE_SCALE = "learning_rate_scale"
WARM_UP_FRACTION = 0.3  # of one_cycle
START_DIVISOR = 25.0  # one_cycle starts at learning_rate / 25
END_DIVISOR = 1e4  # and ends at its start / 1e4
POWER = 0.9  # of polynomial


def parameter_groups(step: TrainingStep) -> list[dict[str, Any]]:
    """Named groups of trainable parameters: the network's own, then the objective's if it learns.

    A network may split itself with a method `parameter_groups()` that returns dictionaries with `name`, `params`
    and optionally `weight_decay` or `learning_rate_scale`; else it is one group called "network".
    """
    network = step.model
    own = getattr(network, "parameter_groups", None)
    default: list[dict[str, Any]] = [{"name": "network", "params": list(network.parameters())}]
    groups = [dict(group) for group in own()] if callable(own) else default
    if isinstance(step.objective, nn.Module):
        groups.append({"name": "objective", "params": list(step.objective.parameters())})
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    groups = [group for group in groups if group["params"]]
    grouped = [p for group in groups for p in group["params"]]
    if not grouped:
        raise ConfigError("The network has no parameter that requires a gradient.", fix="Unfreeze some of it.")
    if len({id(p) for p in grouped}) < len(grouped):
        raise ConfigError("A parameter is in two groups.", where="parameter_groups()")
    missing = {id(p) for p in step.parameters() if p.requires_grad} - {id(p) for p in grouped}
    if missing:
        fix = "Return every parameter once, or freeze those that should not learn."
        raise ConfigError(f"{len(missing)} trainable parameters are in no group.", where="parameter_groups()", fix=fix)
    return groups


def build_optimizer(step: TrainingStep, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer over `parameter_groups(step)`."""
    # One kernel for all parameters; not with a loss scale, which a fused step would have to undo before the clipping.
    fused = (resolve_device(config).type == "cuda" and config.precision != "16") or None
    groups: Any = with_rate_factors(parameter_groups(step), step.model, config)
    options: dict[str, Any] = {"lr": learning_rate(config, 0), "weight_decay": config.weight_decay, "fused": fused}
    if callable(config.optimizer):
        optimizer, given = config.optimizer(groups), {id(p) for group in groups for p in group["params"]}
        own = {id(p) for group in getattr(optimizer, "param_groups", []) for p in group["params"]}
        if isinstance(optimizer, torch.optim.Optimizer) and own == given:
            return optimizer
        what = f"The optimizer's factory returned {type(optimizer).__name__}, not an optimizer of the given parameters."
        fix = "Return torch.optim.SGD(parameter_groups, ...) or another torch.optim.Optimizer of all of them."
        raise ConfigError(what, where="TrainConfig(optimizer=...)", fix=fix)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0, **options)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, betas=config.betas, **options)


def with_rate_factors(groups: list[dict[str, Any]], model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The groups, each split by the first pattern of `config.rate_factors` that a parameter's name matches.

    A factor multiplies the scale that a group has of its own. The name of a split group tells the pattern.
    """
    factors: dict[str, float] = dict(config.rate_factors)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {
        key: next((pattern for pattern in factors if fnmatchcase(name, pattern)), None) for key, name in names.items()
    }
    for pattern in factors:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            fix = f"Names begin with {', '.join(sorted({name.split('.')[0] for name in names.values()}))}."
            raise ConfigError(f"No parameter matches {pattern!r}.", where="TrainConfig(rate_factors=...)", fix=fix)
    split = []
    for group in groups:
        rest = [p for p in group["params"] if chosen.get(id(p)) is None]
        split += [{**group, "params": rest}] if rest else []
        for pattern, factor in factors.items():
            params = [p for p in group["params"] if chosen.get(id(p)) == pattern]
            if params:
                scale = group.get(_RATE_SCALE, 1.0) * factor
                split.append({**group, "params": params, "name": f"{group['name']}: {pattern}", _RATE_SCALE: scale})
    return split


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate`, times its own `learning_rate_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_RATE_SCALE, 1.0)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` steps already taken.

    `one_cycle` has the shape of Smith and Topin (2018) with cosine flanks and constant momentum; `polynomial` falls
    as (1 - step/steps)^0.9, and `polynomial_delayed` does so one step later, so that the first two steps share the
    highest rate (as SelfReg-UNet's authors ran it); `cosine` falls to 0 over half a period. A callable gives the factor.
    """
    highest = config.learning_rate
    if callable(config.schedule):
        return highest * _checked_factor(config.schedule(step, config.steps), step)
    if config.schedule == "constant":
        return highest
    if config.schedule == "polynomial":
        return highest * (1 - step / config.steps) ** POWER
    if config.schedule == "polynomial_delayed":
        return highest * (1 - max(step - 1, 0) / config.steps) ** POWER
    if config.schedule == "cosine":
        return _cosine(highest, 0.0, step / config.steps)
    lowest, peak, last = highest / START_DIVISOR, WARM_UP_FRACTION * config.steps - 1, config.steps - 1
    if step <= peak:
        return _cosine(lowest, highest, step / peak if peak else 1.0)
    return _cosine(highest, lowest / END_DIVISOR, (step - peak) / (last - peak) if last > peak else 1.0)


def _checked_factor(factor: Any, step: int) -> float:
    try:
        value = float(factor)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        what = f"The schedule gave {factor!r} after step {step}."
        fix = "Return the factor on learning_rate, a number of at least 0."
        raise ConfigError(what, where="TrainConfig(schedule=...)", fix=fix)
    return value


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
