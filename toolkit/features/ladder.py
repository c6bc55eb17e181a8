"""The stages of an encoder and decoder, found in one observed pass by the sizes of its maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from toolkit.features.layout import grid_of

_NO_STAGES = ("Identity", "Dropout", "DropPath", "Softmax", "Position", "Adaptive")
Size = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Span:
    """One call of one module."""

    name: str  # layer name of its output, or "" if it returned something else than one tensor
    kind: str  # class name of the module
    start: int  # order in which the call began
    end: int  # order in which it returned
    entered: tuple[int, ...] | None  # shape of the first tensor it was given, or None
    shape: tuple[int, ...] | None  # shape of its output (of the first tensor in it), or None

    def inside(self, other: Span) -> bool:
        """Whether this call ran within the other one."""
        return other.start < self.start and self.end < other.end


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Layer names of the stages, one each."""

    encoder: tuple[str, ...] = ()  # going down, the finest first, without the bottleneck
    bottleneck: str = ""  # the coarsest stage, which the decoder starts from; "" if there is none
    decoder: tuple[str, ...] = ()  # coming up, the finest last


def find_ladder(spans: Sequence[Span], image: Sequence[int]) -> Ladder:
    """The stages among the calls that ran before the head, in the order in which they returned.

    A run is a stretch of consecutive maps of one size, represented by the last of them. The bottleneck is the last run
    of the smallest size; the decoder the longest climb from there to the last run; the encoder the longest descent before
    the decoder; of equals, the finest. Left out are maps of a single voxel, modules that change
    nothing (identities, dropout), position embeddings, what is pooled to a fixed size and brought back (a branch of an
    ASPP), what happens inside one step down or up before it has its new size, and maps inside a block of tokens.
    `image` is the spatial size of the network's input.
    """
    sizes = {span: grid_of(span.shape, image) for span in spans if span.shape is not None}
    maps = [s for s in spans if s.name and (size := sizes.get(s)) and math.prod(size) > 1]
    maps = [s for s in maps if not any(kind in s.kind for kind in _NO_STAGES)]
    pooled = _pooled(spans, sizes)
    maps = [s for s in maps if s not in pooled and not any(_hides(e, s, spans, sizes, image) for e in spans)]
    runs: list[tuple[int, str]] = []
    for span in maps:
        voxels = math.prod(sizes[span] or ())
        if runs and runs[-1][0] == voxels:
            runs.pop()
        runs.append((voxels, span.name))
    return _stages(runs)


def _stages(runs: Sequence[tuple[int, str]]) -> Ladder:
    if not runs:
        return Ladder()
    smallest = min(voxels for voxels, _ in runs)
    bottom = max(i for i, (voxels, _) in enumerate(runs) if voxels == smallest)
    climb = _longest_fall([(-i, *runs[i]) for i in range(len(runs) - 1, bottom, -1)], starts_first=True)[::-1]
    before = -climb[0][0] if climb else bottom
    descent = _longest_fall([(i, *runs[i]) for i in range(before) if runs[i][0] > smallest])
    return Ladder(tuple(name for *_, name in descent), runs[bottom][1], tuple(name for *_, name in climb))


def _longest_fall(runs: Sequence[tuple[int, int, str]], *, starts_first: bool = False) -> list[tuple[int, int, str]]:
    """The longest strictly falling subsequence by voxels (the second entry); of equals the finest, then the first."""
    chains: list[list[tuple[int, int, str]]] = []
    for position, run in enumerate(runs):
        before = [chain for chain in chains if chain[-1][1] > run[1]]
        if before or not position or not starts_first:
            chains.append([*max(before, key=_rank, default=[]), run])
    return max(chains, key=_rank, default=[])


def _rank(chain: Sequence[tuple[int, int, str]]) -> tuple[int, int]:
    return len(chain), sum(voxels for _, voxels, _ in chain)


def _pooled(spans: Sequence[Span], sizes: dict[Span, Size | None]) -> set[Span]:
    """Calls at the size of an adaptive pooling, within the block that pools."""
    pooled: set[Span] = set()
    for pool in spans:
        if "Adaptive" in pool.kind:
            around = [e for e in spans if pool.inside(e)]
            block = max(around, key=lambda e: e.start, default=pool)
            pooled |= {s for s in spans if (s is block or s.inside(block)) and sizes.get(s) == sizes.get(pool)}
    return pooled


def _hides(
    outer: Span, span: Span, spans: Sequence[Span], sizes: dict[Span, Size | None], image: Sequence[int]
) -> bool:
    """Whether a map is an intermediate of one step (down, up, or a block of tokens) rather than a stage."""
    after = sizes.get(outer)
    if after is None or not span.inside(outer) or sizes[span] == after or outer.entered is None:
        return False
    before = grid_of(outer.entered, image)
    if before == after:
        return outer.shape is not None and len(outer.shape) == 3 and len(image) > 1
    if before is None:
        return False
    elsewhere = {sizes.get(s) for s in spans if s.name and not s.inside(outer) and s.end != outer.end}
    low, high = sorted((math.prod(before), math.prod(after)))
    within = {size for s in spans if s.inside(outer) and (size := sizes.get(s)) and math.prod(size) > 1}
    return all(size in (before, after) or (low < math.prod(size) < high and size not in elsewhere) for size in within)
