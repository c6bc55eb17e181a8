"""Colours of every figure: one palette for categories, three perceptually even scales, all safe for colour blindness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Okabe-Ito without black and yellow, which are hard to read as lines on white.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#7F7F7F")
GREY = 7  # index of the neutral colour
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "line-ns-open")
TEXT, FAINT, GRID, STAMP = "#1f2933", "#5f6b76", "#dfe4e8", "#b3261e"


def _stops(colours: str, opacities: Sequence[float] = (1.0,) * 9) -> tuple[tuple[float, ...], ...]:
    """(red, green, blue, opacity) of evenly spaced colours."""
    return tuple((*bytes.fromhex(colour), opacity) for colour, opacity in zip(colours.split(), opacities, strict=False))


_OVERLAY = _stops(
    "2146c8 306ee1 5096f0 78b4fa c8c8c8 fab478 f58246 e65028 cd141e", (0.9, 0.68, 0.4, 0.12, 0.0, 0.12, 0.4, 0.68, 0.9)
)
# (red, green, blue, opacity) of evenly spaced values
SCALES: dict[str, tuple[tuple[float, ...], ...]] = {
    "sequential": _stops("440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"),  # viridis
    "diverging": _stops("053061 2166ac 4393c3 92c5de f7f7f7 f4a582 d6604d b2182b 67001f"),  # blue, white, red
    "diverging_overlay": _OVERLAY,
    "positive_overlay": ((250, 180, 120, 0.0), *_OVERLAY[5:]),
    "grey": _stops("000000 ffffff"),
}


def category(index: int) -> str:
    """Colour of the index-th category; repeats after seven, the eighth is a neutral grey."""
    return CATEGORIES[index] if index == GREY else CATEGORIES[index % GREY]


def class_category(label: int) -> int:
    """Index of the category of a label value, the same in every figure; background (0) is grey."""
    return (label - 1) % GREY if label > 0 else GREY


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB of a label value, 0 to 255; background (0) is not drawn in pictures."""
    red, green, blue = bytes.fromhex(hex_colour(label)[1:])
    return red, green, blue


def hex_colour(label: int) -> str:
    """The colour of a label value as "#rrggbb"."""
    return category(class_category(label))


def painted(labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: every class in its colour, background black."""
    picture = np.zeros((*labels.shape, 3), np.uint8)
    for label in np.unique(labels[labels > 0]):
        picture[labels == label] = class_colour(int(label))
    return picture


def rgba(values: np.ndarray, low: float, high: float, scale: str) -> np.ndarray:
    """Colours (..., 4) uint8 of an array whose display range is [low, high]; NaN is transparent."""
    stops = np.array(SCALES[scale], dtype=float)
    stops[:, 3] *= 255
    span = high - low if high > low else 1.0
    position = np.clip((np.nan_to_num(values, nan=low) - low) / span, 0, 1) * (len(stops) - 1)
    channels = [np.interp(position, np.arange(len(stops)), stops[:, channel]) for channel in range(4)]
    colours = np.round(np.stack(channels, axis=-1)).astype(np.uint8)
    colours[np.isnan(values), 3] = 0
    return colours


def plotly_scale(scale: str) -> list[list[float | str]]:
    """The scale as Plotly's list of [position, colour]."""
    stops = SCALES[scale]
    return [[index / (len(stops) - 1), f"rgba{stop}".replace(" ", "")] for index, stop in enumerate(stops)]
