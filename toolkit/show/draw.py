"""`show`, and what `.plot()` and `.figure()` of a result call: the composer of the type, then a backend."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ResultError
from toolkit.files import write_atomically
from toolkit.show import matplotlib_backend, plotly_backend
from toolkit.show.figures import compose, compose_together
from toolkit.show.layout import place
from toolkit.show.panels import Figure

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclasses.dataclass(frozen=True, repr=False)
class Picture:
    """A static figure: a notebook displays it as the last line of a cell; `.save(path)` writes PDF, SVG or PNG."""

    figure: Figure
    dpi: int = 130

    def save(self, path: str | os.PathLike[str], *, dpi: int = 200) -> Path:
        """Write it; the suffix chooses the format."""
        return static_figure(self.figure, path, dpi=dpi)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return matplotlib_backend.render(self.figure, "png", dpi=self.dpi), {"width": place(self.figure).width}

    def __repr__(self) -> str:
        return f"Picture({self.figure.title!r})"


def show(
    *results: Any, names: Sequence[str] | None = None, title: str | None = None, static: bool = False, **options: Any
) -> go.Figure | Picture:
    """One figure of results of one kind side by side, or of a task, a case or a run.

    Nothing is displayed or printed: the figure is returned, and a notebook displays the last line of a cell.

    Args:
        results: one or more of one type, for example the Grad-CAM results of several networks on one image.
        names: one a result; None = what their networks were trained with, numbered where that does not tell them apart.
        title: of the figure; None = what it shows.
        static: True = a picture that outlives the kernel (`.save("figure.pdf")` writes it); False = an interactive
            Plotly figure.
        options: of the composer of the type, for example `scale="shared"`; the functions of `toolkit.figures` list them.

    Raises:
        ResultError: nothing to show, results of several types, another number of names or one twice, or a type without a figure.

    Example:
        >>> tk.show(cam_plain, cam_segreg, names=["plain", "SegReg"], static=True)
    """
    if not results:
        raise ResultError("There is nothing to show.", where="toolkit.show()")
    kinds = list(dict.fromkeys(type(result).__name__ for result in results))
    if len(kinds) > 1:
        fix = "Show one kind at a time."
        raise ResultError(f"Results of several kinds cannot share a figure: {', '.join(kinds)}.", fix=fix)
    if names is not None and not len(results) == len(names) == len(set(names)):
        what = f"{len(results)} results need as many names, all different, not {list(names)}."
        raise ResultError(what, where="names")
    if len(results) == 1 and names is None:
        figure = compose(results[0], **options)
    else:
        figure = compose_together(results[0], results, list(names or default_names(results)), **options)
    if title is not None:
        figure = dataclasses.replace(figure, title=title)
    return Picture(figure) if static else plotly_figure(figure)


def default_names(results: Sequence[Any]) -> list[str]:
    """What the network of each was trained with ("plain" if nothing is recorded); of cases and tasks their own names.

    Numbered where names repeat.
    """
    own = [getattr(one, "id", None) or getattr(one, "name", None) for one in results]
    trained = [[each.name for each in getattr(one, "regularizers", ())] for one in results]  # of runs
    trained = [[*a, *_methods(getattr(b, "provenance", {}))] for a, b in zip(trained, results, strict=True)]
    names = [a or " + ".join(dict.fromkeys(b)) or "plain" for a, b in zip(own, trained, strict=True)]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {number}" for number, name in enumerate(names, 1)]


def _methods(record: Any) -> Iterator[str]:
    """The regularizers that a record of provenance names, those of its stages too."""
    if isinstance(record, Mapping):
        yield from record.get("trained_with", ())
        record = list(record.values())
    for part in record if isinstance(record, (list, tuple)) else ():
        yield from _methods(part)


def plotly_figure(result: Any, **options: Any) -> go.Figure:
    """Interactive figure of a result, or of a `Figure`; nothing is shown or printed."""
    return plotly_backend.draw(compose(result, **options))


def static_figure(result: Any, path: str | os.PathLike[str], *, dpi: int = 200, **options: Any) -> Path:
    """Write the static twin as PDF, SVG or PNG, by the suffix of `path`; no browser is needed."""
    kind = Path(path).suffix.lstrip(".").lower()
    data = matplotlib_backend.render(compose(result, **options), kind, dpi=dpi, where=str(path))
    return write_atomically(path, data, parents=True)
