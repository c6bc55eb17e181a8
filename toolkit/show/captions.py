"""The line of provenance below every figure, and the notes that a figure owes its reader."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

SEGREG_NOTE = "SegReg: the loss is our inference from the public parts of the paper (its own loss and code are not public)."
_HASH = re.compile(r"\b[0-9a-f]{16,128}\b")
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|\\\\)")


def caption(provenance: Mapping[str, Any], note: str = "") -> str:
    """One paragraph that names weights, data, layer, parameters and versions; notes follow on their own lines.

    Hashes are cut to 12 characters, paths to their last part: no figure names a machine or its user.

    Args:
        provenance: a result's provenance; nested mappings are flattened.
        note: a sentence to add, for example which run the network comes from.
    """
    parts = [f"{key.replace('_', ' ')} {text}" for key, text in _flat(provenance)]
    lines = [note, " · ".join(parts)]
    if "segreg" in repr(provenance).lower() or "segreg" in note.lower():
        lines.append(SEGREG_NOTE)
    return "\n".join(line for line in lines if line)


def captions(results: Sequence[Any], names: Sequence[str], note: str = "") -> str:
    """One line of provenance per result, each led by the name of its network; then the notes."""
    lines = [caption(result.provenance) for result in results]
    named = [f"{name}: {line}" if name else line for name, line in zip(names, lines, strict=True)]
    kept = [line for text in [*named, note] for line in text.splitlines() if line and line != SEGREG_NOTE]
    mentioned = "segreg" in " ".join(kept).lower()
    return "\n".join([*kept, SEGREG_NOTE] if mentioned else kept)


def plain(text: str) -> str:
    """Text without full hashes and without the folders of absolute paths."""
    words = [
        re.split(r"[\\/]", word.rstrip("\\/"))[-1] if _ABSOLUTE.match(word) and len(word) > 1 else word
        for word in text.split(" ")
    ]
    return _HASH.sub(lambda match: match.group()[:12], " ".join(words))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _flat(value, "" if key in ("versions", "parameters", "settings") else f"{name} ")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                found += _flat(item, f"{name.removesuffix('s')} {number} ")
        elif isinstance(value, (list, tuple)):
            found.append((name, _listed(value)))
        elif value is not None and value != "":
            found.append((name, plain(f"{value:.4g}" if isinstance(value, float) else str(value))))
    return found


def _listed(values: list[Any] | tuple[Any, ...]) -> str:
    texts = [plain(str(value)) for value in values[:4]]
    return ", ".join(texts) + (f", … ({len(values)} in all)" if len(values) > 4 else "")
