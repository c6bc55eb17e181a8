"""The toolkit's exceptions and warnings: each says what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection
from typing import Any


class ToolkitError(ValueError):
    """Base of every error the toolkit raises on purpose.

    Args:
        what: what is wrong, one sentence.
        where: the file, layer, case, key or argument it concerns.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(
            "\n".join(filter(None, (what, self.where and f"  where: {self.where}", fix and f"  fix:   {fix}")))
        )


class DataError(ToolkitError):
    """A file, array, label, geometry or manifest that must not be trained on."""


class LayerError(ToolkitError):
    """A layer name that matches nothing, or a layer that never ran."""


class ConfigError(ToolkitError):
    """An invalid argument or configuration."""


class ProtocolError(ToolkitError):
    """A regularizer or an objective that the network cannot serve; lists what the network offers."""


class CheckpointError(ToolkitError):
    """A checkpoint, run directory or weights file that is damaged, foreign or unsafe."""


class ResultError(ToolkitError):
    """Results that cannot be combined, drawn or read back."""


class RegularizerWarning(UserWarning):
    """A regularizer that is dead (gradient ratio below 1e-8) or dominant (above 1)."""


class ToolkitWarning(UserWarning):
    """Something the user should know about a result that is still valid."""


def library(module: str, purpose: str, install: str = "") -> Any:
    """A package that is optional, imported; where it is missing, an error with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = f"pip install {install or module}"
        raise ConfigError(f"{purpose} the package {module}, which is not installed.", fix=fix) from error


def choose(what: str, value: object, known: Collection[object], *, where: str = "") -> None:
    """Refuse a value (`what` it is: "pool") that is not among the known ones, naming the nearest."""
    names = [str(name) for name in known]
    if isinstance(value, str) and value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    fix = f"{hint}Use one of {', '.join(names)}." if names else "Leave it out: there is none."
    raise ConfigError(f"There is no {what} {value!r}.", where=where, fix=fix)
