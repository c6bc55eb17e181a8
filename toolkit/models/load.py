"""Weights on disk: safetensors out, safetensors or safely read PyTorch files in; no file ever runs code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import CheckpointError
from toolkit.files import file_sha256

_ALIASES = "aliases"  # one metadata key: with several, their order in the file would vary
_WRAPPERS = ("state_dict", "network_weights", "model_state_dict", "model", "net", "weights")
_PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did: names that were loaded, and those that did not match.

    Attributes:
        loaded: names copied into the model.
        missing: names the model has and the file lacks.
        unexpected: names the file has and the model lacks.
        mismatched: name -> (shape in the model, shape in the file).
        prefix: what stood before each of the model's names in the file.
        prefixes: prefix -> how many of the model's names the file holds under it, where there are several.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    prefix: str = ""
    prefixes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if every name matched."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded{f' from under {self.prefix!r}' if self.prefix else ''}"]
        if len(self.prefixes) > 1:
            counts = ", ".join(f"{prefix!r} ({count} names)" for prefix, count in self.prefixes.items())
            lines.append(f"prefixes in the file under which the model's names stand: {counts}")
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
    """Inverse of `weights_bytes`; also reads safetensors files of other programs."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        aliases = json.loads(header.get("__metadata__", {}).get(_ALIASES, "{}"))
        return tensors | {name: tensors[target] for name, target in aliases.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "Copy or export it again."
        raise CheckpointError(f"This is not a readable safetensors file ({error}).", where=where, fix=fix) from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's state dictionary (modules may add other values; those are left out)."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def read_weights(file: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a weights file by name, on the CPU.

    Reads `.safetensors`, and `.pth`, `.pt`, `.ckpt`, `.bin` in PyTorch's restricted mode, in which a file that
    wants to run code is refused. A dictionary wrapped in another (`state_dict`, `network_weights`, ...) is found.
    """
    path = Path(file)
    if not path.is_file():
        raise CheckpointError("There is no such weights file.", where=str(path))
    if sha256 is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
            raise CheckpointError("sha256 needs 8 to 64 hexadecimal digits.", where=f"sha256={sha256!r}")
        if not (digest := file_sha256(path)).startswith(sha256.lower()):
            what = f"The file's SHA-256 is {digest}, not {sha256}: it is damaged or another one."
            raise CheckpointError(what, where=path, fix="Get the file again.")
    if path.suffix == ".safetensors":
        return weights_from_bytes(path.read_bytes(), str(path))
    if path.suffix not in _PICKLED:
        what = f"Weights are not read from {path.suffix or 'files without a suffix'}."
        raise CheckpointError(what, where=path, fix=f"Known: .safetensors, {', '.join(_PICKLED)}.")
    with path.open("rb") as stream:
        content = restricted_load(stream, str(path))
    tensors = _find_tensors(content)
    if not tensors:
        raise CheckpointError("The file holds no dictionary of tensors.", where=str(path))
    return tensors


def named_tensors(
    weights: str | os.PathLike[str] | Mapping[str, Tensor], sha256: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a weights file or of a state dictionary, and what errors call it."""
    if not isinstance(weights, Mapping):
        return read_weights(weights, sha256), str(weights)
    if sha256 is not None:
        raise CheckpointError("sha256 needs a file, not a state dictionary.", where=f"sha256={sha256!r}")
    return dict(weights), "weights"


def restricted_load(stream: Any, where: str) -> Any:
    """`torch.load` with `weights_only=True`, on the CPU: tensors, plain containers, and NumPy's scalars and dtypes."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # it warns of foreign pickle protocols before it refuses them
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "The file holds more than tensors and plain values; it was not loaded, because it could run code."
        fix = "Ask for a safetensors file, or export the state dictionary alone."
        asked = re.search(r"GLOBAL (\S+)", str(error))  # without torch's advice on how to load it all the same
        raise CheckpointError(what, where=where + (f" (it asks for {asked[1]})" if asked else ""), fix=fix) from error
    except Exception as error:  # the reader of a damaged file raises anything
        what = f"The file is damaged or not a PyTorch file ({type(error).__name__})."
        raise CheckpointError(what, where=where, fix="Copy or export it again.") from error


def _numpy_scalars() -> list[Any]:
    """What a NumPy number in a checkpoint (nnU-Net's best score) is rebuilt from; under NumPy 1's name as well."""
    import numpy as np

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OSUV"}  # numbers, no objects
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def load_weights(
    model: nn.Module,
    file: str | os.PathLike[str],
    strict: bool = True,
    *,
    prefix: str | None = None,
    sha256: str | None = None,
) -> WeightsReport:
    """Copy the tensors of a weights file into a model, by name.

    Names may carry a common prefix of a wrapper (`module.`, `_orig_mod.`, ...). Nothing is changed before every
    shape has been compared.

    Args:
        model: receives the values; dtype and device stay its own.
        file: see `read_weights`.
        strict: refuse unless all names and shapes match; False = load what matches.
        prefix: read the names under this prefix only, as in a LightningModule that holds the network beside other
            modules, or twice (`"model."` and `"teacher."`); None = find it.
        sha256: hash that the file must have, all of it or at least its first 8 digits; None = any.

    Raises:
        CheckpointError: an unreadable or unsafe file, another hash, no match at all, several prefixes that match equally
            well, with `strict` any mismatch (all listed), or a tensor that is sparse, on no device, of another kind of
            number, or holds NaN.

    Example:
        >>> report = tk.load_weights(model, "mine.pth", strict=False)
    """
    own, tensors = tensors_of(model), read_weights(file, sha256)
    prefixes = _prefixes(tensors, own)
    best = [one for one, count in prefixes.items() if count == max(prefixes.values())]
    chosen = prefix if prefix is not None else best[0] if len(best) == 1 else ""
    under = {name.removeprefix(chosen): value for name, value in tensors.items() if name.startswith(chosen)}
    outside = () if prefix is not None else tuple(name for name in tensors if not name.startswith(chosen))
    report = compare_weights(own, under)
    report = dataclasses.replace(report, unexpected=(*report.unexpected, *outside), prefix=chosen, prefixes=prefixes)
    if not report.loaded or (strict and not report.complete):
        fix = "Build the network with the settings of the file, or load what matches with strict=False."
        if any(best) and prefix is None:
            fix = f"Say which tensors are meant: {' or '.join(f'prefix={one!r}' for one in best)}."
        raise CheckpointError(f"The weights do not fit this {type(model).__name__}.\n{report}", where=file, fix=fix)
    for name in report.loaded:
        if wrong := _unusable(under[name], own[name]):
            what = f"The tensor {name!r} {wrong}; nothing was loaded."
            raise CheckpointError(what, where=file, fix="Export the weights again.")
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(under[name])
    return report


def _unusable(tensor: Tensor, own: Tensor) -> str:
    """Why the values of a tensor cannot be copied into the model's; "" if they can."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return f"holds no plain values ({'meta' if tensor.is_meta else tensor.layout})"
    if tensor.is_complex() != own.is_complex() or tensor.is_floating_point() != own.is_floating_point():
        return f"is {tensor.dtype} in the file and {own.dtype} in the model"
    return "holds NaN" if tensor.is_floating_point() and bool(tensor.isnan().any()) else ""


def compare_weights(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> WeightsReport:
    """Compare names and shapes without copying anything."""
    both = [name for name in own if name in tensors]
    shapes = {name: (tuple(own[name].shape), tuple(tensors[name].shape)) for name in both}
    wrong = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
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


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, int]:
    """Every prefix under which some of the model's names stand in the file, and how many of them."""
    if any(name in own for name in tensors):
        return {"": sum(name in tensors for name in own)}
    anchors = sorted(own, key=lambda name: (-name.count("."), -len(name)))[:8]  # the longest names: the least ambiguous
    starts = {name.removesuffix(anchor) for name in tensors for anchor in anchors if name.endswith(f".{anchor}")}
    return {start: sum(start + name in tensors for name in own) for start in sorted(starts)}
