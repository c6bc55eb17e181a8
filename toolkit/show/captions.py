"""What stands below a figure: how good its networks are, the notes it owes its reader, and its provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.features.provenance import score_of
from toolkit.registry import attributes
from toolkit.results import DataFrame

_HASH = re.compile(r"\b[0-9a-f]{16,128}\b")
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|\\\\)")


def credits(source: Any, note: str = "", names: Sequence[str] = ()) -> dict[str, Any]:
    """`caption`, `provenance` and `stamp` of a figure, to be handed to it by `**`.

    `source` is a result, a record of provenance, a network or a table of its scores or its training, or several of them:
    a list, or a mapping from the names that the figure gives them. The caption holds `note` and steps, seed, test score and number of patients of every network whose score is known;
    the stamp is "untrained" where a score is below its floor. Of a network whose score is unknown nothing is claimed.
    """
    if isinstance(source, Mapping) and all(isinstance(one, nn.Module | DataFrame) for one in source.values()):
        names, source = list(source), list(source.values())
    several = isinstance(source, (list, tuple))
    records = [_record(one) for one in (source if several else [source])]
    networks = [network for record in records for network in _networks(record)]
    titles = list(names) if len(names) == len(networks) else [str(one.get("name", "")) for one in networks]
    lines = _scores(titles, networks)
    low = dict.fromkeys(n for n, one in zip(titles, networks, strict=True) if not one["dice"] > one["floor"])
    all_low = all(not one["dice"] > one["floor"] for one in networks)
    told = _lines(records, names if several and names else [""] * len(records)) if records else []
    whole = "\n".join(filter(None, told))
    return {
        "caption": _with_caveats([note, *lines], also=" ".join([whole, *names])),
        "provenance": whole,
        "stamp": ("untrained" if all_low else f"untrained: {', '.join(low)}".rstrip(": ")) if low else "",
    }


def _record(source: Any) -> Any:
    """What is known of the networks of a result, a network, or a table of its scores or its training."""
    if isinstance(source, Mapping):
        return {key: _record(value) for key, value in source.items()}
    if isinstance(source, (list, tuple)):
        return [_record(one) for one in source]
    if isinstance(source, nn.Module | DataFrame):
        return dict(source.attrs) if isinstance(source, DataFrame) else {"network": score_of(source)}
    return getattr(source, "provenance", source)


def _networks(record: Any) -> Iterator[Mapping[str, Any]]:
    """The records of `mark_scored` in a provenance, in order."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            if key == "network" and isinstance(value, Mapping) and "dice" in value:
                yield value
            else:
                yield from _networks(value)
    elif isinstance(record, (list, tuple)):
        for one in record:
            yield from _networks(one)


def _scores(names: Sequence[str], networks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for all networks of equal length of training and seed: their test scores."""
    lines: dict[str, dict[str, None]] = {}
    for name, one in zip(names, networks, strict=True):
        trained = [f"{one['steps']} steps"] if "steps" in one else []
        trained += [f"seed {one['seed']}"] if "seed" in one else []
        where = f" of {one['sites']}" if one.get("sites") else ""
        low = "" if one["dice"] > one["floor"] else f", below the floor of {one['floor']:.2f}"
        told = f"{name} {one.get('split', 'test')} Dice {one['dice']:.2f} (n = {one['patients']}{where}){low}".lstrip()
        lines.setdefault(", ".join(trained), {})[told] = None
    return [f"{trained}: {'; '.join(told)}".removeprefix(": ") for trained, told in lines.items()]


def caption(provenance: Mapping[str, Any], note: str = "") -> str:
    """One paragraph that names weights, data, layer, parameters and versions; notes stand on their own lines.

    Hashes are cut to 12 characters, paths to their last part: no figure names a machine or its user.

    Args:
        provenance: a result's provenance; nested mappings are flattened. The key `networks` may hold one record a
            network, by name; what they share is then said once.
        note: a sentence to add, for example which run the network comes from.
    """
    return _with_caveats([note, *_lines([provenance], [""])])


def _lines(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    if len(records) == 1 and records[0].get("networks"):
        rest = {key: value for key, value in records[0].items() if key != "networks"}
        own = records[0]["networks"]
        return [*_lines(list(own.values()), list(own)), " · ".join(_parts(rest))]
    own, common = _apart([_parts(record) for record in records])
    lines = [" · ".join(parts) for parts in own]
    lines = [f"{name}: {line}" if name and line else line for name, line in zip(names, lines, strict=True)]
    return [*lines, " · ".join(common)]


def _apart(lists: Sequence[list[Any]]) -> tuple[list[list[Any]], list[Any]]:
    """What each list has of its own, and what several share."""
    common = [one for one in lists[0] if len(lists) > 1 and all(one in other for other in lists)]
    return [[one for one in each if one not in common] for each in lists], common


def _with_caveats(lines: Sequence[str], also: str = "") -> str:
    """The lines, then the sentences owed to a reader by the regularizers that these name (`Regularizer.caveat`)."""
    lines = [line for line in lines if line]
    text = " ".join([*lines, also]).lower()
    return "\n".join([*lines, *(owed for name, owed in attributes("regularizer", "caveat").items() if name in text)])


def _parts(provenance: Mapping[str, Any]) -> list[str]:
    return [f"{key.replace('_', ' ')} {text}" for key, text in _flat(provenance)]


def plain(text: str) -> str:
    """Text without full hashes and without the folders of absolute paths."""
    words = [
        re.split(r"[\\/]", word.rstrip("\\/"))[-1] if _ABSOLUTE.match(word) and len(word) > 1 else word
        for word in text.split(" ")
    ]
    return _HASH.sub(lambda match: match.group()[:12], " ".join(words))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flat(value, "" if key in ("versions", "parameters", "settings") else f"{name} ")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            own, common = _apart([_flat(item) for item in value if isinstance(item, Mapping)])
            pairs += [(f"{name.removesuffix('s')} {n} {k}", text) for n, one in enumerate(own, 1) for k, text in one]
            pairs += common
        elif isinstance(value, (list, tuple)):
            more = f", … ({len(value)} in all)" if len(value) > 4 else ""
            pairs.append((name, ", ".join(plain(str(one)) for one in value[:4]) + more))
        elif value is not None and value != "":
            pairs.append((name, plain(f"{value:.4g}" if isinstance(value, float) else str(value))))
    return pairs
