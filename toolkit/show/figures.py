"""Every figure by name, public as `toolkit.figures`: each function returns a `Figure` for `toolkit.show`.

`toolkit.show(result)` finds the function by the type of the result; call one here for a figure that needs several
tables, or for its options. Every function of a `compose_*` module that returns a `Figure` is one of them. All take
`note`, a sentence for the caption; those of one result `name`, and those of several `names`, of the networks.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

from toolkit.show.captions import caption, credits
from toolkit.show.compose import compose, compose_together, stacked
from toolkit.show.compose_masking import masking_summary
from toolkit.show.compose_training import score_means
from toolkit.show.panels import Axes, Bars, Boxes, Figure, Heatmap, Image, Intervals, Lines, Panel, Scatter, Series

# What arguments mean that many composers have; added to the docstrings.
_SHARED = {
    "result": "the result that is drawn.",
    "results": "one a network.",
    "names": "of the networks.",
    "name": "of the network, for the title.",
    "evaluations": "per network and test set, the table of `toolkit.evaluate`.",
    "metric": '"dice" or "iou".',
    "pairs": "per base method (and anatomy), the `Transfer`s without and with the method, one a seed.",
    "method": "name of what is added.",
    "case": "of a task.",
    "layers": "layers to draw, default all.",
    "index": "which image of the batch.",
    "position": "slice of a volume; None = where the region or the foreground is largest.",
    "stages": "names of the stages.",
    "title": "of the figure.",
    "note": "sentence for the caption.",
    "side": "longer edge of a picture in pixels.",
    "columns": "panels in a row.",
    "crop": "show the organs and a margin only; False = the whole image, as for maps that light up at its border.",
    "provenance": "the networks by name, or a record of what they and the data are; None = what the tables know.",
}


def _documented(composer: Callable[..., Figure]) -> Callable[..., Figure]:
    """The composer, its docstring with the arguments that it does not explain itself."""
    text, _, errors = (inspect.getdoc(composer) or "").partition("\nRaises:")
    own = [] if "\nArgs:" in text else ["", "Args:"]
    names = inspect.signature(composer).parameters
    missing = [name for name in names if name in _SHARED and f"    {name}: " not in text]
    lines = [text.rstrip(), *own, *(f"    {name}: {_SHARED[name]}" for name in missing)]
    composer.__doc__ = "\n".join([*lines, "", f"Raises:{errors}"] if errors else lines) + "\n"
    return composer


_COMPOSERS = {
    name: _documented(function)
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], "toolkit.show.")
    if module.name.startswith("toolkit.show.compose_")
    for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
    if function.__module__ == module.name and not name.startswith("_")
    if inspect.signature(function).return_annotation == "Figure"
}
globals().update(_COMPOSERS)
__all__ = ["Axes", "Bars", "Boxes", "Figure", "Heatmap", "Image", "Intervals", "Lines", "Panel", "Scatter", "Series"]
__all__ += ["caption", "compose", "compose_together", "credits", "masking_summary", "score_means", "stacked"]
__all__ += list(_COMPOSERS)
