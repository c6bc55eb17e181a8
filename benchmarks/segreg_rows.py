"""SegReg's training step against the plain step, as lines of the common table; the measurement is segreg_step.py."""

from __future__ import annotations

from typing import Any

from interleave import row
from segreg_step import measure


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    found: dict[str, Any] = measure(threads, clock)
    cost = {name: found[f"step_ratio_{name}"] for name in ("K64", "K256")}
    note = "cost of a step over the plain step; U-Net 16-32-64-128, 160 x 160, batch 12, N 4096"
    return [
        row("plain step against SegReg's step, K 64", 1 / cost["K64"], 1 / 1.10, cost=cost["K64"], note=note),
        row("plain step against SegReg's step, K 256", 1 / cost["K256"], None, cost=cost["K256"], note=note),
        row("SegReg's statistic against its direct formula", found["times_faster_than_direct"], None),
        row("SegReg's memory against its direct formula", found["times_smaller_than_direct"], None),
    ]
