"""Model, task, objective and regularizers of a run as names with keyword arguments, and back.

A registered object is stored by its name; a regularizer, an objective or a callable setting of the user's own by the
module and the file of its class (`origin_of`); everything else as `foreign`, by the name of its class, to be passed again.
A run directory may come from anybody, so nothing in it is executed: see `find`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from toolkit import registry
from toolkit.errors import CheckpointError, ConfigError, DataError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.files import sha256
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.segmentation import LossObjective, as_objective

FACTORIES = ("optimizer", "schedule", "augmentation")  # settings that may be callables
_PLACES = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
_LIBRARIES = tuple({Path(place).resolve() for place in _PLACES})


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
    """The class or function of a record, or None.

    It is looked for among the modules that this process has imported. Another module is imported only if it lies on
    `sys.path` under the recorded name and is the very file of the run: the same path, or the same content.
    """
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
    file = Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None
    return importlib.import_module(name) if file is not None and _is_the_file(file, entry, quiet=True) else None


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
        what = f"The callable {self} of this run's settings was not found here."
        raise CheckpointError(what, fix="Pass a TrainConfig that holds it.")

    def __str__(self) -> str:
        entry = json.loads(self.record)
        return str(entry.get("class") or entry.get("foreign"))


def factory_record(value: Callable[..., Any]) -> dict[str, Any]:
    """What a run records of a callable: `class`, `file` and `sha256` (see `origin_of`), or the name of its type."""
    if isinstance(value, Missing):
        return json.loads(value.record)
    return origin_of(value) or {"foreign": _full_name(value)}


def factory_found(entry: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable of a record, or a `Missing`.

    A training calls it, so nothing of Python's own library or of an installed package is taken, but torch's optimizers.
    """
    value: Any = find(entry) if "class" in entry else None
    optimizer = isinstance(value, type) and issubclass(value, Optimizer)
    module = str(entry.get("class")).partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    # defined in that very module, which is a notebook or a file outside all libraries
    own = module == "__main__" if file is None else not any(map(Path(file).resolve().is_relative_to, _LIBRARIES))
    own = own and callable(value) and getattr(value, "__module__", "") == module
    return value if optimizer or own else Missing(json.dumps(dict(entry)))


def check_same(name: str, recorded: Callable[..., Any], given: Callable[..., Any], where: str) -> None:
    """Compare a callable that was passed again with the record."""
    entries = [factory_record(value) for value in (recorded, given)]
    # the name alone: a file may have moved and a script become a module
    names = [str(one.get("class") or one["foreign"]).rpartition(":")[2].rpartition(".")[2] for one in entries]
    if names[0] != names[1]:
        what = f"The {name} that was passed is not the one of this run."
        raise CheckpointError(what, where=f"{where}: it was {names[0]} and is {names[1]}", fix="Pass the same one.")


_BASES: dict[str, type] = {"objective": Objective, "regularizer": Regularizer}
_ARGUMENTS = {"model": "model", "task": "task", "objective": "objective", "regularizers": "regularizer"}


def describe(kind: str, obj: Any) -> dict[str, Any]:
    """What a run records of an object: `name` and `arguments`, the origin of its class or factory, or `foreign`."""
    obj = unwrap(obj) if isinstance(obj, nn.Module) else obj
    entry = registry.describe(obj)
    if entry is not None and entry.get("name") in registry.names(kind):
        make = registry.factory(kind, entry["name"])
        of_a_package = f"{make.__module__}.".startswith(tuple(f"{package}." for package in registry.packages()))
        entry |= {} if of_a_package else origin_of(make) or {}
    elif isinstance(obj, _BASES.get(kind, ())) and (arguments := registry.settings(obj)) is not None:
        origin = origin_of(type(obj))
        entry = None if origin is None else {**origin, "arguments": arguments}
    else:
        entry = None
    try:
        return json.loads(json.dumps(entry)) if entry is not None else _foreign(obj)
    except (TypeError, ValueError):
        return _foreign(obj)  # arguments that JSON cannot hold: the object must be passed again


