"""`TrainConfig(compile=True)`: where it would do nothing it is refused, elsewhere the network is compiled for the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from toolkit.errors import ConfigError
from toolkit.training.config import TrainConfig
from toolkit.training.step import TrainingStep


def check_compile(step: TrainingStep, config: TrainConfig) -> None:
    """Refuse to compile a network whose passes are not whole calls without hooks.

    Raises:
        ConfigError: a regularizer taps layers, or something calls parts of the network.
    """
    if not config.compile:
        return
    tapping = [r.name for r in step.regularizers if r.taps_on(step.model)]
    partly = [part.name for part in step.regularizers if part.requires]
    partly += [step.objective.name] if step.objective.requires else []
    if tapping or partly:
        reason = "taps layers, and compiled passes call no hooks" if tapping else "calls parts of the network by name"
        raise ConfigError(
            f"The network cannot be compiled here: {', '.join(tapping or partly)} {reason}.",
            where="TrainConfig(compile=True)",
            fix="Train with compile=False, or compile blocks that hold no tapped layer: model.encoder['1'].compile().",
        )


@contextlib.contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """The network's calls compiled inside the block, its own way of being called given back after it."""
    before = model._compiled_call_impl
    if wanted and before is None:
        model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = before
