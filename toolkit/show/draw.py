"""From a result to a picture: chooses the composer by the result's class, then the backend."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ResultError
from toolkit.show.panels import Figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Class of the result -> module and function that turn it into panels. A new figure adds one line.
COMPOSERS: dict[str, tuple[str, str]] = {
    "GradCamResult": ("toolkit.show.compose_explain", "grad_cam"),
    "AttributionResult": ("toolkit.show.compose_attribution", "attribution"),
    "Faithfulness": ("toolkit.show.compose_checks", "faithfulness"),
    "RandomisedWeights": ("toolkit.show.compose_checks", "randomised_weights"),
    "Gaussianity": ("toolkit.show.compose_checks", "gaussianity"),
    "ClassifierVariability": ("toolkit.show.compose_checks", "classifier_variability"),
    "RegularizerHealth": ("toolkit.show.compose_checks", "regularizer_health"),
    "MaskedLatent": ("toolkit.show.compose_explain", "masked_latent"),
    "ChannelSimilarity": ("toolkit.show.compose_measure", "channel_similarity"),
    "Projection": ("toolkit.show.compose_measure", "projection"),
    "LayerSimilarity": ("toolkit.show.compose_compare", "layer_similarity"),
    "Collapse": ("toolkit.show.compose_compare", "collapse"),
    "Transfer": ("toolkit.show.compose_compare", "transfer"),
    "Comparison": ("toolkit.show.compose_compare", "comparison"),
    "Features": ("toolkit.show.compose_features", "features"),
    "Drift": ("toolkit.show.compose_drift", "drift"),
}


def compose(result: Any, **options: Any) -> Figure:
    """The backend-neutral figure of a result; a `Figure` is returned as it is.

    Raises:
        ResultError: there is no figure for this class of result.
    """
    if isinstance(result, Figure):
        return result
    for parent in type(result).__mro__:
        if parent.__name__ in COMPOSERS:
            module, function = COMPOSERS[parent.__name__]
            figure: Figure = getattr(importlib.import_module(module), function)(result, **options)
            return figure
    raise ResultError(
        f"There is no figure for a {type(result).__name__}.",
        fix=f"Figures exist for {', '.join(sorted(COMPOSERS))}; others have .table().",
    )


def plotly_figure(result: Any, **options: Any) -> go.Figure:
    """Interactive figure of a result, or of a `Figure`; nothing is shown or printed."""
    from toolkit.show import plotly_backend

    return plotly_backend.draw(compose(result, **options))


def static_figure(result: Any, path: str | os.PathLike[str], *, dpi: int = 200, **options: Any) -> Path:
    """Write the static twin as PDF, SVG or PNG, by the suffix of `path`; no browser is needed.

    Raises:
        ResultError: another suffix, or no figure for this class of result.
    """
    from toolkit.show import matplotlib_backend

    return matplotlib_backend.write(compose(result, **options), path, dpi=dpi)
