"""One-off calibration: the weight at which a regularizer pulls with a given share of the objective's gradient."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from toolkit.errors import ConfigError, RegularizerWarning
from toolkit.features.modules import unwrap
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.optimizer import learning_rate
from toolkit.training.protocol import Loss, Objective, Regularizer
from toolkit.training.train import train

Calibrated = TypeVar("Calibrated", bound=Regularizer)


def calibrate(
    model: nn.Module,
    task: Any,
    regularizer: Calibrated,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    ratio: float = 0.1,
    steps: int = 20,
    skip: int | None = None,
    objective: Objective | Loss | None = None,
    aliases: Mapping[str, str] | None = None,
    site: str | Sequence[str] | None = None,
) -> Calibrated:
    """The regularizer with the weight at which its gradient at the taps is `ratio` times the objective's.

    A copy of the network trains with the weight that the regularizer brings, and the mean of the gradient ratios
    measured over `steps` steps rescales that weight. Do this once, before the first training; the weight then stays as
    it is for all later stages. The network, its gradients, the objective and the random state are as before.

    Args:
        model: the network about to be trained; not changed.
        task: data of the (first) training.
        regularizer: a dataclass with a field `weight` that is above 0.
        config: settings of that training; its schedule counts by the mean rate of its first steps.
        ratio: the wanted gradient ratio.
        steps: how many steps are measured.
        skip: steps before that; None = as long as the regularizer's warm-up.
        objective: supervised part; None = the default.
        aliases: layer names for aliases.
        site: train on this site or these.

    Raises:
        ConfigError: no weight to change, a ratio that is not positive, or a gradient that is 0 (a dead regularizer).

    Example:
        >>> regularizer = tk.calibrate(model, task, tk.SegReg(warm_up=0), config, ratio=0.1, steps=2)
    """
    weight = getattr(regularizer, "weight", None)
    if not dataclasses.is_dataclass(regularizer) or not isinstance(weight, (int, float)) or weight <= 0:
        what = f"{regularizer!r} has no weight above 0 to start from."
        fix = "Give a regularizer with one weight, for example SegReg(weight=0.1)."
        raise ConfigError(what, where="calibrate(regularizer=...)", fix=fix)
    if skip is None:
        skip = int(getattr(regularizer, "warm_up", 0) or getattr(regularizer, "warm_up_steps", 0))
    config = as_config(config)
    short = config.replace(steps=skip + steps, log_every=1, validate_every=0, checkpoint_every=0, select="last")
    if config.schedule != "constant":  # the first steps of the long schedule, not the short one squeezed
        rates = [learning_rate(config, step) for step in range(min(skip + steps, config.steps))]
        short = short.replace(schedule="constant", learning_rate=sum(rates) / len(rates))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RegularizerWarning)  # the weight it starts from may well be out of place
        parts = copy.deepcopy(unwrap(model)), task, copy.deepcopy(objective), copy.deepcopy(regularizer), short
        run = train(*parts, out=Path(folder) / "calibration", aliases=aliases, site=site, progress=False)
        measured = run.history[f"{regularizer.name}/gradient_ratio"].iloc[skip:].to_numpy(dtype=float)
    kept = [regularizer.objective_weight(step) for step in range(skip, skip + steps)]  # of the objective
    ramped = [next(iter(regularizer.weights(step).values())) / weight for step in range(skip, skip + steps)]
    mean = float((measured * kept / ramped).mean())
    if not (math.isfinite(mean) and mean > 0):
        what = f"The gradient of {regularizer.name!r} is {mean} times the objective's, so no weight gives {ratio}."
        raise ConfigError(what, where="calibrate", fix="Check its taps and settings.")
    wanted = float(weight) * ratio
    return dataclasses.replace(regularizer, weight=wanted / (mean + wanted * (kept[0] < 1)))
