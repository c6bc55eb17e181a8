"""What a run's bits depend on besides its settings: versions, machine, threads and the data's content."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from toolkit.training.config import TrainConfig
from toolkit.training.engine import resolve_device
from toolkit.training.feed import worker_count


def environment(config: TrainConfig) -> dict[str, Any]:
    """Versions, device and thread count, as recorded in `run.json`."""
    from toolkit import __version__

    device = resolve_device(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "toolkit": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": config.threads or torch.get_num_threads(),
        "workers": worker_count(config),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }


def content_hash(task: Any) -> str | None:
    """The task's content hash; None if it offers none."""
    method = getattr(task, "content_hash", None)
    return str(method()) if callable(method) else None


def contents(task: Any) -> dict[str, Any] | None:
    """What the content hash is made of, so that a difference can be named; None if the task does not offer it."""
    method = getattr(task, "contents", None)
    return dict(method()) if callable(method) else None
