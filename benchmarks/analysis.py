"""Streaming PCA, minibatch CKA and the drift table: against scikit-learn, against pairs one by one, and in seconds.

* PCA of 10^6 x 64 float32 rows, 8 components: `StreamingMoments` with its eigenvectors against the fastest of
  scikit-learn's solvers that this size allows (covariance_eigh, which is also what "auto" takes). Both explain the same.
* Memory: growth of the process while 10^7 rows pass in chunks that are made on the way.
* CKA: all pairs of 12 layers (2 048 rows of 64) in one pass against one call a pair on the same minibatches.
* Drift: three stages, 10^5 rows of 64 channels, with case-bootstrap intervals.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from interleave import CLOCKS, medians, row

from toolkit.features.arrays import MemoryArrays
from toolkit.features.store import Features
from toolkit.measure.drift import drift
from toolkit.measure.layer_similarity import layer_similarity
from toolkit.measure.projection_planes import StreamingMoments, principal_plane


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    return [*_pca(clock, rounds), *_cka(clock, rounds), _drift(clock)]


def _pca(clock: str, rounds: int) -> list[dict[str, Any]]:
    from sklearn.decomposition import PCA

    random = torch.Generator().manual_seed(0)
    data = torch.randn(1_000_000, 64, generator=random) * torch.linspace(0.5, 3, 64) + 2
    array = data.numpy()

    def ours() -> torch.Tensor:
        return principal_plane(StreamingMoments(64).update(data), 8).explained

    def peer() -> np.ndarray:
        return PCA(8, svd_solver="covariance_eigh").fit(array).explained_variance_ratio_

    seconds = medians({"ours": ours, "scikit-learn": peer}, rounds, clock)
    apart = float(np.abs(ours().numpy() - peer()).max())
    stream = StreamingMoments(64)
    chunk = torch.randn(100_000, 64, generator=random)
    stream.update(chunk)
    before = psutil.Process().memory_info().rss
    for step in range(100):
        stream.update(chunk + step * 1e-3)
    growth = (psutil.Process().memory_info().rss - before) / 1e6
    return [
        row(
            "streaming PCA of 1e6 x 64, scikit-learn's best solver against ours",
            seconds["scikit-learn"] / seconds["ours"],
            1.0,
            seconds=seconds["ours"],
            sklearn_seconds=seconds["scikit-learn"],
            explained_apart=apart,
        ),
        {
            "name": "streaming PCA, growth of the process over 1e7 rows (MB)",
            "ratio": round(growth, 1),
            "floor": None,
            "passed": growth < 60,
            "rows": stream.count,
        },
    ]


def _cka(clock: str, rounds: int) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    names = [f"layer{i}" for i in range(12)]
    first = torch.randn(2048, 64, generator=random)
    store = _store({n: first + 0.3 * i * torch.randn(2048, 64, generator=random) for i, n in enumerate(names)}, 64)

    def together() -> torch.Tensor:
        return layer_similarity(store).matrix

    def by_pairs() -> torch.Tensor:
        pairs = [[float(layer_similarity(store, layers_a=[a], layers_b=[b]).matrix) for b in names] for a in names]
        return torch.tensor(pairs, dtype=torch.float64)

    seconds = medians({"together": together, "pairs": by_pairs}, max(2, rounds // 2), clock)
    apart = float((together() - by_pairs()).abs().max())
    return [
        row(
            "minibatch CKA of all pairs of 12 layers, pair by pair against one pass",
            seconds["pairs"] / seconds["together"],
            5.0,
            seconds=seconds["together"],
            pair_seconds=seconds["pairs"],
            apart=apart,
        )
    ]


def _drift(clock: str) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    first = torch.randn(100_000, 64, generator=random)
    stages = [_store({"layer": first + 0.1 * s * torch.randn(1, 64, generator=random)}, 100) for s in range(3)]
    now = CLOCKS[clock]
    start = now()
    result = drift(stages, "layer")
    seconds = now() - start
    name = "drift table, three stages of 1e5 x 64 with intervals (5 s over ours)"
    return row(name, 5 / seconds, 1.0, seconds=seconds, table_rows=len(result.table()))


def _store(values: dict[str, torch.Tensor], cases: int) -> Features:
    number = len(next(iter(values.values())))
    index = np.arange(number)
    label = index // cases % 3
    table = pd.DataFrame({"case": [f"case{i % cases:03d}" for i in index], "class": label, "index": index, "count": 1})
    table["class_name"] = [("background", "RV", "LV")[one] for one in label]
    for column in ("volume", "subject"):
        table[column] = table["case"]
    arrays = MemoryArrays({(name, "rows"): value for name, value in values.items()}, {"cases": [], "images": []})
    features = Features(list(values), arrays, {"parameters": {}})
    features._tables["cases"] = table
    return features


if __name__ == "__main__":
    start = time.perf_counter()
    for one in rows(1, "cpu", 3):
        print(one)
    print(round(time.perf_counter() - start, 1), "s")
