"""Callables among the settings of a run: recorded by where they were defined, found again, or asked for.

A run directory may come from anybody, and what it names is called in a training. So nothing of Python's own library or
of an installed package is taken from a record, except for torch's kind of optimizer; such a callable is passed again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from toolkit.errors import CheckpointError
from toolkit.training.origin import find, origin_of

FACTORIES = ("optimizer", "schedule", "augmentation")  # settings that may be callables
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@dataclasses.dataclass(frozen=True)
class Missing:
    """Stands for a callable that was not found; refuses to be called."""

    record: str

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise CheckpointError(
            f"The callable {self} of this run's settings was not found here.", fix="Pass a TrainConfig that holds it."
        )

    def __str__(self) -> str:
        entry = json.loads(self.record)
        return str(entry.get("class") or entry.get("foreign"))


def factory_record(value: Callable[..., Any]) -> dict[str, Any]:
    """What a run records of a callable: `class`, `file` and `sha256` (see `origin_of`), or the name of its type."""
    if isinstance(value, Missing):
        return json.loads(value.record)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return origin_of(value) or {"foreign": f"{kind.__module__}.{kind.__qualname__}"}


def factory_found(entry: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable of a record, or a `Missing`."""
    value: Any = find(entry) if "class" in entry else None
    optimizer = isinstance(value, type) and issubclass(value, Optimizer)
    if optimizer or (callable(value) and _is_users_own(value, str(entry.get("class")).partition(":")[0])):
        return value
    return Missing(json.dumps(dict(entry)))


def check_same(name: str, recorded: Callable[..., Any], given: Callable[..., Any], where: str) -> None:
    """Compare a callable that was passed again with the record.

    Raises:
        CheckpointError: another one, by its name.
    """
    names = [_short(factory_record(value)) for value in (recorded, given)]
    if names[0] != names[1]:
        raise CheckpointError(
            f"The {name} that was passed is not the one of this run.",
            where=f"{where}: it was {names[0]} and is {names[1]}",
            fix="Pass the same one.",
        )


def _short(entry: Mapping[str, Any]) -> str:
    """The name alone: a file may have moved and a script become a module."""
    return str(entry.get("class") or entry["foreign"]).rpartition(":")[2].rpartition(".")[2]


def _is_users_own(value: Any, module: str) -> bool:
    """Whether it was defined in that very module, which is a notebook or a file outside all libraries."""
    file = getattr(sys.modules.get(module), "__file__", None)
    place = module == "__main__" if file is None else not any(map(Path(file).resolve().is_relative_to, _LIBRARIES))
    return place and getattr(value, "__module__", "") == module
