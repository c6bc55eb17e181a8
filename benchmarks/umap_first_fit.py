"""The first UMAP of a new process, 5 000 rows of 64 channels: ours against umap-learn alone, compile time included.

Each arm is a process of its own, as a notebook's kernel is: import, neighbours, compilation, layout. What numba keeps on
disk is left as an earlier process left it, for both.
Trustworthiness of both pictures is measured with the same function of scikit-learn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from interleave import row

ROWS, CHANNELS, BLOBS, EPOCHS, NEIGHBOURS = 5000, 64, 6, 200, 15
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def data() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = 4 * random.standard_normal((BLOBS, CHANNELS))
    noise = random.standard_normal((ROWS, CHANNELS))
    return (centres[np.arange(ROWS) % BLOBS] + noise).astype(np.float32)


def ours(values: np.ndarray) -> np.ndarray:
    import torch

    from toolkit.measure.embedding import UmapOptions, fit_umap, nearest

    rows = torch.from_numpy(values)
    options = UmapOptions(neighbours=NEIGHBOURS, epochs=EPOCHS)
    return np.asarray(fit_umap(rows, nearest(rows, rows, NEIGHBOURS), options, 0))


def peer(values: np.ndarray) -> np.ndarray:
    import umap

    return np.asarray(umap.UMAP(n_neighbors=NEIGHBOURS, n_epochs=EPOCHS, random_state=0).fit_transform(values))


def one(arm: str, clock: str) -> dict[str, float]:
    """Run one arm twice in this process: the first fit, and one when everything is compiled."""
    from sklearn.manifold import trustworthiness

    fit, values, now = {"ours": ours, "umap-learn": peer}[arm], data(), CLOCKS[clock]
    start = now()
    picture = fit(values)
    first = now() - start
    start = now()
    fit(values)
    second = now() - start
    return {"first": first, "second": second, "trust": float(trustworthiness(values, picture, n_neighbors=15))}


def measured(arm: str, clock: str) -> dict[str, float]:
    """One arm in a new process."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, __file__, arm, clock], env=environment, capture_output=True, text=True, check=True
    )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    del threads, rounds  # numba's threads are set by the environment; one process an arm
    measured("ours", clock)  # both libraries' files are in the system's cache before either is timed
    result = {arm: measured(arm, clock) for arm in ("umap-learn", "ours")}
    told = {f"{arm}_{key}": round(value, 4) for arm, values in result.items() for key, value in values.items()}
    apart = result["ours"]["trust"] - result["umap-learn"]["trust"]
    return [
        row(
            "first UMAP of 5 000 x 64 in a new process, umap-learn alone against ours",
            result["umap-learn"]["first"] / result["ours"]["first"],
            4.0,
            **told,
        ),
        {
            "name": "trustworthiness of ours minus umap-learn's",
            "ratio": round(apart, 4),
            "floor": None,
            "passed": apart > -0.01,
        },
    ]


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], sys.argv[2])))
