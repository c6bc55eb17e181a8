"""Train regularised segmentation networks and look at what they have learnt.

`import toolkit as tk` gives every public call; each is imported from its room on first use, so that the import
itself costs little more than torch. See the README for a tour.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS: dict[str, tuple[str, ...]] = {
    "toolkit.errors": (
        "CheckpointError", "ConfigError", "DataError", "LayerError", "ProtocolError", "RegularizerWarning",
        "ResultError", "ToolkitError", "ToolkitWarning",
    ),
    "toolkit.results": ("Result", "load_result"),
    "toolkit.data.arrays": ("task_from_arrays",),
    "toolkit.data.catalogue": ("list_tasks", "load_task"),
    "toolkit.data.folder": ("task_from_folder",),
    "toolkit.data.join": ("join_tasks",),
    "toolkit.models.unet": ("unet",),
    "toolkit.features.capture": ("capture",),
    "toolkit.features.extract": ("extract",),
    "toolkit.features.names": ("layers",),
    "toolkit.features.store": ("Features", "open_features"),
    "toolkit.objectives.segmentation": ("SegmentationObjective",),
    "toolkit.regularizers.dispersive": ("Dispersive",),
    "toolkit.regularizers.segreg": ("SegReg",),
    "toolkit.regularizers.selfreg": ("SelfReg",),
    "toolkit.explain.gradcam": ("grad_cam",),
    "toolkit.explain.targets": ("ClassSum", "Region"),
    "toolkit.measure.projection": ("project",),
    "toolkit.measure.segmentation": ("segmentation_metrics",),
    "toolkit.measure.similarity": ("channel_similarity",),
    "toolkit.training.config": ("TrainConfig",),
    "toolkit.training.run": ("Run",),
    "toolkit.training.start": ("resume", "train"),
    "toolkit.training.step": ("TrainingStep",),
}  # fmt: skip
_SUBMODULES = ("recipes", "widgets")

_HOME = {name: module for module, public in _ROOMS.items() for name in public}
__all__ = sorted([*_HOME])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'toolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


if TYPE_CHECKING:
    pass
