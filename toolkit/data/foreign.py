"""MONAI's MetaTensor and TorchIO's images as plain arrays with their place in the world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from toolkit.data.geometry import LPS
from toolkit.errors import DataError


def unpacked(value: Any) -> Any:
    """A MetaTensor, a TorchIO image or Subject, or a dict that holds them, as a dict of plain arrays; others unchanged.

    The voxel-to-world matrix (mm, right-anterior-superior) becomes `affine` and `spacing`. An identity without a file
    is what both libraries put where nothing is known, so it counts as unknown.
    """
    if _is_foreign(value):
        return _fields(value)
    if not isinstance(value, Mapping) or not any(_is_foreign(one) for one in value.values()):
        return value
    entries = dict(value)
    for name, kind in (("image", "intensity"), ("label", "label")):
        if name not in entries:
            found = [key for key, one in entries.items() if _kind(one) == kind]
            if len(found) > 1 and name == "image":
                what = f"A Subject with the images {', '.join(map(str, found))} needs one called 'image'."
                raise DataError(what, fix="Join the channels in one ScalarImage and call it 'image'.")
            if len(found) == 1:
                entries[name] = entries.pop(found[0])
    plain = {key: _fields(one)["image"] if _is_foreign(one) else one for key, one in entries.items()}
    image = entries.get("image")
    return {**(_fields(image) if _is_foreign(image) else {}), **plain}


def _is_foreign(value: Any) -> bool:
    if isinstance(value, Mapping):  # a collated TorchIO image
        return {"data", "affine"} <= set(value)
    return hasattr(value, "affine") and (hasattr(value, "meta") or hasattr(value, "data")) and not hasattr(value, "id")


def _kind(value: Any) -> str:
    """The type of a TorchIO image, "intensity" or "label"; "" of anything else."""
    kind = value.get("type", "") if isinstance(value, Mapping) else getattr(value, "type", "")
    kind = kind[0] if isinstance(kind, (list, tuple)) and kind else kind
    return kind if isinstance(kind, str) else ""


def _fields(value: Any) -> dict[str, Any]:
    meta = value if isinstance(value, Mapping) else getattr(value, "meta", {})
    data = value["data"] if isinstance(value, Mapping) else value if isinstance(value, Tensor) else value.data
    data = data.as_tensor() if hasattr(data, "as_tensor") else data
    source = meta.get("path", meta.get("filename_or_obj", getattr(value, "path", None)))
    matrix = value["affine"] if isinstance(value, Mapping) else value.affine
    affine = np.asarray(matrix.cpu() if isinstance(matrix, Tensor) else matrix, dtype=np.float64)
    affine = LPS @ affine if str(meta.get("space", "RAS")).upper() == "LPS" else affine
    if affine.ndim == 3:
        sources = list(source) if isinstance(source, (list, tuple)) else [source] * len(affine)
        places = [_place(one, file) for one, file in zip(affine, sources, strict=True)]
        return {"image": data, **{name: [place.get(name) for place in places] for name in places[0]}}
    return {"image": data, **_place(affine, source)}


def _place(affine: np.ndarray, source: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"affine": None, "spacing": None, "source": str(source or "")}
    if source or not np.array_equal(affine, np.eye(len(affine))):
        spacing = tuple(float(length) for length in np.linalg.norm(affine[:-1, :-1], axis=0))
        fields |= {"affine": affine, "spacing": spacing}
    return fields
