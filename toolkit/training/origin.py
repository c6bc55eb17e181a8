"""Where a class or function of the user's own was defined, recorded with a run and found again without running scripts.

A run directory may come from anybody, so nothing in it is executed. A recorded class is looked for among the modules
that this process has imported; a module that is not imported yet is imported only if it lies on `sys.path` under the
recorded name and is the very file of the run: the same path, or the same content (a run that moved to another machine).
Anything else has to be passed again. Callables among the settings of a run (optimizer, schedule, augmentation) are
called in a training, so nothing of Python's own library or of an installed package is taken from a record for them,
except for torch's kind of optimizer.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from toolkit import registry
from toolkit.errors import CheckpointError, ToolkitWarning
from toolkit.files import sha256

FACTORIES = ("optimizer", "schedule", "augmentation")  # settings that may be callables
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def origin_of(value: Any) -> dict[str, Any] | None:
    """`class` ("module:qualified name"), `file` and `sha256` of a class or function; None if it has no name to find.

    What was defined in a notebook has no file; its `sha256` is that of its own text.
    """
    module = getattr(value, "__module__", None)
    if module is None or "<" in getattr(value, "__qualname__", "<"):
        return None
    file = _file_of(sys.modules.get(module))
    if file is not None:
        return {"class": registry.place(value), "file": str(file), "sha256": sha256(file.read_bytes())}
    text = _text(value)
    return None if text is None else {"class": registry.place(value), "sha256": sha256(text)}


def find(entry: Mapping[str, Any]) -> Any:
    """The class or function of a record, or None."""
    name, _, qualified = str(entry["class"]).partition(":")
    value = module = sys.modules.get(name) or _imported(name, entry)
    for part in qualified.split("."):
        value = getattr(value, part, None)
    file = _file_of(module)
    if value is None or (file is None) != ("file" not in entry):
        return None
    if file is None:
        return value if sha256(_text(value) or "") == entry.get("sha256") else None
    return value if _is_the_file(file, entry) else None


def _imported(name: str, entry: Mapping[str, Any]) -> Any:
    """The module, imported if the file that its name stands for is the recorded one."""
    top, *rest = name.split(".")
    spec = PathFinder.find_spec(top)
    for index, _ in enumerate(rest):
        if spec is None or spec.submodule_search_locations is None:
            return None
        full = ".".join((top, *rest[: index + 1]))
        spec = PathFinder.find_spec(full, list(spec.submodule_search_locations))
    if (
        spec is None
        or not spec.has_location
        or not spec.origin
        or not _is_the_file(Path(spec.origin).resolve(), entry, quiet=True)
    ):
        return None
    return importlib.import_module(name)


def _is_the_file(file: Path, entry: Mapping[str, Any], quiet: bool = False) -> bool:
    if sha256(file.read_bytes()) == entry.get("sha256"):
        return True
    if str(file) != entry.get("file"):
        return False
    if not quiet:
        warnings.warn(f"{file} has changed since this run was started.", ToolkitWarning, stacklevel=4)
    return True


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def _text(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return None


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
    """Compare a callable that was passed again with the record."""
    names = [_short(factory_record(value)) for value in (recorded, given)]
    if names[0] != names[1]:
        what = f"The {name} that was passed is not the one of this run."
        raise CheckpointError(what, where=f"{where}: it was {names[0]} and is {names[1]}", fix="Pass the same one.")


def _short(entry: Mapping[str, Any]) -> str:
    """The name alone: a file may have moved and a script become a module."""
    return str(entry.get("class") or entry["foreign"]).rpartition(":")[2].rpartition(".")[2]


def _is_users_own(value: Any, module: str) -> bool:
    """Whether it was defined in that very module, which is a notebook or a file outside all libraries."""
    file = getattr(sys.modules.get(module), "__file__", None)
    place = module == "__main__" if file is None else not any(map(Path(file).resolve().is_relative_to, _LIBRARIES))
    return place and getattr(value, "__module__", "") == module
