"""Every figure by name, public as `toolkit.figures`: each function returns a `Figure` for `toolkit.show`.

`toolkit.show(result)` finds the function by the type of the result; call one here for a figure that needs several
tables, or for its options. Every function of a `compose_*` module that returns a `Figure` is one of them. All take
`note`, a sentence for the caption; those of one result `name`, and those of several `names`, of the networks.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

from toolkit.show.captions import caption, captions
from toolkit.show.compose import compose, compose_together, stacked
from toolkit.show.compose_masking import masking_summary
from toolkit.show.compose_robustness import score_means
from toolkit.show.panels import Axes, Bars, Boxes, Figure, Heatmap, Image, Intervals, Lines, Panel, Scatter, Series

_COMPOSERS = {
    name: function
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], "toolkit.show.")
    if module.name.startswith("toolkit.show.compose_")
    for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
    if function.__module__ == module.name and not name.startswith("_")
    if inspect.signature(function).return_annotation == "Figure"
}
globals().update(_COMPOSERS)
__all__ = ["Axes", "Bars", "Boxes", "Figure", "Heatmap", "Image", "Intervals", "Lines", "Panel", "Scatter", "Series"]
__all__ += ["caption", "captions", "compose", "compose_together", "masking_summary", "score_means", "stacked"]
__all__ += list(_COMPOSERS)
