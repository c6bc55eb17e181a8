"""Schematics of two methods in our drawing: cooperative training with masked codes, and both stages of Med-DisSeg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from toolkit.show import colours
from toolkit.show.schematics import _canvas, _rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NETWORK, _HARD, _OUTPUT, _DATA = 0, 1, 2, colours.GREY  # indices of the palette
_SIZE = (1.08, 0.62)
Boxes = Mapping[str, tuple[float, float, str, int]]  # name -> centre x, centre y, text, colour
Arrow = tuple[str, str, int]  # from, to, colour


def cooperative_training() -> bytes:
    """PNG of the fast and slow networks with their hard examples, as in Fig. 1 of Chen et al., MICCAI 2021."""
    axes, finish = _canvas(11.0, 4.3, (-0.85, 12.9), (-0.35, 5.05))
    axes.add_patch(_rectangle(9.95, 0.15, 1.2, 4.4, _NETWORK, 0.30))
    axes.text(10.55, 2.4, "slow\nnetwork\nC", ha="center", va="center", fontsize=10, color=colours.TEXT)
    _boxes(axes, _COOPERATIVE)
    _arrows(axes, _COOPERATIVE, _COOPERATIVE_ARROWS)
    for y, color in ((4.2, colours.FAINT), (3.0, colours.FAINT), (1.8, _HARD), (0.6, _HARD)):
        shade = colours.category(color) if isinstance(color, int) else color
        axes.annotate("", (9.93, y), (9.56, y), arrowprops={"arrowstyle": "->", "color": shade, "lw": 1.3})
        axes.annotate("", (11.52, y), (11.17, y), arrowprops={"arrowstyle": "->", "color": shade, "lw": 1.3})
    axes.text(-0.7, 4.75, "standard pass: four losses", fontsize=9.5, color=colours.TEXT)
    axes.text(
        -0.7,
        1.75,
        "hard examples: masked codes,\ndecoded, then constants",
        fontsize=9,
        va="center",
        color=colours.category(_HARD),
    )
    return finish()


_COOPERATIVE: Boxes = {
    "image": (0.0, 3.0, "image x", _DATA),
    "encoder": (1.5, 3.0, "E", _NETWORK),
    "z_i": (3.0, 3.0, "$z_i$", _DATA),
    "decoupler": (4.5, 3.0, "H", _NETWORK),
    "z_s": (6.0, 3.0, "$z_s$", _DATA),
    "decoder": (7.5, 3.0, "$D_s$", _NETWORK),
    "p": (9.0, 3.0, "p", _DATA),
    "image decoder": (4.5, 4.2, "$D_i$", _NETWORK),
    "x'": (6.0, 4.2, "x'", _OUTPUT),
    "label": (9.0, 4.2, "label y", _DATA),
    "masked shape": (6.0, 1.8, r"$z_s \cdot m_s$", _HARD),
    "decoder again": (7.5, 1.8, "$D_s$", _NETWORK),
    "p hat": (9.0, 1.8, r"$\hat{p}$", _HARD),
    "masked image": (3.0, 0.6, r"$z_i \cdot m_i$", _HARD),
    "image decoder again": (4.5, 0.6, "$D_i$", _NETWORK),
    "x hat": (6.0, 0.6, r"$\hat{x}$", _HARD),
    "fast network": (7.5, 0.6, "E, H, $D_s$", _NETWORK),
    "p bar": (9.0, 0.6, r"$\bar{p}$", _DATA),
    "y'": (12.1, 4.2, "y'", _OUTPUT),
    "p'": (12.1, 3.0, "p'", _OUTPUT),
    "hard shape": (12.1, 1.8, r"C($\hat{p}$)", _OUTPUT),
    "hard image": (12.1, 0.6, r"C($\bar{p}$)", _OUTPUT),
}
_COOPERATIVE_ARROWS: Sequence[Arrow] = (
    ("image", "encoder", _DATA),
    ("encoder", "z_i", _DATA),
    ("z_i", "decoupler", _DATA),
    ("decoupler", "z_s", _DATA),
    ("z_s", "decoder", _DATA),
    ("decoder", "p", _DATA),
    ("z_i", "image decoder", _DATA),
    ("image decoder", "x'", _DATA),
    ("z_s", "masked shape", _HARD),
    ("masked shape", "decoder again", _HARD),
    ("decoder again", "p hat", _HARD),
    ("z_i", "masked image", _HARD),
    ("masked image", "image decoder again", _HARD),
    ("image decoder again", "x hat", _HARD),
    ("x hat", "fast network", _HARD),
    ("fast network", "p bar", _HARD),
)


def med_disseg_stages() -> bytes:
    """PNG of Med-DisSeg's two stages as its released code runs them: the decoders are concatenated, not summed."""
    axes, finish = _canvas(11.0, 5.9, (-0.85, 12.9), (-1.75, 5.75))
    _boxes(axes, _STAGES)
    _arrows(axes, _STAGES, _STAGE_ARROWS)
    _gathered(axes, _STAGES, [f"elat {k}" for k in (1, 2, 3, 4)], "first mask")
    _gathered(axes, _STAGES, ["small", "middle", "large"], "joined")
    axes.text(-0.7, 5.45, "stage 1", fontsize=10, color=colours.TEXT)
    axes.text(-0.7, 2.75, "stage 2", fontsize=10, color=colours.TEXT)
    axes.text(0.88, 3.6, "weights of\nthe blocks", fontsize=8.5, color=colours.FAINT, ha="right", va="center")
    axes.annotate("", (1.0, 2.5), (1.0, 4.6), arrowprops={"arrowstyle": "->", "color": colours.FAINT, "lw": 1.2})
    axes.text(10.9, 1.1, "training only", fontsize=8.5, color=colours.FAINT, va="center")
    axes.text(8.75, 0.45, "foreground and background\nguide every CDFA", fontsize=8.5, color=colours.FAINT, va="center")
    return finish()


