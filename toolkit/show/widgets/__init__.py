"""Explorers for notebooks: thin interactive views over the public analysis calls.

Each call returns an explorer whose state is plain Python: read it with `explorer.state`, change it with
`explorer.set(...)`, take the current picture with `explorer.compose()`. Shown as the last line of a cell it draws its
controls and the picture, and below them a static copy that stays readable when the notebook is reopened without a kernel.
"""

from __future__ import annotations

from toolkit.arguments import at_the_door
from toolkit.show.widgets.cam import CamExplorer
from toolkit.show.widgets.drift import DriftExplorer
from toolkit.show.widgets.mask import MaskExplorer
from toolkit.show.widgets.monitor import TrainingMonitor
from toolkit.show.widgets.similarity import SimilarityExplorer

cam_explorer, mask_explorer = at_the_door(CamExplorer), at_the_door(MaskExplorer)
similarity_explorer, drift_explorer = at_the_door(SimilarityExplorer), at_the_door(DriftExplorer)
training_monitor = at_the_door(TrainingMonitor)
__all__ = ["cam_explorer", "drift_explorer", "mask_explorer", "similarity_explorer", "training_monitor"]
