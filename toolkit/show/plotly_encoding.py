"""Numbers and pictures in the compact form in which a Plotly page holds them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

_LEVELS = 127  # maps are sent as signed or unsigned bytes


def png(shades: np.ndarray) -> str:
    """A greyscale or colour picture as a data URL."""
    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.fromarray(shades).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def coded_values(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Values as one byte each (four with gaps) with the colour limits and a hover text that gives the value back."""
    gaps = np.isnan(np.asarray(values, dtype=float))
    span = high - low if high > low else 1.0
    steps = np.clip(np.nan_to_num((np.asarray(values, dtype=float) - low) / span, nan=0.0), 0, 1) * (2 * _LEVELS)
    if low < 0 < high and abs(low + high) <= 1e-9 * span:
        coded = with_gaps(np.round(steps - _LEVELS), gaps, np.int8)
        return {
            "z": coded,
            "zmin": -_LEVELS,
            "zmax": _LEVELS,
            "hovertemplate": f"%{{z}}/{_LEVELS} of {high:.4g}<extra></extra>",
        }
    coded = with_gaps(np.round(steps), gaps, np.uint8)
    start = "" if low == 0 else f"{low:.4g} + "
    return {
        "z": coded,
        "zmin": 0,
        "zmax": 2 * _LEVELS,
        "hovertemplate": f"{start}%{{z}}/{2 * _LEVELS} of {span:.4g}<extra></extra>",
    }


def with_gaps(coded: np.ndarray, gaps: np.ndarray, kind: type) -> np.ndarray:
    """Undefined values get the code that the page draws as a gap."""
    return np.where(gaps, np.nan, coded).astype(np.float32) if gaps.any() else coded.astype(kind)


def ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Three tick values of a colour bar and their texts."""
    texts = [f"{value:.2g}" for value in (low, (low + high) / 2, high)]
    if low < 0 < high and abs(low + high) <= 1e-9 * (high - low):
        return [-_LEVELS, 0, _LEVELS], texts
    return [0, _LEVELS, 2 * _LEVELS], texts


def texts(values: np.ndarray) -> list[list[str]]:
    """Hover texts of a small matrix."""
    return [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]


def small(values: Any) -> Any:
    """Numbers rounded to single precision, so that pages stay small."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" and array.size > 200 else array


def errors(values: Any, low: Any, high: Any) -> dict[str, Any] | None:
    """Error bars from low to high around the values, or none."""
    if low is None or high is None:
        return None
    middle = np.asarray(values, dtype=float)
    return {
        "type": "data",
        "symmetric": False,
        "array": np.maximum(np.asarray(high) - middle, 0),
        "arrayminus": np.maximum(middle - np.asarray(low), 0),
        "thickness": 1.3,
        "width": 3,
    }


def faded(colour: str) -> str:
    """The colour at low opacity, for bands."""
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
