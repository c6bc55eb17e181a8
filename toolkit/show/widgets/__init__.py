"""Explorers for notebooks: thin interactive views over the public analysis calls.

Each call returns an explorer whose state is plain Python: read it with `explorer.state`, change it with
`explorer.set(...)`, take the current picture with `explorer.compose()`. Shown as the last line of a cell it draws its
controls and the picture, and below them a static copy that stays readable when the notebook is reopened without a kernel.
"""

from __future__ import annotations

from toolkit.show.widgets.cam import CamExplorer, cam_explorer
from toolkit.show.widgets.drift import DriftExplorer, drift_explorer
from toolkit.show.widgets.mask import MaskExplorer, mask_explorer
from toolkit.show.widgets.monitor import TrainingMonitor, training_monitor
from toolkit.show.widgets.similarity import SimilarityExplorer, similarity_explorer
from toolkit.show.widgets.state import Control, Explorer

__all__ = [
    "CamExplorer",
    "Control",
    "DriftExplorer",
    "Explorer",
    "MaskExplorer",
    "SimilarityExplorer",
    "TrainingMonitor",
    "cam_explorer",
    "drift_explorer",
    "mask_explorer",
    "similarity_explorer",
    "training_monitor",
]
