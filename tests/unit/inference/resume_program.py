"""Extracts features slowly, for a test that kills it: `resume_program.py OUT FIRST_MARK`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from toolkit.features import writer
from toolkit.inference.extract import extract
from toolkit.models.unet import unet

LAYERS = ["bottleneck", "decoder.*", "head_input"]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return unet(1, 3, channels=(4, 8)).eval()


def scans(pause: float = 0.0, mark: Path | None = None) -> Iterator[dict[str, object]]:
    random = torch.Generator().manual_seed(1)
    for index in range(12):
        if index == 7 and mark is not None:
            mark.touch()
            time.sleep(pause)
        yield {
            "image": torch.randn(1, 16, 16, generator=random),
            "label": torch.randint(0, 3, (16, 16), generator=random),
            "id": f"scan{index}",
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    writer.CHECKPOINT_SECONDS = 0.0
    extract(network(), scans(60.0, Path(sys.argv[2])), LAYERS, pool="voxels", samples=5, batch_size=2, out=sys.argv[1])
