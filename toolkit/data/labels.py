"""Label values: whole numbers that the task declares, or an error with the one-line remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from toolkit.errors import ConfigError, DataError


def checked_classes(classes: Mapping[int, str] | Mapping[str, str] | Sequence[str]) -> dict[int, str]:
    """Class names by index, 0 first; text keys (from JSON) become numbers, a plain list is numbered from 0."""
    items = classes.items() if isinstance(classes, Mapping) else enumerate(classes)
    try:
        named = {int(index): str(name) for index, name in items}
    except (TypeError, ValueError) as error:
        what = f"Class numbers must be whole numbers: {classes!r}."
        raise ConfigError(what, fix='Write {0: "background", 1: "tumour"}.') from error
    if sorted(named) != list(range(len(named))) or not 2 <= len(named) <= 256:
        what = f"Classes must be numbered 0 (background), 1, 2, ... without gaps, not {sorted(named)}."
        fix = "Renumber them and give label_values={stored value: class number} for what the files hold."
        raise ConfigError(what, where="classes", fix=fix)
    if len(set(named.values())) < len(named):
        raise ConfigError(f"Two classes share a name: {named}.", where="classes", fix="Name each class once.")
    return dict(sorted(named.items()))


def checked_regions(
    regions: Mapping[str, Sequence[int]] | None, classes: Mapping[int, str]
) -> dict[str, tuple[int, ...]] | None:
    """Regions by name as sorted class indices (None stays None)."""
    if regions is None:
        return None
    if not regions:
        raise ConfigError(f"regions cannot be {regions!r}.", fix='Write {"whole tumour": (1, 2, 3), "core": (1, 3)}.')
    checked = {name: tuple(sorted({int(index) for index in members})) for name, members in regions.items()}
    for name, indices in checked.items():
        if not indices or not set(indices) <= set(classes) - {0}:
            fix = f"Name classes by number, without the background: {dict(classes)}."
            raise ConfigError(f"The region {name!r} cannot be made of {regions[name]!r}.", where="regions", fix=fix)
    return checked


def checked_values(
    values: Mapping[float, int] | Mapping[str, int] | None, classes: Iterable[int]
) -> tuple[tuple[float, int], ...] | None:
    """The stored-value table as sorted pairs (None stays None)."""
    if values is None:
        return None
    if not values:
        fix = "List every stored value, such as {0: 0, 255: 1}, or leave it out."
        raise ConfigError("label_values is empty.", fix=fix)
    pairs = tuple(sorted((float(stored), int(target)) for stored, target in values.items()))
    unknown = sorted({target for _, target in pairs} - set(classes))
    if unknown:
        what = f"label_values leads to the classes {unknown}, which do not exist."
        raise ConfigError(what, fix=f"Known: {sorted(classes)}.")
    return pairs


def class_indices(
    label: np.ndarray, classes: Sequence[int], values: tuple[tuple[float, int], ...] | None, where: str
) -> np.ndarray:
    """Labels as uint8 class indices, by `values` (stored value -> class) where the coding differs; no classes are any."""
    if label.dtype.kind not in "buif":
        raise DataError(f"The label holds {label.dtype} values, not numbers.", where=where, fix="Export it again.")
    if values is not None:
        stored = np.asarray([value for value, _ in values])
        targets = np.asarray([target for _, target in values], dtype=np.uint8)
        position = np.clip(np.searchsorted(stored, label), 0, len(stored) - 1)
        if (unknown := np.unique(label[stored[position] != label])).size:
            what = f"The label has values that label_values does not list: {_some(unknown)}."
            raise DataError(what, where=where, fix=f"Add them to label_values (listed: {_some(stored)}).")
        return targets[position]
    present = np.unique(label)
    if label.dtype.kind == "f":
        what = f"The label is stored as {label.dtype}, although its values are whole numbers."
        fix = f"Store it as uint8, or say what the values mean: {_remedy(present, classes)}."
        if not (np.isfinite(present).all() and (present == np.round(present)).all()):
            what = f"The label is stored as {label.dtype} with values that are no whole numbers ({_some(present)})."
            fix = "It looks like probabilities, or a label that was interpolated: export the label map itself."
        raise DataError(what, where=where, fix=fix)
    allowed = np.asarray(classes if len(classes) else range(256))
    unknown = present[~np.isin(present, allowed)]
    if unknown.size:
        binary = {int(value) for value in present} <= {0, 255} and len(classes) == 2
        known = "a 0/255 mask" if binary else f"classes: {_some(allowed)}"
        fix = f"Say what the values mean: {_remedy(present, classes)}; or correct the file."
        raise DataError(f"The label has values that are no class: {_some(unknown)} ({known}).", where=where, fix=fix)
    return label.astype(np.uint8)


def _some(values: np.ndarray, limit: int = 8) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:limit].tolist())
    return shown + (f", ... ({len(values)} in all)" if len(values) > limit else "")


def _remedy(present: np.ndarray, classes: Sequence[int]) -> str:
    values = [value for value in present.tolist() if np.isfinite(value)][:8]
    pairs = zip(values, classes if len(values) <= len(classes) else range(len(values)), strict=False)
    return "label_values={" + ", ".join(f"{value:g}: {target}" for value, target in pairs) + "}"
