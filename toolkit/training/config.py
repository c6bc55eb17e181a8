"""`TrainConfig`: every number that a training run depends on, checked once and stored with the run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from toolkit.arguments import checked_methods
from toolkit.errors import CheckpointError, ConfigError, choose
from toolkit.training.serialization import FACTORIES, Missing, check_same, factory_found, factory_record

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("32", "bf16", "16"),
    "optimizer": ("adamw", "adam", "sgd"),
    "schedule": ("one_cycle", "constant", "polynomial", "polynomial_delayed", "cosine"),
    "select": ("best", "last"),
}


@checked_methods
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; immutable, comparable, and stored in the run's `run.json`.

    Attributes:
        steps: optimizer steps.
        batch_size: images (2D) or volumes (3D) in a step, over all devices together.
        seed: key of the data order, the augmentation, the regularizers' draws and the network's dropout. The
            initial weights are the network's own: build it under a seed to repeat them.
        precision: "32", "bf16" or "16" (mixed; "16" scales the loss and needs CUDA).
        device: "auto" (CUDA if there is one, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        devices: processes or GPUs of one machine that share a step; more than one needs
            `torchrun --nproc-per-node` with the same number, or a script.
        checkpoint_every: steps between checkpoints; 0 = only the first and the last.
        keep_checkpoints: how many of the newest checkpoints stay on disk (the best one stays besides).
        optimizer: "adamw", "adam" or "sgd" (Nesterov), or a callable `optimizer(parameter_groups)` that returns a
            `torch.optim.Optimizer`, such as `torch.optim.NAdam` or a function of one's own. The schedule sets its rates.
        learning_rate: the highest rate of the schedule; what the factors of a schedule of one's own multiply.
        rate_factors: parts of the network that learn faster or slower: patterns of parameter names with the factor
            on the learning rate, for example {"encoder.*": 0.1}; 0 holds a part still. The first match counts.
        weight_decay: decoupled for adamw, L2 for the others.
        momentum: of sgd.
        betas: of adam and adamw.
        schedule: "one_cycle" (cosine up over the first 30 %, cosine down), "constant", "polynomial" (power 0.9),
            "polynomial_delayed" (the same one step late, as SelfReg-UNet ran it) or "cosine"; or a callable
            `schedule(step, steps)` that returns the factor on `learning_rate` after `step` of `steps` steps.
        clip_norm: largest norm of the whole gradient; None = no clipping.
        split_backward: losses that make passes of their own (latent augmentation) are back-propagated apart, which
            halves the memory of activations and gives the same gradients to rounding; False = one backward of the sum.
        patch_size: size that the network sees, one number a spatial axis; None = the task's own.
        foreground: share of the patches that are placed on foreground, in [0, 1]; None = the loader's own (0.5).
        augmentation: name of the loader's augmentation, or a callable on the sample {"image", "label", "case"}: MONAI's
            dictionary transforms, batchgenerators' or a function. It is seeded for every sample and runs in the
            training's own thread.
        validate_every: steps between validations on the val split; 0 = never.
        validation_cases: score only the first so many val volumes; None = all.
        select: "best" (highest mean foreground Dice on the val split) or "last"; never by the test split.
        log_every: steps between rows of the history.
        compile: compile the network (`torch.compile`) for its training and validation passes. Refused with regularizers
            that tap layers: a compiled pass calls no hooks.
        workers: threads that prepare batches ahead of their step; None = as many as this machine has to spare (the
            number is recorded), 0 = none. No bit depends on it.
        threads: CPU threads while training; None = those of the process at its start. The count is recorded and kept to
            the end, also by `resume` elsewhere, because 1 and 2 threads give different bits.

    Raises:
        ConfigError: unknown keyword (the nearest is named), wrong type, or an invalid value.

    Example:
        >>> config = tk.TrainConfig(steps=500, batch_size=8, optimizer="sgd", schedule="polynomial", clip_norm=1.0)
    """

    steps: int = 500
    batch_size: int = 16
    seed: int = 0
    precision: str = "32"
    _: dataclasses.KW_ONLY
    device: str = "auto"
    devices: int = 1
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    optimizer: str | Callable[..., Any] = "adamw"
    learning_rate: float = 2e-3
    rate_factors: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    weight_decay: float = 1e-2
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str | Callable[..., Any] = "one_cycle"
    clip_norm: float | None = None
    split_backward: bool = True
    patch_size: tuple[int, ...] | None = None
    foreground: float | None = None
    augmentation: str | Callable[..., Any] = "standard"
    validate_every: int = 100
    validation_cases: int | None = None
    select: str = "best"
    log_every: int = 10
    compile: bool = False
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())  # JSON holds Python's own numbers
        for name, choices in _CHOICES.items():
            if name not in FACTORIES or not callable(getattr(self, name)):
                where = f"TrainConfig({name}=...)" + (", or a callable" if name in FACTORIES else "")
                choose(name, getattr(self, name), choices, where=where)
        object.__setattr__(self, "betas", tuple(self.betas))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise _bad("betas", self.betas, "Give two numbers in [0, 1), for example (0.9, 0.999).")
        rows = self.rate_factors.items() if isinstance(self.rate_factors, Mapping) else self.rate_factors
        pairs = tuple((pattern, factor) for pattern, factor in rows)
        if not all(0 <= factor < math.inf for _, factor in pairs):
            raise _bad("rate_factors", self.rate_factors, 'Give patterns with factors from 0 on: {"encoder.*": 0.1}.')
        object.__setattr__(self, "rate_factors", pairs)
        if self.patch_size is not None:
            object.__setattr__(self, "patch_size", tuple(map(int, self.patch_size)))
            if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1:
                raise _bad("patch_size", self.patch_size, "Give one positive number a spatial axis: (96, 96).")
        if not self.split_backward and self.devices > 1:
            raise _bad("split_backward", self.split_backward, "Give True, or False on a single device.")
        if callable(self.augmentation) and self.workers:
            raise _bad("workers", self.workers, "A callable augmentation runs in the training's thread: leave it None.")
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
            raise _bad("device", self.device, 'Use "auto", "cpu", "cuda", "cuda:1" or "mps".')
        if self.precision == "16" and kind == "cpu":
            raise _bad("precision", self.precision, 'Half precision needs CUDA; use "bf16" or "32" on a CPU.')

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def factories(self) -> dict[str, Callable[..., Any]]:
        """The callables among the settings, by name: what `resume(factories=...)` takes."""
        return {name: value for name in FACTORIES if callable(value := getattr(self, name))}

    def with_factories(self, given: Mapping[str, Callable[..., Any]] | None, where: str) -> TrainConfig:
        """A copy with the callables that were passed again in their places.

        Raises:
            CheckpointError: one was neither found nor passed, or another one was passed.
        """
        given = given or {}
        for name, value in given.items():
            check_same(name, self.factories.get(name, getattr(self, name, Missing)), value, where)
        config = self.replace(**given)
        missing = {name: str(value) for name, value in config.factories.items() if isinstance(value, Missing)}
        if missing:
            call = ", ".join(f"{name!r}: ..." for name in missing)
            own = "; ".join(f"{name}={value}" for name, value in missing.items())
            what = f"This run has settings of your own, which must be passed again: {own}."
            fix = f"toolkit.resume(path, factories={{{call}}}), or import their modules first."
            raise CheckpointError(what, where=where, fix=fix)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal object where it finds the callables."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(json.dumps(values | {name: factory_record(v) for name, v in self.factories.items()}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: unknown or unusable values.
        """
        settings: dict[str, Any] = dict(values)
        for name in FACTORIES:
            if isinstance(settings.get(name), Mapping):
                settings[name] = factory_found(settings[name])
        return cls(**settings)


def as_config(value: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """A `TrainConfig` from one, a mapping of its fields, or None (the defaults)."""
    return value if isinstance(value, TrainConfig) else TrainConfig.from_dict(value or {})


def _bad(name: str, value: object, fix: str) -> ConfigError:
    return ConfigError(f"{name} cannot be {value!r}.", where=f"TrainConfig({name}=...)", fix=fix)
