"""Where a class or function of the user's own was defined, recorded with a run and found again without running scripts.

A run directory may come from anybody, so nothing in it is executed. A recorded class is looked for among the modules
that this process has imported; a module that is not imported yet is imported only if it lies on `sys.path` under the
recorded name and is the very file of the run: the same path, or the same content (a run that moved to another machine).
Anything else has to be passed again.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from toolkit import registry
from toolkit.errors import ToolkitWarning


def origin_of(value: Any) -> dict[str, Any] | None:
    """`class` ("module:qualified name"), `file` and `sha256` of a class or function; None if it has no name to find.

    What was defined in a notebook has no file; its `sha256` is that of its own text.
    """
    module = getattr(value, "__module__", None)
    if module is None or "<" in getattr(value, "__qualname__", "<"):
        return None
    file = _file_of(sys.modules.get(module))
    if file is not None:
        return {"class": registry.place(value), "file": str(file), "sha256": _digest(file.read_bytes())}
    text = _text(value)
    return None if text is None else {"class": registry.place(value), "sha256": _digest(text.encode())}


def find(entry: Mapping[str, Any]) -> Any:
    """The class or function of a record, or None.

    Warns:
        ToolkitWarning: its file is the recorded one, but has changed since.
    """
    name, _, qualified = str(entry["class"]).partition(":")
    value = module = sys.modules.get(name) or _imported(name, entry)
    for part in qualified.split("."):
        value = getattr(value, part, None)
    file = _file_of(module)
    if value is None or (file is None) != ("file" not in entry):
        return None
    if file is None:
        return value if _digest((_text(value) or "").encode()) == entry.get("sha256") else None
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
    if _digest(file.read_bytes()) == entry.get("sha256"):
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
