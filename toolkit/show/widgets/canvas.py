"""One composed picture: tiles, text, colour bars and the areas that can be clicked, drawn with NumPy and Pillow.

Sending one picture to the browser is several times faster than updating a figure of many traces.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.show.colours import FAINT, GRID, TEXT, class_colour, rgba

LARGEST_BYTES = 450_000  # of one picture; a larger PNG is sent as JPEG
BUSY_BYTES = 200_000  # a JPEG of more shows a picture whose PNG takes longer to pack than to draw
ACCENT = "#D55E00"
Lens = tuple[float, float, float, float]  # top, left, height, width of what a tile shows, as shares of its array
WHOLE: Lens = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Area:
    """A rectangle that reacts to clicks, divided evenly into cells."""

    name: str  # what it is
    left: int  # in pixels of the picture
    top: int  # in pixels of the picture
    width: int  # in pixels
    height: int  # in pixels
    rows: int = 1  # cells along the height
    columns: int = 1  # cells along the width

    def share(self, x: float, y: float) -> tuple[float, float] | None:
        """How far down and across a point lies, from 0 to 1; None outside."""
        across, down = (x - self.left) / self.width, (y - self.top) / self.height
        return (down, across) if 0 <= across < 1 and 0 <= down < 1 else None

    def cell(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, column) of the cell that holds a point, or None outside."""
        place = self.share(x, y)
        return None if place is None else (int(place[0] * self.rows), int(place[1] * self.columns))


class Canvas:
    """A white picture of so many pixels to draw on."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image: Any = Image.new("RGB", (width, height), "white")
        self._draw: Any = ImageDraw.Draw(self.image)
        self.areas: list[Area] = []
        self.planes: dict[str, dict[str, np.ndarray]] = {}  # of a tile's area: what is drawn there, (H, W) by name

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.image.size
        return int(width), int(height)

    def paste(self, pixels: np.ndarray, left: int, top: int) -> None:
        """Put an (h, w, 3) uint8 array."""
        from PIL import Image

        self.image.paste(Image.fromarray(pixels), (left, top))

    def text(
        self,
        left: float,
        top: float,
        words: str,
        *,
        size: int = 13,
        colour: str = TEXT,
        bold: bool = False,
        width: int | None = None,
        anchor: str = "la",
    ) -> None:
        """One line of text, cut with an ellipsis at `width` pixels."""
        font = _font(size, bold)
        if width is not None and font.getlength(words) > width:
            while words and font.getlength(f"{words}…") > width:
                words = words[:-1]
            words = f"{words.rstrip()}…"
        self._draw.text((left, top), words, font=font, fill=colour, anchor=anchor)

    def frame(self, left: int, top: int, width: int, height: int, colour: str = GRID, thickness: int = 1) -> None:
        """A rectangle around (not over) an area."""
        corner = (left + width + thickness - 1, top + height + thickness - 1)
        self._draw.rectangle((left - thickness, top - thickness, *corner), outline=colour, width=thickness)

    def heading(self, title: str, words: str) -> None:
        """The two lines at the top of the picture: what it shows, and a line about that."""
        self.text(14, 6, title, size=15, bold=True)
        self.text(14, 27, words, size=12, colour=FAINT)

    def fill(self, left: int, top: int, width: int, height: int, colour: str) -> None:
        """A filled rectangle; nothing if it has no extent."""
        if width > 0 and height > 0:
            self._draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)

    def bar(self, left: int, top: int, height: int, limits: tuple[float, float], scale: str) -> None:
        """An upright colour bar with its two ends named."""
        ramp = np.linspace(limits[1], limits[0], height)[:, None].repeat(10, 1)
        self.paste(over(np.full((height, 10, 3), 255, np.uint8), rgba(ramp, *limits, scale)), left, top)
        self.frame(left, top, 10, height)
        self.text(left + 14, top - 2, f"{limits[1]:.2g}", size=11, colour=FAINT)
        self.text(left + 14, top + height - 12, f"{limits[0]:.2g}", size=11, colour=FAINT)

    def key(self, left: int, top: int, classes: Sequence[tuple[int, str]]) -> None:
        """Colours of the classes in one line."""
        for label, name in classes:
            self._draw.rectangle((left, top + 3, left + 10, top + 13), fill=class_colour(label))
            self.text(left + 15, top, name, size=12, colour=FAINT)
            left += 30 + int(_font(12, False).getlength(name))

    def area(self, area: Area) -> Area:
        self.areas.append(area)
        return area

    def hit(self, x: float, y: float) -> tuple[str, int, int] | None:
        """(area, row, column) under a point, the newest area first; None outside of all."""
        for area in reversed(self.areas):
            cell = area.cell(x, y)
            if cell is not None:
                return area.name, *cell
        return None

    def encode(self, most: int = LARGEST_BYTES) -> tuple[bytes, str]:
        """(bytes, "png"), or (bytes, "jpeg") if the picture is so busy that its PNG would be large and slow."""
        draft = self._packed("JPEG", quality=90, subsampling=0)  # full colour: thin contours stay sharp
        if len(draft) <= BUSY_BYTES:
            exact = self._packed("PNG", compress_level=1)
            if len(exact) <= most:
                return exact, "png"
        for quality in (75, 50):
            if len(draft) > most:
                draft = self._packed("JPEG", quality=quality)
        return draft, "jpeg"

    def _packed(self, form: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        self.image.save(stream, form, **options)
        return stream.getvalue()

    def png(self) -> bytes:
        """The picture as a well compressed PNG, whatever its size."""
        return self._packed("PNG", optimize=True)


def below_each_other(pictures: Sequence[bytes]) -> bytes:
    """Several PNGs as one."""
    from PIL import Image

    arrays = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in pictures]
    canvas = Canvas(max(one.shape[1] for one in arrays), sum(map(len, arrays)))
    for place, one in enumerate(arrays):
        canvas.paste(one, 0, sum(map(len, arrays[:place])))
    return canvas.png()


def fitted(shape: tuple[int, int], aspect: float, side: int) -> tuple[int, int]:
    """(height, width) in pixels of a tile that shows an array of this shape, the longer edge `side`."""
    height, width = shape[0] * aspect, shape[1] * 1.0
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarged(array: np.ndarray, size: tuple[int, int], lens: Lens = WHOLE) -> np.ndarray:
    """Nearest neighbour in the first two axes of what the lens shows; (h, w, ...) -> (*size, ...)."""
    top, left, height, width = lens
    rows = (top + (np.arange(size[0]) + 0.5) / size[0] * height) * array.shape[0]
    columns = (left + (np.arange(size[1]) + 0.5) / size[1] * width) * array.shape[1]
    return array[rows.astype(int)][:, columns.astype(int)]


def grey(picture: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of an image (H, W) or (H, W, 3), stretched between limits or its extremes."""
    low, high = limits or (float(np.nanmin(picture)), float(np.nanmax(picture)))
    scaled = (np.nan_to_num(picture, nan=low) - low) / (high - low if high > low else 1.0) * 255
    bytes_ = np.clip(scaled, 0, 255).astype(np.uint8)
    return bytes_ if bytes_.ndim == 3 else np.repeat(bytes_[:, :, None], 3, axis=2)


