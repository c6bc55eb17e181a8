"""The checks of `toolkit.testing`."""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.errors import ConfigError, RegularizerWarning, ToolkitError
from toolkit.process_state import seeded
from toolkit.results import DataFrame, as_table
from toolkit.testing.processes import difference_between_processes
from toolkit.testing.short_runs import Factory, Violation, batch_of, demand, network_of, one_step, surroundings, trained
from toolkit.training.protocol import Loss, Objective, Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.serialization import describe, restore
from toolkit.training.step import TrainingStep


def check_regularizer(
    regularizer: Regularizer,
    *,
    model: Factory | None = None,
    objective: Objective | Loss | None = None,
    dims: Sequence[int] = (2, 3),
    processes: int = 2,
) -> DataFrame:
    """Run the contract of regularizers on one.

    Its terms are those of `weights`, finite, with finite gradients in 2D and 3D, and the same again from the same
    generator, whatever the global random state; bfloat16 and float16 autocast give them to 5 % (50 % if it makes passes
    of its own); with all weights 0 a training has the bits of a plain one; a training that was broken off and resumed
    has the bits of one that was not; its gradient ratio is in the history; its settings go through JSON; two processes
    with half the batch each have, in float64, the gradients of one with the whole.

    Args:
        regularizer: with settings at which it does something; it is copied.
        model: makes a network of so many dimensions, 1 channel, 2 classes; None = a small U-Net, or a fast/slow
            network for a regularizer that requires one.
        objective: of the trainings; None = cross-entropy plus soft Dice, or the fast/slow network's.
        dims: spatial axes of the terms and their gradients; trainings are in 2D.
        processes: 1 leaves the check of two processes out, as does a regularizer that requires methods of the network.

    Returns:
        check, result, detail: a row a check.

    Raises:
        Violation: at the first check that does not hold.

    Example:
        >>> from toolkit.testing import check_regularizer
        >>> table = check_regularizer(tk.SegReg(samples=64, directions=8), dims=(2,), processes=1)
    """
    make, objective = surroundings(regularizer, model, objective)
    report = _Report(f"regularizer {regularizer.name!r}")
    for axes in dims:
        with report.check(f"terms and gradients in {axes}D") as row:
            row.append(_check_step(regularizer, make, objective, axes))
    for dtype in (torch.bfloat16, torch.float16):
        with report.check(f"autocast {str(dtype).removeprefix('torch.')}"):
            _check_autocast(regularizer, network_of(make, dims[0]), objective, dims[0], dtype)
    with report.check("settings through JSON"):
        _check_settings(regularizer)
    with tempfile.TemporaryDirectory() as folder:
        with report.check("weight 0 is plain training"):
            demand(regularizer.active(10**6), "the regularizer given to the check has weight 0 itself")
            plain = trained(None, make, objective, Path(folder) / "plain")
            with_it = trained(without_weight(regularizer), make, objective, Path(folder) / "zero")
            demand(plain == with_it, "with all weights 0 the training differs from the plain one")
        with report.check("resume is exact"):
            whole = _check_resume(regularizer, make, objective, Path(folder))
        with report.check("gradient ratio in the history") as row:
            ratios = [r[f"{regularizer.name}/gradient_ratio"] for r in whole if r["event"] == "train"]
            demand(all(0 < ratio < math.inf for ratio in ratios), f"the ratios are {ratios}")
            row.append(f"{ratios[0]:.3g} in the first step")
        with report.check("two processes equal one") as row:
            if processes > 1 and not regularizer.requires:
                difference = difference_between_processes({"one": regularizer}, Path(folder))
                row.append(f"relative difference {difference:.1g}")
            else:
                row.append("not checked")
    return report.table()


