"""Colours of every figure: one palette for categories, three perceptually even scales, all safe for colour blindness."""

from __future__ import annotations

import numpy as np

# Okabe-Ito without black and yellow, which are hard to read as lines on white.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#7F7F7F")
GREY = 7  # index of the neutral colour
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "line-ns-open")
TEXT, FAINT, GRID, STAMP = "#1f2933", "#5f6b76", "#dfe4e8", "#b3261e"

_VIRIDIS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)
_BLUE_WHITE_RED = (
    (5, 48, 97),
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (247, 247, 247),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
    (103, 0, 31),
)
_BLUE_TO_RED_OVERLAY = (
    (33, 70, 200, 0.90),
    (48, 110, 225, 0.68),
    (80, 150, 240, 0.40),
    (120, 180, 250, 0.12),
    (200, 200, 200, 0.0),
    (250, 180, 120, 0.12),
    (245, 130, 70, 0.40),
    (230, 80, 40, 0.68),
    (205, 20, 30, 0.90),
)
_HEAT_OVERLAY = ((250, 180, 120, 0.0), *_BLUE_TO_RED_OVERLAY[5:])
_GREY = ((0, 0, 0), (255, 255, 255))

SCALES: dict[str, tuple[tuple[float, ...], ...]] = {
    "sequential": _VIRIDIS,
    "diverging": _BLUE_WHITE_RED,
    "diverging_overlay": _BLUE_TO_RED_OVERLAY,
    "positive_overlay": _HEAT_OVERLAY,
    "grey": _GREY,
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
    stops = np.array([(*stop[:3], stop[3] if len(stop) > 3 else 1.0) for stop in SCALES[scale]], dtype=float)
    stops[:, 3] *= 255
    span = high - low if high > low else 1.0
    position = np.clip((np.nan_to_num(values, nan=low) - low) / span, 0, 1) * (len(stops) - 1)
    grid = np.arange(len(stops))
    channels = [np.interp(position, grid, stops[:, channel]) for channel in range(4)]
    colours = np.round(np.stack(channels, axis=-1)).astype(np.uint8)
    colours[np.isnan(values), 3] = 0
    return colours


def plotly_scale(scale: str) -> list[list[float | str]]:
    """The scale as Plotly's list of [position, colour]."""
    stops = SCALES[scale]
    return [
        [
            index / (len(stops) - 1),
            f"rgba({int(stop[0])},{int(stop[1])},{int(stop[2])},{stop[3] if len(stop) > 3 else 1})",
        ]
        for index, stop in enumerate(stops)
    ]
