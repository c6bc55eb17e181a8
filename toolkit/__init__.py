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
    "toolkit.models.unet": ("unet",),
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
