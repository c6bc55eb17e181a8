"""The protocol: what one training step offers, and what regularizers and objectives declare and return."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.logits import find_logits


@dataclasses.dataclass
class StepContext:
    """What one training step hands to the objective and to every regularizer.

    Attributes:
        batch: `image` (B, C, *S) float, `label` (B, 1, *S) integer, and whatever else the loader gave.
        model: the raw network; passes made through it are inside the wrapped step, so DDP sees them.
        outputs: what the objective's forward pass returned (logits, or a structured object).
        features: tapped activations by the name that was asked for, with their graph.
        step: number of optimizer steps taken before this one.
        generator: CPU generator keyed by (seed, step, owner), the same on all ranks; if none is given, a new one that
            draws something else every time.
        logging: True on steps that are written to the history (diagnostics may cost something then).
        stage: index of the current stage of a sequence or recipe.
    """

    batch: Mapping[str, Any]
    model: nn.Module
    outputs: Any = None
    features: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    step: int = 0
    _: dataclasses.KW_ONLY
    generator: torch.Generator = dataclasses.field(default_factory=lambda: fresh_generator())
    logging: bool = False
    stage: int = 0


def fresh_generator() -> torch.Generator:
    """A CPU generator with an unforeseeable seed; the global random state is not touched."""
    generator = torch.Generator()
    generator.seed()
    return generator


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on every element of `key` and on nothing else."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class _Recorded:
    """Remembers the call that makes it, so that a run can store it."""

    def __new__(cls, *values: Any, **named: Any) -> Any:
        new = super().__new__(cls)
        registry.remember_new(new, values, named)
        return new


class Regularizer(_Recorded):
    """Base of all regularizers: dataclasses of plain settings, called once a step with a `StepContext`.

    Class attributes:
        name: prefix of its terms in the history.
        caveat: a sentence that every figure of a network trained with it owes its reader.
        deferred: True if it needs only detached features and makes its own passes, so that its loss is
            back-propagated after the objective's graph has been freed (half the activation memory).
        requires: methods the network must offer, for example `decode_image`.

    A subclass defines `taps`, `weights` and `__call__`; the loop multiplies each returned term by its weight, adds them
    up, logs them and measures the gradient ratio at the taps.

    Example:
        >>> class Small(tk.Regularizer):
        ...     taps, weights = ("bottleneck",), lambda self, step: {"norm": 0.1}
        ...     def __call__(self, context):
        ...         return {"norm": context.features["bottleneck"].square().mean()}
        >>> run = tk.train(model, task, regularizer=Small(), config=config, out="runs/small")
    """

    name: ClassVar[str] = "regularizer"
    caveat: ClassVar[str] = ""
    deferred: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()

    @property
    def taps(self) -> tuple[str, ...]:
        """Layer names, globs or aliases whose activations it reads: those of its field `tap`, if it has one."""
        tap = getattr(self, "tap", ())
        return (tap,) if isinstance(tap, str) else tuple(tap)

    def taps_on(self, model: nn.Module) -> tuple[str, ...]:
        """The taps on this network; overridden by a regularizer that picks its layers by looking at it."""
        return self.taps

    def weights(self, step: int) -> dict[str, float]:
        """Weight of every term at this step; if all are 0 the regularizer is skipped: no pass, no draw."""
        raise NotImplementedError

    def in_later_stage(self) -> Regularizer:
        """The regularizer of a sequence's later stages: the same, but for a warm-up, which happens once."""
        warm_up = {name: 0 for name in ("warm_up", "warm_up_steps") if hasattr(self, name)}
        return dataclasses.replace(self, **warm_up) if warm_up and dataclasses.is_dataclass(self) else self

    def objective_weight(self, step: int) -> float:
        """Factor on the objective (1 except for convex combinations)."""
        return 1.0

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """Unweighted scalar terms, by the names that `weights` uses."""
        raise NotImplementedError

    def gradient_probes(self, context: StepContext) -> Sequence[Tensor]:
        """Tensors at which its gradient is compared with the objective's (default: the taps)."""
        return list(context.features.values())

    def diagnostics(self) -> dict[str, float]:
        """Numbers about the last call, written to the history on logging steps: the content of a dictionary `_last`."""
        return {name: float(value) for name, value in getattr(self, "_last", {}).items()}

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: the content of a dictionary `_kept`; most regularizers have none."""
        return dict(getattr(self, "_kept", {}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        kept = getattr(self, "_kept", None)
        if kept is not None:
            kept.clear()
            kept.update(state)
        elif state:
            what = f"The regularizer {self.name!r} keeps no state, but the checkpoint holds {sorted(state)}."
            raise ConfigError(what)

    def active(self, step: int) -> bool:
        """Whether any term has a weight at this step."""
        return any(weight != 0 for weight in self.weights(step).values())

    def __add__(self, other: Regularizer | Sequence[Regularizer]) -> list[Regularizer]:
        return as_regularizers(self) + as_regularizers(other)


def as_regularizers(value: Regularizer | Sequence[Regularizer] | None) -> list[Regularizer]:
    """None, one regularizer, or several, as a list."""
    if value is None:
        return []
    items = list(value) if isinstance(value, Sequence) else [value]
    for item in items:
        if not isinstance(item, Regularizer):
            raise ConfigError(f"{item!r} is not a regularizer.", fix="Pass a regularizer, a list of them, or None.")
    seen = [item.name for item in items]
    if len(set(seen)) < len(seen):
        raise ConfigError(f"Two regularizers share a name: {seen}.", fix="Merge them into one, or rename one.")
    return items


def linear_warm_up(step: int, steps: int) -> float:
    """Weight factor that rises linearly from 1/steps to 1 over the first `steps` steps (1 if `steps` is 0)."""
    return 1.0 if steps <= 0 else min(1.0, (step + 1) / steps)


Loss = Callable[[Tensor, Tensor], Tensor]


class Objective(_Recorded):
    """Base of all objectives: makes the forward pass and returns named, already weighted loss terms.

    The default pass is `model(batch["image"])`. An objective with a forward pass of its own (input noise, several
    modules, two views) overrides `forward_pass`; whatever that returns becomes `StepContext.outputs`. One that learns
    is an `nn.Module` too; its parameters are a group of the optimizer. `requires` are methods the network must offer.

    Example:
        >>> class Plain(tk.Objective):
        ...     def __call__(self, outputs, batch):
        ...         return {"nll": torch.nn.functional.cross_entropy(outputs, batch["label"][:, 0].long())}
        >>> run = tk.train(model, task, Plain(), config=config, out="runs/plain")
    """

    name: ClassVar[str] = "objective"
    requires: ClassVar[tuple[str, ...]] = ()

    def forward_pass(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Any:
        """Run the network on a batch; layers that run here are what the taps see."""
        return model(batch["image"])

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted scalar terms by name; their sum is the objective."""
        raise NotImplementedError

    def logits(self, outputs: Any) -> Tensor:
        """The segmentation logits (B, K, *S) inside `outputs`, by the rule of `toolkit.features.logits.find_logits`.

        An objective whose network returns something that the rule does not cover overrides this; the network then
        remembers it, and every later call finds the logits so.
        """
        return find_logits(outputs)
