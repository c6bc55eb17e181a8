"""`ImageExplorer`: what explorers of images share: case and slice, window and level, zoom and pan, values under the cursor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.show.slices import View
from toolkit.show.widgets.canvas import WHOLE, Area, Canvas, Lens, enlarged, grey, heated, outlined
from toolkit.show.widgets.image_stacks import ImageStacks, Page, image_of
from toolkit.show.widgets.state import Control, Explorer

CLOSEST = 1 / 16  # of the image that is seen at least
STEP = 1.25  # of the wheel


class ImageExplorer(Explorer):
    """Base of the explorers that show a slice; `lens` is what their tiles show of it."""

    def __init__(self, images: ImageStacks | None) -> None:
        super().__init__()
        self.lens: Lens = WHOLE
        self._ranges: dict[str, tuple[float, float, float, float]] = {}
        self._stacks = images
        if images is not None:
            stack = next(iter(images.stacks))
            self._values = {"case": stack, "slice": images.fullest(stack), "contour": 2}
            self._open()

    def image_controls(self) -> list[Control]:
        """Controls of the image itself, the first of every such explorer."""
        if self._stacks is None:
            return []
        stacks, group = self._stacks.stacks, "image"
        last = len(stacks[self._values["case"]]) - 1
        low, high, *_ = self._range()
        step, walk, grey = (high - low) / 200, "also arrow up and down on the picture", "the value in middle grey"
        span: dict[str, Any] = {"low": step, "high": high - low, "step": step}
        return [
            Control("case", "case", "choice", tuple((name, name) for name in stacks), group=group),
            Control("slice", "slice", "integer", low=0, high=last, hint=walk, group=group),
            Control("level", "level", "real", low=low, high=high, step=step, hint=grey, group=group),
            Control("window", "window", "real", **span, hint="black to white", group=group),
            Control("contour", "contour width", "integer", low=1, high=5, group=group),
        ]

    def adapt(self, changed: set[str]) -> None:
        """See `Explorer`: another stack opens at its fullest slice, whole and in its own grey range."""
        if "case" in changed and self._stacks is not None:
            self._values["slice"] = self._stacks.fullest(self._values["case"])
            self._open()

    def actions(self) -> list[tuple[str, str, Callable[[], str]]]:
        """See `Explorer`: the way back from a zoom."""
        return [*super().actions(), ("Whole image", "expand", self._whole)]

    def _whole(self) -> str:
        self.zoom(0)
        return "The whole image."

    def _open(self) -> None:
        low, high, dark, bright = self._range()
        self.lens = WHOLE
        self._values |= {
            "level": (dark + bright) / 2,
            "window": min(max(bright - dark, (high - low) / 200), high - low),
        }

    def _range(self) -> tuple[float, float, float, float]:
        """Lowest and highest value of the image, and what is shown black and white at first."""
        page = self.page()
        if page.key not in self._ranges:
            values = np.asarray(image_of(page.item), dtype=np.float32)
            low, high, dark, bright = (float(v) for v in np.nanpercentile(values, (0, 100, 0.5, 99.5)))
            high = high if high > low else low + 1.0
            self._ranges[page.key] = (low, high, *((dark, bright) if bright > dark else (low, high)))
        return self._ranges[page.key]

    def page(self) -> Page:
        assert self._stacks is not None
        stack = self._stacks.stacks[self._values["case"]]
        return stack[min(self._values["slice"], len(stack) - 1)]

    def shades(self, picture: np.ndarray) -> np.ndarray:
        """The picture in grey, (H, W, 3) uint8, by window and level."""
        half = self._values["window"] / 2
        return grey(picture, (self._values["level"] - half, self._values["level"] + half))

    def tile(
        self,
        canvas: Canvas,
        area: str,
        place: tuple[int, int],
        size: tuple[int, int],
        view: View,
        *,
        ground: np.ndarray,
        planes: dict[str, np.ndarray],
        heat: tuple[np.ndarray, tuple[float, float], float, str] | None = None,
        labels: np.ndarray | None = None,
        fill: float = 0.0,
    ) -> None:
        """Put a picture that can be zoomed, dragged and read: `place` is (left, top), `size` (height, width) in pixels.

        `ground` is (H, W, 3) uint8, `planes` the values under the cursor by name, each (h, w), `heat` a map over it
        with its limits, opacity and scale, `labels` (H, W) the classes to outline, `fill` the opacity of their colours
        inside.
        """
        if heat is None:
            pixels = enlarged(ground, size, self.lens)
        else:
            pixels = heated(ground, heat[0], heat[1], size, heat[2], heat[3], self.lens)
        if labels is not None:
            pixels = outlined(pixels, labels, fill=fill, thickness=self._values["contour"], lens=self.lens)
        canvas.paste(pixels, *place)
        canvas.area(Area(area, *place, size[1], size[0]))
        canvas.planes[area] = {"": ground[..., 0], **planes}
        self._view_shown = view

    def _under(self, x: float, y: float) -> tuple[str, float, float] | None:
        """Area, and how far down and across its image a point of the picture lies; None beside all tiles."""
        canvas = self.compose()
        for area in reversed(canvas.areas):
            share = area.share(x, y)
            if share is not None and area.name in canvas.planes:
                top, left, height, width = self.lens
                return area.name, top + share[0] * height, left + share[1] * width
        return None

    def readout(self, x: float, y: float) -> str:
        """See `Explorer`: row, column, millimetres and every value there."""
        if (place := self._under(x, y)) is None:
            return ""
        area, down, across = place
        planes, view = self.compose().planes[area], self._view_shown
        rows, columns = planes[""].shape
        row, column = int(down * rows), int(across * columns)
        words = [f"row {row}, column {column}"]
        if view.mm is not None:
            words.append(f"{(row + 0.5) * view.mm * view.aspect:.1f} x {(column + 0.5) * view.mm:.1f} mm")
        for name, plane in planes.items():
            value = plane[int(down * plane.shape[0]), int(across * plane.shape[1])] if name else None
            if value is not None:
                words.append(f"{name} {self._named(name, value)}")
        return ", ".join(words)

    def _named(self, name: str, value: Any) -> str:
        if name in ("prediction", "reference") and np.ndim(value) == 0:
            classes = self._stacks.classes if self._stacks is not None else {}
            return str(classes.get(int(value), int(value)))
        return " ".join(f"{one:.3g}" for one in np.atleast_1d(value))

    def turned(self, x: float, y: float, steps: float) -> None:
        if (place := self._under(x, y)) is not None:
            self.zoom(STEP**steps, place[1], place[2])

    def zoom(self, times: float, down: float = 0.5, across: float = 0.5) -> ImageExplorer:
        """Come so many times closer to a place of the image, which stays where it is on the page.

        Args:
            times: above 1 = closer; 0 = the whole image again.
            down: place along the height, from 0 to 1.
            across: place along the width.
        """
        top, left, height, width = self.lens
        side = 1.0 if times == 0 else min(1.0, max(CLOSEST, height / times))
        self._look(down - (down - top) / height * side, across - (across - left) / width * side, side)
        return self

    def dragged(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """See `Explorer`: the image follows the mouse."""
        before, after = self._under(*start), self._under(*end)
        if before is not None and after is not None and before[0] == after[0]:
            top, left, side, _ = self.lens
            self._look(top + before[1] - after[1], left + before[2] - after[2], side)

    def _look(self, top: float, left: float, side: float) -> None:
        lens = (min(max(top, 0.0), 1 - side), min(max(left, 0.0), 1 - side), side, side)
        if lens != self.lens:
            self.lens = lens
            self.changed()