_COLUMNS = (1.8, 3.3, 4.8, 6.3)
_STAGES: Boxes = {
    "views": (0.0, 4.8, "image,\nstrong view", _DATA),
    **{f"first {k}": (x, 4.8, f"Block {k}", _NETWORK) for k, x in enumerate(_COLUMNS, 1)},
    **{f"elat {k}": (x, 3.7, "ELAT", _NETWORK) for k, x in enumerate(_COLUMNS, 1)},
    "first loss": (8.2, 4.8, "dispersive", _HARD),
    "first mask": (8.2, 3.7, "fused mask", _OUTPUT),
    "image": (0.0, 2.1, "image", _DATA),
    **{f"second {k}": (x, 2.1, f"Block {k}", _NETWORK) for k, x in enumerate(_COLUMNS, 1)},
    **{f"dilated {k}": (x, 1.1, "dilated", _NETWORK) for k, x in enumerate(_COLUMNS, 1)},
    **{f"cdfa {k}": (x, 0.1, f"CDFA {k}", _NETWORK) for k, x in enumerate(_COLUMNS, 1)},
    "small": (2.55, -0.95, "CBAT small", _NETWORK),
    "middle": (4.05, -0.95, "middle", _NETWORK),
    "large": (5.55, -0.95, "large", _NETWORK),
    "joined": (8.2, -0.95, "joined", _NETWORK),
    "mask": (9.8, -0.95, "mask", _OUTPUT),
    "second loss": (8.2, 2.1, "dispersive", _HARD),
    "decoupled": (8.2, 1.1, "decoupling", _NETWORK),
    "auxiliary": (9.95, 1.1, "three maps", _OUTPUT),
}
_STAGE_ARROWS: Sequence[Arrow] = (
    ("views", "first 1", _DATA),
    ("image", "second 1", _DATA),
    *((f"{stage} {k}", f"{stage} {k + 1}", _DATA) for stage in ("first", "second") for k in (1, 2, 3)),
    *((f"first {k}", f"elat {k}", _DATA) for k in (1, 2, 3, 4)),
    *((f"second {k}", f"dilated {k}", _DATA) for k in (1, 2, 3, 4)),
    *((f"dilated {k}", f"cdfa {k}", _DATA) for k in (1, 2, 3, 4)),
    *((f"cdfa {k + 1}", f"cdfa {k}", _DATA) for k in (1, 2, 3)),
    ("cdfa 1", "small", _DATA),
    ("cdfa 2", "small", _DATA),
    ("cdfa 2", "middle", _DATA),
    ("cdfa 3", "middle", _DATA),
    ("cdfa 3", "large", _DATA),
    ("cdfa 4", "large", _DATA),
    ("joined", "mask", _DATA),
    ("first 4", "first loss", _HARD),
    ("second 4", "second loss", _HARD),
    ("second 4", "decoupled", _DATA),
    ("decoupled", "auxiliary", _DATA),
    ("decoupled", "cdfa 4", _DATA),
)


def _boxes(axes: Axes, boxes: Boxes) -> None:
    width, height = _SIZE
    for x, y, text, colour in boxes.values():
        alpha = 0.30 if colour == _NETWORK else 0.22
        axes.add_patch(_rectangle(x - width / 2, y - height / 2, width, height, colour, alpha))
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colours.TEXT)


def _arrows(axes: Axes, boxes: Boxes, arrows: Sequence[Arrow]) -> None:
    """Straight arrows from border to border: sideways between boxes of one row, down or up between rows."""
    width, height = _SIZE
    for first, second, colour in arrows:
        (x, y, *_), (u, v, *_) = boxes[first], boxes[second]
        across, down = (u > x) - (u < x), (v > y) - (v < y)
        if y == v or abs(u - x) > width:
            start, end = (x + across * width / 2, y), (u - across * width / 2, v)
        else:
            start, end = (x, y + down * height / 2), (u, v - down * height / 2)
        shade = colours.FAINT if colour == _DATA else colours.category(colour)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": shade, "lw": 1.3})


def _gathered(axes: Axes, boxes: Boxes, names: Sequence[str], target: str) -> None:
    """Several boxes of one row feed one more: a line below them that ends in an arrow."""
    below = boxes[target][1] - _SIZE[1] / 2 - 0.2
    for name in names:
        axes.plot([boxes[name][0]] * 2, [boxes[name][1] - _SIZE[1] / 2, below], color=colours.FAINT, lw=1.3)
    ends = [boxes[names[0]][0], boxes[target][0]]
    axes.plot(ends, [below, below], color=colours.FAINT, lw=1.3)
    end = (boxes[target][0], boxes[target][1] - _SIZE[1] / 2)
    axes.annotate("", end, (end[0], below), arrowprops={"arrowstyle": "->", "color": colours.FAINT, "lw": 1.3})
