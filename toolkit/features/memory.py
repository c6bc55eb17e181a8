"""Memory is said before it is taken: what an analysis will need, beside what is free."""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.errors import ConfigError, LayerError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.features.names import AliasUnknown, find_requests
from toolkit.features.trace import trace_calls

_SURELY = 3000  # numbers that a network makes of one number of its image, at most: below that nothing is counted
_SAID = 0.25  # share of the free memory from which on the need is said
_TAKEN = 0.8  # share beyond which it is refused
# What is held of a pass at once, as multiples of the bytes of `measured_pass`; benchmarks/memory.py measures that it is so.
HELD: dict[str, dict[str, float]] = {
    "outputs": {"live": 1.2, "largest": 3},
    "gradients": {"total": 1.1, "largest": 2, "kept": 2},
    "masks": {"total": 1.7, "largest": 2},
}
# How often an analysis holds the rows (channel_similarity: the second moments) that it reads of stored features.
COPIES = {
    "drift": 4.4,
    "project": 0.5,
    "project umap": 2,
    "project tsne": 2,
    "channel_similarity": 3.6,
    "layer_similarity linear_cka": 1.6,
    "layer_similarity rbf_cka": 1.6,
    "layer_similarity procrustes": 3.4,
    "layer_similarity rsa": 1.6,
    "collapse": 3,
    "gaussianity": 10,
    "classifier_variability": 3.3,
}
_ROW = 150  # bytes of a row of a table


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device: of a GPU its own, else the least of the machine's and the container's."""
    if device.type == "cuda":  # what torch keeps for later counts as free
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = [2**62]
    with contextlib.suppress(OSError, ValueError, StopIteration):  # another system
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    return max(0, min([*free, *group_limits()]))


def group_limits(process: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[int]:
    """Bytes that each control group around this process leaves (a container, a job of a cluster); cached files count as free."""
    left = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path(process).read_text(encoding="utf-8").splitlines():
            _, kind, path = line.split(":", 2)
            inner = Path(root, kind, path.strip("/"))
            groups = (inner, *inner.parents) if kind in ("", "memory") else ()
            for group in [one for one in groups if one.is_relative_to(root)]:
                for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
                    with contextlib.suppress(OSError, ValueError):  # of another version, or without a limit
                        most, now = (int((group / f"memory.{one}").read_text()) for one in (limit, used))
                        stat = dict(one.split() for one in (group / "memory.stat").read_text().splitlines())
                        left.append(most - now + int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))
    return left


def affordable_images(
    model: nn.Module, image: Tensor, wanted: int, *, call: str, held: str, pieces: float = 1.0, **options: Any
) -> int:
    """How many images a pass may take: `wanted`, or fewer where so many would take more than 80 % of what is free.

    The image (1, C, *S) is what the network sees in one pass, `pieces` how many times larger the whole is, `held` a
    key of `HELD`; options are `layers` that are captured, their `aliases`, and `fixed`: the number cannot be lowered.
    """
    fixed = options.pop("fixed", False)
    if image.numel() * max(pieces, 1) * 4 * _SURELY * wanted < _SAID * free_bytes(image.device):
        return wanted
    one = measured_pass(model, image, **options)
    each = sum(times * one[name] for name, times in HELD[held].items())
    each += 2 * pieces * one["output"] if pieces > 1 else 0
    fix = "Pass fewer or smaller images, a smaller batch_size or patch_size where the call has one, or free memory."
    what = f"{call} (image of size {tuple(image.shape[2:])})"
    return affordable(what, each, fix, wanted, least=wanted if fixed else 1, device=image.device)


def affordable(
    call: str, each: float, fix: str, wanted: int = 1, *, least: int = 1, device: torch.device | None = None
) -> int:
    """How many of `wanted` pieces of `each` bytes may be held at once; says so beyond a quarter of what is free."""
    free = free_bytes(device or torch.device("cpu"))
    count = min(wanted, int(_TAKEN * free / max(each, 1.0)))
    pieces = f", {each / 1e9:.3g} GB each for {max(count, least)} at once" if max(wanted, least) > 1 else ""
    need = f"{call} needs about {max(count, least) * each / 1e9:.3g} GB{pieces}"
    if count < least:
        raise ConfigError(f"{need}; {free / 1e9:.3g} GB are free.", where=call, fix=fix)
    if each * count > _SAID * free:
        instead = f" instead of {wanted}" if count < wanted else ""
        warnings.warn(f"{need}{instead}; {free / 1e9:.3g} GB are free.", ToolkitWarning, stacklevel=4)
    return count


def state_rows(
    call: str, stores: Sequence[Any], layers: str | Iterable[str], kind: str = "rows", beside: float = 0.0
) -> None:
    """Say what an analysis of stored features takes, as `affordable` does; nothing is read.

    The call is a key of `COPIES`, a store the features of a stage; the kind is "rows", or "gram" for second moments;
    `beside` are bytes that the call needs for each row.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    shapes = [shape for store in stores for layer in names if (shape := store.shape(layer, kind))]
    need = sum(4 * COPIES[call] * math.prod(shape) + (_ROW + beside) * shape[0] for shape in shapes)
    affordable(call, need, "Extract fewer rows (samples=..., or pool='per-class'), name fewer layers, or free memory.")


def measured_pass(
    model: nn.Module, image: Tensor, layers: str | Sequence[str] = (), aliases: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Bytes of one pass over an image, weights apart, by watching one without gradients.

    `live` is the most that it holds at once, `total` all tensors that it makes (a graph keeps nearly all of them),
    `largest` the largest tensor, `kept` the captured layers, `output` the logits.
    """
    network = unwrap(model)
    with _Meter([image, *network.parameters(), *network.buffers()]) as meter:
        trace = trace_calls(model, [image])
    wanted: set[tuple[str, int]] = set()
    with contextlib.suppress(LayerError, AliasUnknown):  # the analysis itself speaks of layers
        wanted = {(one.layer.path, one.layer.call) for one in find_requests(network, layers, aliases)}
    kept = sum(call.megabytes * 1e6 for call in trace.calls if (call.name.path, call.name.call) in wanted)
    counted = {"live": meter.peak, "total": meter.total, "largest": meter.largest}
    return counted | {"kept": kept, "output": abs(4 * math.prod(trace.output))}


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors as they are made and let go; `known` ones do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = {one.untyped_storage()._cdata for one in known if one.layout is torch.strided}
        self.live = self.peak = self.total = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(output) if isinstance(one, Tensor) and one.layout is torch.strided]
        for storage in [one.untyped_storage() for one in tensors]:
            key, size = storage._cdata, storage.nbytes()
            if key not in self.alive:
                self.alive.add(key)
                self.live += size
                self.total += size
                self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
                weakref.finalize(storage, self._gone, key, size).atexit = False
        return output

    def _gone(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.live -= size
