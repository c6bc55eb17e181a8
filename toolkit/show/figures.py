"""Every figure by name, public as `toolkit.figures`: each function returns a `Figure` for `toolkit.show`.

`toolkit.show(result)` finds the function by the type of the result; call one here for a figure that needs several
tables, or for its options.
"""

from toolkit.arguments import doors
from toolkit.show.captions import caption, captions
from toolkit.show.compose import compose, compose_together, stacked
from toolkit.show.compose_attribution import attribution
from toolkit.show.compose_checks import (
    classifier_variability,
    faithfulness,
    gaussianity,
    randomised_weights,
    regularizer_health,
)
from toolkit.show.compose_compare import collapse, comparison, layer_similarity, transfer
from toolkit.show.compose_data import case, task
from toolkit.show.compose_dispersion import active_band, collapses, qualitative
from toolkit.show.compose_drift import drift, drifts
from toolkit.show.compose_explain import grad_cam, grad_cams, masked_latent
from toolkit.show.compose_features import features
from toolkit.show.compose_masking import gallery, masked_grid, masking_curves, masking_summary
from toolkit.show.compose_measure import channel_similarities, channel_similarity, projection, projections
from toolkit.show.compose_robustness import score_boxes, score_means, score_table
from toolkit.show.compose_training import run, scores_by_site, training_curves, transfer_matrices
from toolkit.show.compose_transfer import classifier_variabilities, forward_transfer, transfer_scatter
from toolkit.show.panels import Axes, Bars, Boxes, Figure, Heatmap, Image, Intervals, Lines, Panel, Scatter, Series

__all__ = [
    "Axes",
    "Bars",
    "Boxes",
    "Figure",
    "Heatmap",
    "Image",
    "Intervals",
    "Lines",
    "Panel",
    "Scatter",
    "Series",
    "active_band",
    "attribution",
    "caption",
    "captions",
    "case",
    "channel_similarities",
    "channel_similarity",
    "classifier_variabilities",
    "classifier_variability",
    "collapse",
    "collapses",
    "comparison",
    "compose",
    "compose_together",
    "drift",
    "drifts",
    "faithfulness",
    "features",
    "forward_transfer",
    "gallery",
    "gaussianity",
    "grad_cam",
    "grad_cams",
    "layer_similarity",
    "masked_grid",
    "masked_latent",
    "masking_curves",
    "masking_summary",
    "projection",
    "projections",
    "qualitative",
    "randomised_weights",
    "regularizer_health",
    "run",
    "score_boxes",
    "score_means",
    "score_table",
    "scores_by_site",
    "stacked",
    "task",
    "training_curves",
    "transfer",
    "transfer_matrices",
    "transfer_scatter",
]

doors(globals())
