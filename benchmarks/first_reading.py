"""What the hash of each file at its reading costs: `python benchmarks/first_reading.py` writes results/first_reading.json.

Processor milliseconds, the least of five: reading as a new task does, with the hash and its record and without.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

import toolkit as tk
from toolkit.data import first_reading, source
from toolkit.files import file_sha256

RESULT = Path(__file__).parent / "results" / "first_reading.json"


def least(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def read(paths: list[Path], dims: int) -> None:
    for case in tk.task_from_table([{"image": path} for path in paths], classes=["background", "x"], dims=dims).cases():
        _ = case.image


def main() -> None:
    drawn = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TOOLKIT_CACHE"] = str(folder / "cache")
        volume = folder / "volume.nii"
        nibabel.save(nibabel.Nifti1Image(drawn.integers(0, 2000, (256, 256, 80)).astype(np.int16), np.eye(4)), volume)
        pictures = [folder / f"{index}.bmp" for index in range(200)]
        for path in pictures:
            Image.fromarray(drawn.integers(0, 255, (256, 256)).astype(np.uint8)).save(path)
        rows = {"volume_mb": volume.stat().st_size / 1e6, "hash_of_the_volume_ms": least(lambda: file_sha256(volume))}
        for what, paths, dims in (("volume", [volume], 3), ("200 pictures of 65 kB", pictures, 2)):
            with_hash = least(lambda paths=paths, dims=dims: read(paths, dims))
            source.check_first_reading = lambda files: None
            without = least(lambda paths=paths, dims=dims: read(paths, dims))
            source.check_first_reading = first_reading.check
            rows |= {f"{what}, ms": with_hash, f"{what}, share of the check": 1 - without / with_hash}
    RESULT.write_text(json.dumps({key: round(value, 3) for key, value in rows.items()}, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