def check_objective(
    objective: Objective | Loss, *, model: Factory | None = None, dims: Sequence[int] = (2, 3)
) -> DataFrame:
    """Run the contract of objectives on one: an `Objective`, or a callable `loss(logits, labels)`.

    Its terms are finite scalars whose sum has a finite gradient, in 2D and 3D and under bfloat16 autocast to 5 %;
    `logits` gives (B, K, *S); a training that was broken off and resumed has the bits of one that was not.

    Args:
        objective: what is checked; it is copied.
        model: makes a network of so many dimensions, 1 channel, 2 classes; None = a small U-Net.
        dims: spatial axes to check.

    Returns:
        check, result, detail: a row a check.

    Raises:
        Violation: at the first check that does not hold.

    Example:
        >>> from toolkit.testing import check_objective
        >>> table = check_objective(torch.nn.CrossEntropyLoss(), dims=(2,))
    """
    make, objective = surroundings(None, model, objective)
    report = _Report(f"objective {objective.name!r}")
    for axes in dims:
        with report.check(f"terms, gradients and logits in {axes}D"):
            network, batch = network_of(make, axes), batch_of(axes)
            outputs = objective.forward_pass(network, batch, torch.Generator().manual_seed(0))
            shape = tuple(objective.logits(outputs).shape)
            demand(len(shape) == axes + 2 and shape[2:] == batch["image"].shape[2:], f"the logits are {shape}")
            one_step(TrainingStep(network, copy.deepcopy(objective)), batch)
    with report.check("autocast bfloat16"):
        full, half = (
            one_step(TrainingStep(network_of(make, dims[0]), objective), batch_of(dims[0]), d)
            for d in (None, torch.bfloat16)
        )
        _compare_terms(full, half, 0.05)
    with tempfile.TemporaryDirectory() as folder, report.check("resume is exact"):
        _check_resume(None, make, objective, Path(folder))
    return report.table()


def check_network(model: nn.Module | Factory, *, dims: Sequence[int] = (2,)) -> DataFrame:
    """Run what the toolkit asks of a network on one.

    It gives finite logits (B, K, *S) for an image (B, 1, *S), the same twice in eval mode and from a copy; its layers
    have names; a step has finite gradients; a training in 2D that was broken off and resumed has the same bits. The
    table says which aliases are found and which parameters get no gradient.

    Args:
        model: a network of 1 channel and 2 classes, or a function of the number of dimensions that makes one.
        dims: spatial axes to check (of a network: its own).

    Returns:
        check, result, detail: a row a check.

    Raises:
        Violation: at the first check that does not hold.

    Example:
        >>> from toolkit.testing import check_network
        >>> table = check_network(tk.unet(1, 2, channels=(4, 8)))
    """
    from toolkit.inference.layers import layers

    make: Factory = (lambda _: copy.deepcopy(model)) if isinstance(model, nn.Module) else model
    report = _Report("network")
    for axes in dims:
        network, batch = network_of(make, axes), batch_of(axes)
        objective = SegmentationObjective()
        with report.check(f"logits in {axes}D"):
            network.eval()
            with torch.no_grad():
                first, second, other = (
                    objective.logits(n(batch["image"])) for n in (network, network, copy.deepcopy(network))
                )
            demand(first.shape[2:] == batch["image"].shape[2:], f"the logits are {tuple(first.shape)}")
            demand(bool(first.isfinite().all()), "they are not finite")
            demand(torch.equal(first, second) and torch.equal(first, other), "eval mode or a copy gives others")
        with report.check(f"layer names in {axes}D") as row:
            table = layers(network, batch["image"])
            aliases = {alias for names in table["aliases"] for alias in names.split(", ")}
            row.append(f"{len(table)} layers; aliases: {', '.join(sorted(aliases - {''})) or 'none'}")
        with report.check(f"a step in {axes}D") as row:
            network.train()
            one_step(TrainingStep(network, objective), batch)
            idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
            row.append(f"no gradient at {', '.join(idle[:5])}" if idle else "every parameter has a gradient")
    if 2 in dims:
        with tempfile.TemporaryDirectory() as folder, report.check("resume is exact"):
            _check_resume(None, make, SegmentationObjective(), Path(folder))
    return report.table()


class _Report:
    """Rows of checks; an error inside one becomes a `Violation` that names it."""

    def __init__(self, subject: str) -> None:
        self.subject, self.rows = subject, []  # type: tuple[str, list[dict[str, str]]]

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        details: list[str] = []
        try:
            with warnings.catch_warnings(action="ignore", category=RegularizerWarning):  # dominant, in these few steps
                yield details
        except Exception as error:
            what = error.what if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
            fix = error.fix if isinstance(error, ToolkitError) else ""
            raise Violation(f"The {self.subject} breaks the contract, {name}: {what}", fix=fix) from error
        result = "not checked" if details == ["not checked"] else "ok"
        self.rows.append({"check": name, "result": result, "detail": ", ".join(details) if result == "ok" else ""})

    def table(self) -> DataFrame:
        return as_table(self.rows)


