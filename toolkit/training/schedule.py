"""Learning-rate schedules as functions of the step alone, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from typing import Any

from toolkit.errors import ConfigError
from toolkit.training.config import TrainConfig

WARM_UP_FRACTION = 0.3  # of one_cycle
START_DIVISOR = 25.0  # one_cycle starts at learning_rate / 25
END_DIVISOR = 1e4  # and ends at its start / 1e4
POWER = 0.9  # of polynomial


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` steps already taken.

    `one_cycle` has the shape of Smith and Topin (2018) with cosine flanks and constant momentum; `polynomial` falls
    as (1 - step/steps)^0.9, and `polynomial_delayed` does so one step later, so that the first two steps share the
    highest rate (as SelfReg-UNet's authors ran it); `cosine` falls to 0 over half a period. A callable gives the factor.

    Raises:
        ConfigError: a factor of the user's own that is no number of at least 0.
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
    return _one_cycle(highest, step, config.steps)


def _checked_factor(factor: Any, step: int) -> float:
    try:
        value = float(factor)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(
            f"The schedule gave {factor!r} after step {step}.",
            where="TrainConfig(schedule=...)",
            fix="Return the factor on learning_rate, a number of at least 0.",
        )
    return value


def _one_cycle(highest: float, step: int, steps: int) -> float:
    lowest = highest / START_DIVISOR
    peak, last = WARM_UP_FRACTION * steps - 1, steps - 1
    if step <= peak:
        return _cosine(lowest, highest, step / peak if peak else 1.0)
    return _cosine(highest, lowest / END_DIVISOR, (step - peak) / (last - peak) if last > peak else 1.0)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
