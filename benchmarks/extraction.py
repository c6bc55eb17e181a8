"""Extraction of three layers against the bare forward passes over the same images, and the memory of long passes.

U-Net 16-32-64-128, 64 labelled images of 96 x 96 in batches of 8; layers encoder.1, bottleneck and head_input. Flat
memory: the process must not grow over further passes by more than one pass keeps (the pooled rows are dropped).
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import psutil
import torch
from interleave import medians, row

from toolkit.inference.extract import extract
from toolkit.models.unet import unet

LAYERS = ["encoder.1", "bottleneck", "head_input"]
IMAGES, BATCH = 64, 8


def resident_megabytes() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = unet(1, 4).eval()
    images = torch.randn(IMAGES, 1, 96, 96)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (IMAGES, 1, 96, 96)))

    def bare() -> None:
        with torch.no_grad():
            for batch in images.split(BATCH):
                model(batch)

    def pooled(pool: str, moments: bool) -> Any:
        return lambda: extract(
            model, images, LAYERS, pool=pool, label=labels, batch_size=BATCH, moments=moments, samples=64
        )

    arms = {
        "bare forward": bare,
        "per class": pooled("per-class", False),
        "voxels": pooled("voxels", False),
        "per class with moments": pooled("per-class", True),
    }
    seconds = medians(arms, 5 * rounds, clock)  # the bar is near 1: short rounds, many of them
    before = resident_megabytes()
    for _ in range(20):
        arms["per class with moments"]()
    growth = resident_megabytes() - before
    table = [
        row(
            f"extraction, {name}, against a bare forward pass",
            seconds["bare forward"] / seconds[name],
            0.95 if name == "per class" else None,
            seconds=seconds[name],
            bare_seconds=seconds["bare forward"],
        )
        for name in list(arms)[1:]
    ]
    flat = {"name": "extraction, growth of the process over 20 passes (MB)", "ratio": round(growth, 1), "floor": None}
    return [*table, {**flat, "passed": growth < 30}]