def _check_step(regularizer: Regularizer, make: Factory, objective: Objective, dims: int) -> str:
    values = []
    for seed in (0, 1):
        with seeded(seed):  # the global state must not matter
            own = copy.deepcopy(regularizer)
            terms = one_step(TrainingStep(network_of(make, dims), copy.deepcopy(objective), [own]), batch_of(dims))
        values.append({name: value for name, value in terms.items() if name.startswith(f"{own.name}/")})
    weights = {f"{regularizer.name}/{name}" for name, weight in regularizer.weights(3).items() if weight}
    demand(weights <= set(values[0]), f"weights() names {sorted(weights)}, the terms are {sorted(values[0])}")
    demand(values[0] == values[1], f"the same generator gives {values[0]} and {values[1]}: draw from context.generator")
    return ", ".join(f"{name} = {value:.3g}" for name, value in values[0].items())


def _check_autocast(
    regularizer: Regularizer, model: nn.Module, objective: Objective, dims: int, dtype: torch.dtype
) -> None:
    steps = [TrainingStep(copy.deepcopy(model), objective, [copy.deepcopy(regularizer)]) for _ in range(2)]
    full, half = (one_step(step, batch_of(dims), d) for step, d in zip(steps, (None, dtype), strict=True))
    full, half = ({n: v for n, v in t.items() if n.startswith(f"{regularizer.name}/")} for t in (full, half))
    # A masked code may lose another entry in half precision, so passes of a network's own get a wider margin.
    _compare_terms(full, half, 0.5 if regularizer.deferred else 0.05)


def _compare_terms(full: dict[str, float], half: dict[str, float], margin: float) -> None:
    scale = sum(abs(value) for value in full.values())
    far = [name for name, value in half.items() if abs(value - full[name]) > margin * scale]
    demand(set(full) == set(half) and not far, f"float32 gives {full}, half precision {half}")


def _check_settings(regularizer: Regularizer) -> None:
    entry = describe("regularizer", regularizer)
    if "foreign" in entry:
        fix = "Define the class at the top level of a file, with settings that JSON can hold (a frozen dataclass)."
        raise ConfigError(f"{entry['foreign']} cannot be stored, so a resumed run must be given it again.", fix=fix)
    (again,) = restore({"regularizers": [entry]}, {}, "check", only=("regularizers",))["regularizers"]
    demand(type(again).__qualname__ == type(regularizer).__qualname__, f"{entry} gives {again!r}")
    demand(describe("regularizer", again) == entry, f"{entry} comes back as {describe('regularizer', again)}")


def _check_resume(
    regularizer: Regularizer | None, make: Factory, objective: Objective, folder: Path
) -> list[dict[str, Any]]:
    whole = trained(regularizer, make, objective, folder / "whole")
    broken = trained(regularizer, make, objective, folder / "broken", at=3)
    demand(whole[0] == broken[0], "other weights after a crash in step 3 (state_dict must hold what a step depends on)")
    demand(whole[1] == broken[1], "another history after a crash in step 3")
    return whole[1]


def without_weight(regularizer: Regularizer) -> Regularizer:
    """A copy whose weights are 0: by its settings named `weight`, `*_weight` or like a term, else by `weights` itself.

    Example:
        >>> from toolkit.testing import without_weight
        >>> without_weight(tk.SegReg(weight=0.3)).weight
        0.0
    """
    clone, terms = copy.deepcopy(regularizer), regularizer.weights(10**6)
    for name, value in vars(regularizer).items():
        if isinstance(value, float) and (name == "weight" or name.endswith("_weight") or name in terms):
            object.__setattr__(clone, name, 0.0)
    if any(clone.weights(10**6).values()):
        object.__setattr__(clone, "weights", lambda step: dict.fromkeys(regularizer.weights(step), 0.0))
    return clone