def described(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The `objects` of a run's record: of its model, task, objective and list of regularizers."""
    return {key: _described(_ARGUMENTS[key], value) for key, value in parts.items()}


def _described(kind: str, value: Any) -> Any:
    return [describe(kind, one) for one in value] if isinstance(value, list) else describe(kind, value)


def _full_name(value: Any) -> str:
    """Module and name of a function, or of an object's class inside any parallel or compiled wrapper."""
    kind = value if hasattr(value, "__qualname__") else type(getattr(value, "_orig_mod", value))
    return f"{kind.__module__}.{kind.__qualname__}"


def not_recorded(objects: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """What another process cannot build from the record of these parts, by the arguments of `resume`."""
    return {
        _ARGUMENTS[key]: value
        for key, value in parts.items()
        if any("name" not in entry or "class" in entry for entry in _entries(objects[key]))
    }


def restore(
    recorded: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    only: Sequence[str] = ("model", "task", "objective", "regularizers"),
) -> dict[str, Any]:
    """The objects of a run's `recorded` ones: those that were passed again under the same keys, else rebuilt."""
    if given.get("objective") is not None:
        given = {**given, "objective": as_objective(given["objective"])}
    missing = [
        f"{_ARGUMENTS[key]}={', '.join(lost)}"
        for key in only
        if given.get(key) is None and (lost := [_call(e) for e in _entries(recorded[key]) if _is_lost(e)])
    ]
    if missing:
        what = f"This run holds objects of your own, which must be passed again: {'; '.join(missing)}."
        call = f"toolkit.resume(path, {', '.join(one.split('=')[0] + '=...' for one in missing)})"
        raise CheckpointError(what, where=where, fix=f"{call}, or import their modules first.")
    return {key: _restore_one(key, recorded[key], given.get(key), where) for key in only}


def _restore_one(key: str, recorded: Any, given: Any, where: str) -> Any:
    kind = _ARGUMENTS[key]
    if given is None:
        try:
            if isinstance(recorded, list):
                return [_rebuilt(kind, entry) for entry in recorded]
            return _rebuilt(kind, recorded)
        except (ConfigError, DataError) as error:
            what = f"The {kind} of this run cannot be rebuilt here: {error.what}"
            fix = f"Pass it: toolkit.load_run(path, {kind}=...) or toolkit.resume(path, {kind}=...)."
            raise CheckpointError(what, where=f"{where}; {error.where}" if error.where else where, fix=fix) from error
    if kind == "task":
        return given  # its data may lie elsewhere by now: `check_task` compares what they hold
    now = _described(kind, given)
    if [_identity(e) for e in _entries(now)] != [_identity(e) for e in _entries(recorded)]:
        what = f"The {kind} that was passed is not the one of this run."
        fix = "Pass the same one; to continue with another, start a new run from load_model(path)."
        raise CheckpointError(what, where=f"{where}: {'; '.join(differences(recorded, now)[:5])}", fix=fix)
    return given


def _rebuilt(kind: str, entry: Mapping[str, Any]) -> Any:
    owner = find(entry) if "class" in entry else None
    if "name" in entry:
        return registry.build(kind, entry)
    base = _BASES.get(kind, type(None))
    if not (isinstance(owner, type) and issubclass(owner, base)):
        raise ConfigError(f"{entry['class']} is not a {base.__name__}.", fix="")
    try:
        return owner(**entry["arguments"])
    except TypeError as error:
        raise ConfigError(f"{entry['class']}: {error}.", fix="") from error


def _entries(recorded: Any) -> list[dict[str, Any]]:
    return recorded if isinstance(recorded, list) else [recorded]


def differences(recorded: Any, now: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, a short sentence each."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        pairs = {f"{name}.{key}".lstrip("."): (recorded.get(key), now.get(key)) for key in {**recorded, **now}}
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        pairs = {f"{name}[{index}]": pair for index, pair in enumerate(zip(recorded, now, strict=True))}
    else:
        return [] if recorded == now else [f"{name} was {str(recorded)[:80]} and is {str(now)[:80]}"]
    return [one for place, pair in pairs.items() for one in differences(*pair, place)]


def _is_lost(entry: Mapping[str, Any]) -> bool:
    return "foreign" in entry or ("class" in entry and find(entry) is None)


def _call(entry: Mapping[str, Any]) -> str:
    """The call that makes the object again, as far as it is known."""
    if "foreign" in entry:
        return str(entry["foreign"])
    module, _, name = entry["class"].partition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in entry["arguments"].items())
    return f"{name}({arguments}) of {entry.get('file', module)}"


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without the places that change when a file moves or a script becomes a module."""
    lasting = {key: value for key, value in entry.items() if key not in ("file", "sha256", "class")}
    if "name" in lasting or "class" not in entry:
        return lasting
    return {**lasting, "class": entry["class"].partition(":")[2]}


def _foreign(obj: object) -> dict[str, Any]:
    """The name of the class (of the function, for a plain loss), and of a loss what can be read of its settings."""
    loss = obj.loss if isinstance(obj, LossObjective) else obj
    if loss is obj or not isinstance(loss, nn.Module):
        return {"foreign": _full_name(loss)}
    plain = {
        f"{path}.{name}".strip("."): value
        for path, module in loss.named_modules()
        for name, value in vars(module).items()
        if name != "training" and isinstance(value, (bool, int, float, str))
    }
    return {"foreign": _full_name(loss), "settings": plain}
