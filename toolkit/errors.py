"""The toolkit's exceptions and warnings: each says what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Collection


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


def choose(what: str, value: object, known: Collection[object], *, where: str = "") -> None:
    """Refuse a value that is not among the known ones, naming the nearest.

    Args:
        what: what the value is, for example "pool".
        value: as the caller gave it.
        known: what there is.
        where: the argument or file it concerns.
    """
    names = [str(name) for name in known]
    if isinstance(value, str) and value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"There is no {what} {value!r}.", where=where, fix=f"{hint}Use one of {', '.join(names)}.")
