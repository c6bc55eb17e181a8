"""The arms of a study: what each one trains, checked, with first weights that all arms of one network share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.errors import ConfigError
from toolkit.features.modules import unwrap
from toolkit.files import sha256
from toolkit.models.load import tensors_of, weights_bytes
from toolkit.process_state import seeded
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import Loss, Objective, Regularizer, as_regularizers
from toolkit.training.segmentation import as_objective
from toolkit.training.serialization import describe

Factory = Callable[[], nn.Module]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method of a study; what it leaves out is that of the study.

    Attributes:
        model: function that builds its network; called under each seed.
        objective: its supervised part.
        regularizer: one, several or none.
        config: training settings that differ from the study's, by name; the seed is always the study's.

    Example:
        >>> arm = tk.Arm(lambda: tk.unet(1, 4, norm="batch"), regularizer=tk.SegReg(), config={"learning_rate": 1e-3})
    """

    model: Factory | None = None
    objective: Objective | Loss | None = None
    regularizer: Regularizer | Sequence[Regularizer] | None = None
    config: Mapping[str, Any] | None = None

    @property
    def regularizers(self) -> list[Regularizer]:
        """The regularizers as a list."""
        return as_regularizers(self.regularizer)

    def describe(self) -> dict[str, Any]:
        """What the study's record holds of it."""
        return {
            "objective": None if self.objective is None else describe("objective", as_objective(self.objective)),
            "regularizers": [describe("regularizer", each) for each in self.regularizers],
            "config": dict(self.config or {}),
        }


def checked_arms(
    arms: Mapping[str, Arm | Regularizer | Sequence[Regularizer] | None], model: Factory | None, config: TrainConfig
) -> dict[str, Arm]:
    """Every arm as an `Arm` with a network."""
    chosen = {
        str(name): value if isinstance(value, Arm) else Arm(regularizer=as_regularizers(value))
        for name, value in arms.items()
    }
    folders = [folder(name) for name in chosen]
    if not chosen or len(set(folders)) < len(folders):
        raise ConfigError(f"A study needs arms with different names, not {list(chosen)}.", where="compare")
    for name, arm in chosen.items():
        config.replace(**dict(arm.config or {}))
        if arm.model is None and model is None:
            fix = "Pass model=lambda: toolkit.unet(1, 4) for all arms, or Arm(model=...) for this one."
            raise ConfigError(f"The arm {name!r} has no network.", where="compare(model=...)", fix=fix)
    return chosen


def baseline_of(arms: Mapping[str, Arm], baseline: str | None) -> str:
    """The arm that the others are compared with: the one asked for, else the first plain one, else the first."""
    if baseline is not None and baseline not in arms:
        raise ConfigError(f"There is no arm {baseline!r}.", fix=f"Arms: {', '.join(arms)}.")
    plain = [name for name, arm in arms.items() if not arm.regularizers]
    plainest = [name for name in plain if arms[name].model is None and arms[name].objective is None]
    return baseline if baseline is not None else (plainest or plain or list(arms))[0]


def first_networks(
    arms: Mapping[str, Arm], model: Factory | None, seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], nn.Module], dict[str, str]]:
    """The network of every arm and seed before training, and hashes of their weights for the record.

    Arms without a network of their own share one object a seed; whoever trains it copies it.
    """
    shared = {seed: _network(model, seed) for seed in seeds} if model is not None else {}
    digests = {str(seed): _digest(network) for seed, network in shared.items()}
    networks = {}
    for name, arm in arms.items():
        for seed in seeds:
            networks[name, seed] = shared[seed] if arm.model is None else _network(arm.model, seed)
            if arm.model is not None:
                digests[f"{name}/{seed}"] = _digest(networks[name, seed])
    return networks, digests


def folder(arm: str) -> str:
    """Name of an arm's folder."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", arm).strip(".") or "arm"


def _network(model: Factory, seed: int) -> nn.Module:
    """The factory's network under a seed."""
    if isinstance(model, nn.Module):
        what = "compare needs a function that builds a network: every arm starts from new weights."
        fix = "Pass model=lambda: toolkit.unet(1, 4), or a function that builds your own network."
        raise ConfigError(what, where="compare(model=...)", fix=fix)
    built = []
    for _ in range(2):
        with seeded(seed):
            built.append(model())
    first, second = (unwrap(network) for network in built)
    if first is second or _digest(first) != _digest(second):
        what = "The model factory gives another network each time, or the same object again."
        fix = "Build a new network inside it: model=lambda: toolkit.unet(1, 4)."
        raise ConfigError(what, where="compare(model=...)", fix=fix)
    return first


def _digest(model: nn.Module) -> str:
    return sha256(weights_bytes(tensors_of(model)))
