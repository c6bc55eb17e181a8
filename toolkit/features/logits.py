"""The one rule that finds the logits among whatever a network returns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import LayerError

# where the logits are: an entry's name, an index, or a function of the output
Select = str | int | Callable[[Any], Any]
NAMES = ("logits", "segmentation", "out")


def find_logits(output: Any, image: Tensor | None = None, select: Select | None = None) -> Tensor:
    """The logits (B, K, *S) in the output of a network; every call of the toolkit that takes a model uses this rule.

    1. A tensor is the logits. One axis more than the image has is a stack of deep supervision (MONAI's DynUNet in
       training mode: (B, n, K, *S)); its first entry is the finest.
    2. The entry `logits`, `segmentation` or `out` of a mapping or dataclass, in this order.
    3. Else, among the floating-point tensors of the image's spatial size, the only one; or the only tensor there is.
    4. A list of tensors with the same number of channels (or entries whose names differ in a number only) is deep
       supervision: the finest; of those of one size the last (MONAI's UNet++ returns its deepest head last).
    5. Anything else is refused, with the names that there are.

    Args:
        output: what the network returned.
        image: its input (B, C, *S); without it the largest spatial size among the tensors stands for the image's.
        select: overrides the rule: the name of an entry, its index, or a function of the output. What it gives may be
            a list of deep supervision again.

    Raises:
        LayerError: no tensor, several that could be meant, or nothing of that name.
    """
    return logits_by_scale(output, image, select)[0]


def logits_by_scale(output: Any, image: Tensor | None = None, select: Select | None = None) -> list[Tensor]:
    """The logits and, behind them, the other heads of a deep supervision, by `find_logits`."""
    if select is not None:
        return logits_by_scale(_selected(output, select), image)
    if isinstance(output, Tensor):
        return _unstacked(output, image)
    fields = _fields(output)
    for name in NAMES:
        if fields.get(name) is not None:
            return logits_by_scale(fields[name], image)
    tensors = _tensors(output)
    if not tensors:
        what = f"The network returned {type(output).__name__} without a floating-point tensor."
        raise LayerError(what, fix="Its logits must be a tensor, or be found in a list, tuple, mapping or dataclass.")
    maps = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 2}
    if image is not None:
        maps = {name: tensor for name, tensor in maps.items() if tensor.ndim in (image.ndim, image.ndim + 1)}
    finest = max((t.shape[2:].numel() for t in maps.values()), default=0)
    size = next((t.shape[2:] for t in maps.values() if t.shape[2:].numel() == finest), None)
    size = size if image is None else image.shape[2:]
    full = [tensor for tensor in maps.values() if tensor.shape[-len(size) :] == size] if size is not None else []
    if len(full) == 1 or (len(tensors) == 1 and maps):
        chosen = full[0] if full else next(iter(tensors.values()))
        rest = [t for t in maps.values() if t is not chosen]
        alike = all(t.ndim == chosen.ndim and t.shape[1] == chosen.shape[1] for t in rest)
        return _unstacked(chosen, image) + (sorted(rest, key=_coarseness) if alike else [])
    heads = list(maps.values())
    kinds = {(re.sub(r"\d+", "", name), head.ndim, head.shape[1]) for name, head in maps.items()}
    if len(kinds) == 1 and len(maps) == len(tensors):
        heads.reverse()
        return sorted(heads, key=_coarseness)  # of one size, the last first
    what = f"{'Several tensors could' if maps else 'No tensor can'} be the logits: {_listed(tensors)}."
    fix = f"Say which with select=..., a name, an index or a function: select={next(iter(tensors))!r}."
    raise LayerError(what, where=type(output).__name__, fix=fix)


def _selected(output: Any, select: Select) -> Any:
    if callable(select):
        return select(output)
    fields = _fields(output)
    entry = list(fields.values())[select] if isinstance(select, int) and -len(fields) <= select < len(fields) else None
    entry = fields.get(str(select)) if entry is None else entry
    if entry is None:
        fix = f"There are {_listed(_tensors(output)) or 'none: it is one tensor'}."
        raise LayerError(f"The network's output has no entry {select!r}.", where="select=...", fix=fix)
    return entry


def _unstacked(tensor: Tensor, image: Tensor | None) -> list[Tensor]:
    if image is None or tensor.ndim != image.ndim + 1:
        return [tensor]
    return list(tensor.unbind(1 if tensor.shape[0] == image.shape[0] else 0))


def _coarseness(head: Tensor) -> int:
    return -head.shape[2:].numel()


def _fields(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, (list, tuple)):
        names: Sequence[str] = getattr(output, "_fields", [str(i) for i in range(len(output))])
        return dict(zip(names, output, strict=True))
    return {}


def _tensors(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every floating-point tensor in nested containers, by its path."""
    if isinstance(output, Tensor):
        return {prefix.rstrip("."): output} if output.is_floating_point() else {}
    tensors: dict[str, Tensor] = {}
    for name, value in _fields(output).items():
        tensors |= _tensors(value, f"{prefix}{name}.")
    return tensors


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def full_size(logits: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Logits at the size of the image.

    Logits that are a whole number of times coarser along every axis, as transformers and DeepLab heads give them, are
    enlarged linearly (their own post-processing); any other size is refused, because it does not say where it lies.
    """
    if logits.shape[2:] == tuple(size):
        return logits
    if logits.ndim != len(size) + 2:
        what = f"The network's output has the shape {tuple(logits.shape)}, not (B, classes, *S) of {len(size)} axes *S."
        fix = "Wrap the network so that it gives logits of every class at every voxel, or name them with select=...."
        raise LayerError(what, where="output", fix=fix)
    factors = {whole / side for whole, side in zip(size, logits.shape[2:], strict=True)}
    if len(factors) != 1 or not (factor := factors.pop()).is_integer() or factor < 2:
        what = f"The network gives logits of size {tuple(logits.shape[2:])} for an image of size {tuple(size)}."
        fix = "Return logits of the image's size, or a whole number of times coarser along every axis."
        raise LayerError(what, where="output", fix=fix)
    return interpolated(logits, size)


def interpolated(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, *S) at another size, linear with half-pixel centres."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return torch.nn.functional.interpolate(maps, size=tuple(size), mode=mode, align_corners=False)
