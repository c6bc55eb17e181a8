"""A result in a notebook: the static picture, which outlives the kernel, and the interactive figure after it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ResultError
from toolkit.show.captions import caption
from toolkit.show.draw import plotly_figure, static_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go


def both(result: Any, *, width: int = 1000, dpi: int = 110, **options: Any) -> go.Figure:
    """Display the static PNG of a result and return the interactive figure, for the last line of a cell.

    Args:
        result: anything that `toolkit.show.draw.compose` takes.
        width: largest width of the static picture on the page, in pixels.
        dpi: resolution of the static picture.
        options: handed to the composer (titles, notes, scales).

    Raises:
        ResultError: there is no figure for this class of result.
    """
    from IPython.display import Image, display

    with tempfile.TemporaryDirectory() as folder:
        picture = static_figure(result, Path(folder) / "figure.png", dpi=dpi, **options).read_bytes()
    pixels = int.from_bytes(picture[16:20], "big")  # IHDR: the width is the first field of a PNG
    display(Image(picture, format="png", width=min(pixels, width)))
    return plotly_figure(result, **options)


def provenance_line(result: Any) -> None:
    """Display where a result came from, in one small line: data, weights, layers, versions, threads.

    Raises:
        ResultError: the object carries no provenance.
    """
    import html

    from IPython.display import HTML, display

    record = getattr(result, "provenance", None)
    if not isinstance(record, dict):
        raise ResultError(f"A {type(result).__name__} carries no provenance.", fix="Pass a toolkit result.")
    display(HTML(f"<small>{html.escape(caption(record))}</small>"))
