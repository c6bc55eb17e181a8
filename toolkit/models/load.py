"""Weights on disk: safetensors out, safetensors or safely read PyTorch files in; no file ever runs code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import CheckpointError
from toolkit.files import write_atomically

_ALIASES = "aliases"  # one metadata key: with several, their order in the file would vary
_WRAPPERS = ("state_dict", "network_weights", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
_PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did: names that were loaded, and those that did not match.

    Attributes:
        loaded: names copied into the model.
        missing: names the model has and the file lacks.
        unexpected: names the file has and the model lacks.
        mismatched: name -> (shape in the model, shape in the file).
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """True if every name matched."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"missing in the file: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"unknown to the model: {', '.join(self.unexpected)}"] if self.unexpected else []
        lines += [f"{n}: model {m}, file {f}" for n, (m, f) in self.mismatched.items()]
        return "\n".join(lines)


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dictionary as safetensors bytes, the same for equal values.

    Entries that are one tensor under several names (tied weights) are stored once, with a table of aliases; views
    that share memory otherwise are stored as copies.
    """
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        value = value.detach()
        identity = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and identity in first:
            aliases[name] = first[identity]
        else:
            first[identity] = name
            stored[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()
    return save(stored, {_ALIASES: json.dumps(aliases, sort_keys=True)})


def weights_from_bytes(content: bytes, where: str) -> dict[str, Tensor]:
    """Inverse of `weights_bytes`; also reads safetensors files of other programs.

    Raises:
        CheckpointError: not a safetensors file, truncated, or with an unreadable table of aliases.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        aliases = json.loads(header.get("__metadata__", {}).get(_ALIASES, "{}"))
        return tensors | {name: tensors[target] for name, target in aliases.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"This is not a readable safetensors file ({error}).", where=where, fix="Copy or export it again."
        ) from error


def save_weights(model: nn.Module, file: str | os.PathLike[str]) -> Path:
    """Write the model's parameters and buffers as safetensors; the file appears whole or not at all."""
    return write_atomically(file, weights_bytes(tensors_of(model)), parents=True)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's state dictionary (modules may add other values; those are left out)."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a weights file by name, on the CPU.

    Reads `.safetensors`, and `.pth`, `.pt`, `.ckpt`, `.bin` in PyTorch's restricted mode, in which a file that
    wants to run code is refused. A dictionary wrapped in another (`state_dict`, `network_weights`, ...) is found.

    Raises:
        CheckpointError: no such file, damaged, of an unknown kind, unsafe, or without tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise CheckpointError("There is no such weights file.", where=str(path))
    if path.suffix == ".safetensors":
        return weights_from_bytes(path.read_bytes(), str(path))
    if path.suffix not in _PICKLED:
        raise CheckpointError(
            f"Weights are not read from {path.suffix or 'files without a suffix'}.",
            where=str(path),
            fix=f"Known: .safetensors, {', '.join(_PICKLED)}.",
        )
    with path.open("rb") as stream:
        content = restricted_load(stream, str(path))
    tensors = _find_tensors(content)
    if not tensors:
        raise CheckpointError("The file holds no dictionary of tensors.", where=str(path))
    return tensors


def restricted_load(stream: Any, where: str) -> Any:
    """`torch.load` with `weights_only=True`: tensors and plain containers only, on the CPU.

    Raises:
        CheckpointError: a damaged file, or one that holds code or foreign classes; nothing of it has run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of foreign pickle protocols before it refuses them
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "The file holds more than tensors and plain values; it was not loaded, because it could run code.",
            where=f"{where}{_foreign_class(error)}",
            fix="Ask for a safetensors file, or export the state dictionary alone.",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, TypeError) as error:
        raise CheckpointError(
            f"The file is damaged or not a PyTorch file ({type(error).__name__}).",
            where=where,
            fix="Copy or export it again.",
        ) from error


def _foreign_class(error: Exception) -> str:
    """What the file asked for, without torch's advice on how to load it all the same."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f" (it asks for {found[1]})" if found else ""


def load_weights(model: nn.Module, file: str | os.PathLike[str], strict: bool = True) -> WeightsReport:
    """Copy the tensors of a weights file into a model, by name.

    Names may carry a common prefix of a wrapper (`module.`, `_orig_mod.`, ...). Nothing is changed before every
    shape has been compared.

    Args:
        model: receives the values; dtype and device stay its own.
        file: see `read_weights`.
        strict: refuse unless all names and shapes match; False = load what matches.

    Raises:
        CheckpointError: an unreadable or unsafe file, no match at all, or with `strict` any mismatch (all listed).
    """
    own = tensors_of(model)
    tensors = _without_prefix(read_weights(file), own)
    report = compare_weights(own, tensors)
    if not report.loaded or (strict and not report.complete):
        raise CheckpointError(
            f"The weights do not fit this {type(model).__name__}.\n{report}",
            where=str(file),
            fix="Build the network with the settings of the file, or load what matches with strict=False.",
        )
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(tensors[name])
    return report


def compare_weights(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> WeightsReport:
    """Compare names and shapes without copying anything."""
    both = [name for name in own if name in tensors]
    wrong = {
        name: (tuple(own[name].shape), tuple(tensors[name].shape))
        for name in both
        if own[name].shape != tensors[name].shape
    }
    return WeightsReport(
        loaded=tuple(name for name in both if name not in wrong),
        missing=tuple(name for name in own if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own),
        mismatched=wrong,
    )


def _find_tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors
    return next((found for key in _WRAPPERS if (found := _find_tensors(content.get(key)))), {})


def _without_prefix(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(2):  # a compiled model inside a parallel wrapper carries two
        if any(name in own for name in tensors):
            break
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                break
    return tensors
