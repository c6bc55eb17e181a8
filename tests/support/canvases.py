"""Where the areas of an explorer's picture lie, for tests that click on them."""

from __future__ import annotations

from toolkit.show.widgets.canvas import Area, Canvas


def area_of(canvas: Canvas, name: str) -> Area:
    """The first area of this name."""
    return next(area for area in canvas.areas if area.name == name)


def centre_of(area: Area, row: int = 0, column: int = 0) -> tuple[float, float]:
    """The middle of a cell, in pixels of the picture."""
    across, down = (column + 0.5) / area.columns, (row + 0.5) / area.rows
    return area.left + across * area.width, area.top + down * area.height