def over(below: np.ndarray, colours: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    """Blend RGBA (H, W, 4) uint8 over RGB (H, W, 3) uint8."""
    alpha = colours[..., 3:].astype(np.float32) * np.float32(opacity / 255)
    return (below * (1 - alpha) + colours[..., :3] * alpha + 0.5).astype(np.uint8)


def heated(
    picture: np.ndarray,
    size: tuple[int, int],
    values: np.ndarray,
    limits: tuple[float, float],
    opacity: float = 1.0,
    scale: str = "diverging_overlay",
    lens: Lens = WHOLE,
) -> np.ndarray:
    """A map of any resolution over an RGB picture, both enlarged to `size` without smoothing."""
    colours = rgba(values, *limits, scale)
    whole = [side / part for side, part in zip(picture.shape[:2], values.shape, strict=True)]
    if lens == WHOLE and picture.shape[0] <= size[0] and all(factor >= 1 and factor.is_integer() for factor in whole):
        blended = over(picture, enlarged(colours, picture.shape[:2]), opacity)  # fewer pixels, and the same ones
        return enlarged(blended, size)
    return over(enlarged(picture, size, lens), enlarged(colours, size, lens), opacity)


def coloured(values: np.ndarray, limits: tuple[float, float], size: tuple[int, int], scale: str) -> np.ndarray:
    """A map alone, in colour; NaN is light grey."""
    return enlarged(over(np.full((*values.shape, 3), 225, np.uint8), rgba(values, *limits, scale)), size)


def outlined(
    pixels: np.ndarray, labels: np.ndarray, *, fill: float = 0.0, thickness: int = 1, lens: Lens = WHOLE
) -> np.ndarray:
    """Contours of a label map (any resolution) inside its classes on an RGB tile; `fill` also tints the inside."""
    wide = enlarged(labels, pixels.shape[:2], lens)
    edge = np.zeros(wide.shape, dtype=bool)
    edge[1:] |= wide[1:] != wide[:-1]
    edge[:, 1:] |= wide[:, 1:] != wide[:, :-1]
    for step in range(2 * thickness - 1):  # by a pixel, up and to the left, then down and to the right
        one, other = (slice(None, -1), slice(1, None)) if step % 2 == 0 else (slice(1, None), slice(None, -1))
        edge[one] |= edge[other].copy()
        edge[:, one] |= edge[:, other].copy()
    drawn = pixels.copy()
    for label in np.unique(labels):
        if label <= 0:
            continue
        inside, colour = wide == label, np.asarray(class_colour(int(label)))
        if fill:
            drawn[inside] = (drawn[inside] * (1 - fill) + colour * fill).astype(np.uint8)
        drawn[edge & inside] = colour
    return drawn


@functools.lru_cache(maxsize=32)
def _font(size: int, bold: bool) -> Any:
    """Matplotlib's own font, found without importing it: it covers every sign that captions use."""
    from PIL import ImageFont

    folder = Path(str(importlib.util.find_spec("matplotlib").origin)).parent  # type: ignore[union-attr]
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(folder / "mpl-data" / "fonts" / "ttf" / name), size)
