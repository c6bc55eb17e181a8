"""Schematics of SelfReg-UNet: which blocks the labels reach (Fig. 1a), and the two losses (Fig. 2), in our drawing."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING, Any

from toolkit.show import colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCKS = {
    **{f"encoder.{k}": (0.0, float(4 - k)) for k in (1, 2, 3, 4)},
    "bottleneck": (2.0, -1.0),
    **{f"decoder.{k}": (4.0, float(4 - k)) for k in (4, 3, 2, 1)},
}
_WIDTH, _HEIGHT = 1.5, 0.56


def asymmetric_supervision() -> bytes:
    """PNG of a U-shaped network shaded by its distance from the labels, as in SelfReg-UNet's Fig. 1a."""
    axes, finish = _canvas(7.6, 3.9, (-0.95, 7.0), (-1.5, 3.7))
    order = list(_BLOCKS)
    for index, name in enumerate(order):
        _block(axes, name, alpha=0.12 + 0.75 * index / (len(order) - 1))
    _skeleton(axes)
    axes.annotate(
        "labels",
        (4.0 + _WIDTH / 2, 3.0),
        (6.0, 3.0),
        va="center",
        fontsize=10,
        color=colours.category(1),
        arrowprops={"arrowstyle": "->", "color": colours.category(1), "lw": 2},
    )
    axes.text(
        -0.85,
        3.5,
        "darker = nearer to the labels along the backward path without skips",
        fontsize=8.5,
        color=colours.FAINT,
    )
    return finish()


def self_regularization() -> bytes:
    """PNG of both losses, as in SelfReg-UNet's Fig. 2: who teaches whom (a), and the halves of one block (b)."""
    axes, finish = _canvas(11.2, 3.9, (-0.95, 11.6), (-1.5, 3.7))
    for name in _BLOCKS:
        _block(axes, name, colour=1 if name == "decoder.1" else 7 if name == "encoder.1" else 0, alpha=0.35)
    _skeleton(axes)
    teacher = _BLOCKS["decoder.1"]
    for name, (x, y) in _BLOCKS.items():
        if name not in ("decoder.1", "encoder.1"):
            side = -_WIDTH / 2 if x == teacher[0] else _WIDTH / 2
            _arrow(
                axes,
                (teacher[0] - _WIDTH / 2, teacher[1] - 0.05),
                (x + (side if x != teacher[0] else -_WIDTH / 2), y + 0.1),
            )
    axes.text(-0.85, 3.5, "(a) SCR: the last block, detached, teaches seven others", fontsize=9.5)
    _halves(axes)
    return finish()


def _halves(axes: Axes) -> None:
    """The channels of one block, sorted by score, and the pairs that the distillation draws together."""
    axes.text(6.3, 3.5, "(b) IFD: channels sorted by score, first half and second half", fontsize=9.5)
    for index in range(8):
        x, top = 7.0 + index % 4, index < 4
        y = 2.3 if top else 0.6
        axes.add_patch(_rectangle(x - 0.36, y - 0.3, 0.72, 0.6, 2 if top else 3, 0.45))
        axes.text(x, y, f"s{index + 1}", ha="center", va="center", fontsize=9, color=colours.TEXT)
        if top:
            axes.annotate("", (x, 0.92), (x, 1.98), arrowprops={"arrowstyle": "<->", "color": colours.FAINT})
    axes.text(6.3, -0.1, "squared difference of the k-th best channel and the (k + C/2)-th;", fontsize=8.5)
    axes.text(6.3, -0.5, "the gradient reaches both (the text suggests the second half only).", fontsize=8.5)


def _canvas(width: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[Axes, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.set_axis_off()

    def finish() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    return axes, finish


def _rectangle(x: float, y: float, width: float, height: float, colour: int, alpha: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    face = colours.category(colour)
    return FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0.0,rounding_size=0.06",
        linewidth=1.0,
        edgecolor=face,
        facecolor=(*(int(face[i : i + 2], 16) / 255 for i in (1, 3, 5)), alpha),
    )


def _block(axes: Axes, name: str, *, colour: int = 0, alpha: float = 0.3) -> None:
    x, y = _BLOCKS[name]
    axes.add_patch(_rectangle(x - _WIDTH / 2, y - _HEIGHT / 2, _WIDTH, _HEIGHT, colour, alpha))
    axes.text(
        x,
        y,
        name,
        ha="center",
        va="center",
        fontsize=9.5,
        color="white" if colour == 0 and alpha > 0.6 else colours.TEXT,
    )


def _skeleton(axes: Axes) -> None:
    """Down the encoder, across the bottleneck, up the decoder, and the skips."""
    names = list(_BLOCKS)
    for first, second in itertools.pairwise(names):
        (x, y), (u, v) = _BLOCKS[first], _BLOCKS[second]
        down = v < y
        start = (x, y + (-_HEIGHT / 2 if down else _HEIGHT / 2)) if x == u or down else (x + _WIDTH / 2, y)
        end = (u, v + (_HEIGHT / 2 if down else -_HEIGHT / 2)) if x == u or not down else (u - _WIDTH / 2, v)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colours.TEXT, "lw": 1.2})
    for k in (1, 2, 3, 4):
        (x, y), (u, _) = _BLOCKS[f"encoder.{k}"], _BLOCKS[f"decoder.{k}"]
        axes.plot([x + _WIDTH / 2, u - _WIDTH / 2], [y, y], color=colours.FAINT, lw=0.9, linestyle=":")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "->",
            "color": colours.category(1),
            "lw": 1.0,
            "alpha": 0.8,
            "connectionstyle": "arc3,rad=0.12",
        },
    )
