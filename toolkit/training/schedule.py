"""Learning-rate schedules as functions of the step alone, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from toolkit.training.config import TrainConfig

WARM_UP_FRACTION = 0.3  # of one_cycle
START_DIVISOR = 25.0  # one_cycle starts at learning_rate / 25
END_DIVISOR = 1e4  # and ends at its start / 1e4
POWER = 0.9  # of polynomial


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` steps already taken.

    `one_cycle` has the shape of Smith and Topin (2018) with cosine flanks and constant momentum; `polynomial` falls
    as (1 - step/steps)^0.9, and `polynomial_delayed` does so one step later, so that the first two steps share the
    highest rate (as SelfReg-UNet's authors ran it); `cosine` falls to 0 over half a period.
    """
    highest = config.learning_rate
    if config.schedule == "constant":
        return highest
    if config.schedule == "polynomial":
        return highest * (1 - step / config.steps) ** POWER
    if config.schedule == "polynomial_delayed":
        return highest * (1 - max(step - 1, 0) / config.steps) ** POWER
    if config.schedule == "cosine":
        return _cosine(highest, 0.0, step / config.steps)
    return _one_cycle(highest, step, config.steps)


def _one_cycle(highest: float, step: int, steps: int) -> float:
    lowest = highest / START_DIVISOR
    peak, last = WARM_UP_FRACTION * steps - 1, steps - 1
    if step <= peak:
        return _cosine(lowest, highest, step / peak if peak else 1.0)
    return _cosine(highest, lowest / END_DIVISOR, (step - peak) / (last - peak) if last > peak else 1.0)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
