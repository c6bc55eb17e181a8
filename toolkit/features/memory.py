"""Memory is said before it is taken: what an analysis will need, beside what is free."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ToolkitWarning
from toolkit.features.modules import named, unwrap
from toolkit.features.trace import trace_calls

_SURELY = 3000  # numbers that a network makes of one number of its image, at most: below that nothing is counted
_SAID = 0.25  # share of the free memory from which on the need is said
_TAKEN = 0.8  # share beyond which it is refused


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device: of a GPU its own, else the least of the machine's and the container's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [2**62]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        free.append(int(limit) - int(used))
    except (OSError, ValueError, StopIteration):
        pass  # another system, or no limit
    return min(free)


@dataclasses.dataclass(frozen=True)
class Limit:
    """Who asks for memory.

    Attributes:
        call: name of the analysis, for the messages.
        copies: how often the activations of all layers are held at once (2 with gradients).
        fixed: the number of images a pass cannot be lowered.
        one_pass: gives what the network sees of an image in one pass: padded, or one window of it.
    """

    call: str
    copies: float
    fixed: bool = False
    one_pass: Callable[[Tensor], Tensor] = dataclasses.field(default=lambda image: image)


def affordable_batch(model: nn.Module, image: Tensor, wanted: int, limit: Limit) -> int:
    """How many images a pass may take: `wanted`, or fewer where so many would take more than 80 % of what is free.

    Args:
        model: the network.
        image: one image (1, C, *S), on the network's device; of any size if `limit.one_pass` says what is seen of it.
        wanted: images a pass, as the caller asked.
        limit: who asks.
    """
    image = limit.one_pass(image)
    free = free_bytes(image.device)
    if image.numel() * 4 * _SURELY * limit.copies * wanted < _SAID * free:
        return wanted
    each = activation_bytes(model, image) * limit.copies
    count = min(wanted, int(_TAKEN * free / max(each, 1)))
    need = f"{limit.call} needs about {each / 1e9:.2f} GB an image of size {tuple(image.shape[2:])}"
    free_now = f"{free / 1e9:.2f} GB are free"
    if count == 0 or (limit.fixed and count < wanted):
        raise ConfigError(
            f"{need}, {wanted} at once; {free_now}.",
            where=limit.call,
            fix="Pass fewer or smaller images, a smaller batch_size or patch_size where the call has one, or free memory.",
        )
    if each * count > _SAID * free:
        instead = f" instead of {wanted}" if count < wanted else ""
        warnings.warn(f"{need}, at most {count}{instead} at once; {free_now}.", ToolkitWarning, stacklevel=4)
    return count


def activation_bytes(model: nn.Module, image: Tensor) -> float:
    """Bytes of the outputs of all layers that hold no others, for this input."""
    modules = named(unwrap(model))
    leaves = {path for path, module in modules.items() if not any(True for _ in module.children())}
    return sum(call.megabytes * 1e6 for call in trace_calls(model, [image]).calls if call.name.path in leaves)
