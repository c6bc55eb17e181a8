"""Model, task, objective and regularizers of a run as registered names with keyword arguments, and back."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit import registry
from toolkit.errors import CheckpointError, ConfigError


def describe(kind: str, obj: object) -> dict[str, Any]:
    """`{"name": ..., "arguments": ...}` of a registered toolkit object, `{"foreign": class}` of any other."""
    load_registry()
    recipe = registry.describe(obj)
    if recipe is not None and recipe.get("name") in registry.names(kind):
        try:
            return json.loads(json.dumps({"name": recipe["name"], "arguments": recipe.get("arguments", {})}))
        except (TypeError, ValueError):
            pass  # arguments that JSON cannot hold: the object must be passed again
    return {"foreign": class_name(obj)}


def class_name(obj: object) -> str:
    """Module and name of an object's class, inside any parallel or compiled wrapper."""
    kind = type(getattr(obj, "_orig_mod", obj))
    return f"{kind.__module__}.{kind.__qualname__}"


def restore(
    recorded: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    only: Sequence[str] = ("model", "task", "objective", "regularizers"),
) -> dict[str, Any]:
    """The objects of a run: those that were passed again, else rebuilt by the registry.

    Args:
        recorded: the run's `objects`.
        given: what the caller passed, by the same keys; None = rebuild it.
        where: the run, for messages.
        only: keys that are needed.

    Raises:
        CheckpointError: a foreign object was not passed (all missing ones are listed), or another one was.
    """
    load_registry()
    missing = [
        f"{_ARGUMENTS[key]}={', '.join(_foreign(recorded[key]))}"
        for key in only
        if given.get(key) is None and _foreign(recorded[key])
    ]
    if missing:
        raise CheckpointError(
            f"This run holds objects of your own, which must be passed again: {'; '.join(missing)}.",
            where=where,
            fix=f"toolkit.resume(path, {', '.join(m.split('=')[0] + '=...' for m in missing)})",
        )
    return {key: _restore_one(key, recorded[key], given.get(key), where) for key in only}


def _restore_one(key: str, recorded: Any, given: Any, where: str) -> Any:
    kind = _ARGUMENTS[key]
    if given is None:
        try:
            if isinstance(recorded, list):
                return [registry.build(kind, entry) for entry in recorded]
            return registry.build(kind, recorded)
        except ConfigError as error:
            raise CheckpointError(
                f"The {kind} of this run cannot be rebuilt here: {error.what}",
                where=where,
                fix=f"Pass it: toolkit.resume(path, {kind}=...). {error.fix}",
            ) from error
    now = [describe(kind, item) for item in given] if isinstance(recorded, list) else describe(kind, given)
    if now != recorded:
        raise CheckpointError(
            f"The {kind} that was passed is not the one of this run.",
            where=f"{where}: recorded {json.dumps(recorded)}, passed {json.dumps(now)}",
            fix="Pass the same one; to continue with another, start a new run from load_model(path).",
        )
    return given


_ARGUMENTS = {"model": "model", "task": "task", "objective": "objective", "regularizers": "regularizer"}


def _foreign(recorded: Any) -> list[str]:
    entries = recorded if isinstance(recorded, list) else [recorded]
    return [entry["foreign"] for entry in entries if "foreign" in entry]


@functools.cache
def load_registry() -> None:
    """Import every module that registers toolkit objects (they import torch and NumPy only)."""
    for name in registry.packages():
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
