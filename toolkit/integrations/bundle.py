"""`load_bundle`: the network of a MONAI bundle, built from its own description without running any code of it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.errors import CheckpointError
from toolkit.files import absolute
from toolkit.models.load import load_weights

CONFIGS = ("inference.json", "train.json", "inference.yaml", "train.yaml")
_SETTINGS = ("_target_", "_disabled_", "_desc_", "_mode_", "_requires_")


def load_bundle(folder: str | os.PathLike[str], *, weights: str = "models/model.pt") -> nn.Module:
    """The network of a MONAI bundle with its weights, in eval mode; every call that takes a model takes it.

    Read are `network_def` of `configs/inference.json` (or train.json, or their YAML forms) and the weights, neither of
    which can run code: of the description only networks and layers of MONAI and torch with plain arguments are built.

    Args:
        folder: the bundle's folder, as `monai.bundle.download` leaves it.
        weights: the file of weights in it; see `load_weights`.

    Raises:
        CheckpointError: no bundle, a description that holds expressions (`$`), references (`@`) or anything that is
            not a network or layer of MONAI or torch, or weights that do not fit.

    Example:
        >>> model = tk.load_bundle("spleen_ct_segmentation")
    """
    root = absolute(folder, "folder")
    file = next((root / "configs" / name for name in CONFIGS if (root / "configs" / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"There is no {CONFIGS[0]} or {CONFIGS[1]}.", where=str(root / "configs"))
    try:
        from monai.bundle import ConfigParser

        entry = ConfigParser.load_config_file(str(file)).get("network_def")
    except Exception as error:
        raise CheckpointError(f"The configuration cannot be read: {error}.", where=file) from error
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise CheckpointError("The configuration describes no network_def.", where=file)
    model = _built(entry, file)
    load_weights(model, root / weights)
    return model.eval()


def _built(entry: Any, file: Path) -> Any:
    if isinstance(entry, str) and entry[:1] in ("$", "@", "%"):
        raise _refused(f"{entry!r} is an expression or a reference, which could run code", file)
    if isinstance(entry, list):
        return [_built(item, file) for item in entry]
    if not isinstance(entry, Mapping):
        return entry
    arguments = {name: _built(value, file) for name, value in entry.items() if name not in _SETTINGS}
    if "_target_" not in entry:
        return arguments
    kind = _class(str(entry["_target_"]))
    if kind is None:
        raise _refused(f"{entry['_target_']!r} is no network or layer of MONAI or torch", file)
    try:
        return kind(**arguments)
    except Exception as error:
        raise CheckpointError(f"{entry['_target_']} cannot be built: {error}.", where=file) from error


def _class(name: str) -> type[nn.Module] | None:
    """A class of `monai.networks` or `torch.nn` by its full name, or by its own alone as bundles write it."""
    module, _, own = name.rpartition(".")
    for place in [module] if module else ["monai.networks.nets", "monai.networks.blocks", "torch.nn"]:
        if place.startswith(("monai.networks.", "torch.nn")):
            try:
                value = getattr(importlib.import_module(place), own, None)
            except ImportError:
                continue
            if isinstance(value, type) and issubclass(value, nn.Module):
                return value
    return None


def _refused(what: str, file: Path) -> CheckpointError:
    fix = "If you trust the bundle: model = monai.bundle.ConfigParser(...).get_parsed_content('network_def'), then "
    fix += "toolkit.load_weights(model, 'models/model.pt')."
    return CheckpointError(f"{what}.", where=f"network_def of {file}", fix=fix)
