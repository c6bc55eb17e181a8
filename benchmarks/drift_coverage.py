"""How often the intervals of drift hold the truth, in simulated cohorts.

`python -m benchmarks.drift_coverage [studies]` (default 120 a size, two to four minutes of one core) writes
benchmarks/results/drift_coverage.csv. Patients differ from each other at both stages, the second stage mixes and shifts
the channels; the truth is the mean of four cohorts of 300 patients.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import toolkit as tk
from toolkit.features.arrays import MemoryArrays
from toolkit.features.store import Features

RESULTS = Path(__file__).parent / "results" / "drift_coverage.csv"
CHANNELS, ROWS = 6, 40
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(CHANNELS, CHANNELS)))[0]


def store(rows: np.ndarray, patients: int) -> Features:
    """Features of one layer, `ROWS` rows a patient."""
    names = [f"p{k}" for k in np.repeat(np.arange(patients), ROWS)]
    table = pd.DataFrame({"case": names, "volume": names, "subject": names, "index": np.arange(len(names))})
    table = table.assign(site="A", class_name="organ", count=1, **{"class": 1})
    arrays = MemoryArrays(
        {("l", "rows"): torch.as_tensor(rows).float()}, {"cases": table.to_dict("records"), "images": []}
    )
    return Features(["l"], arrays, {"parameters": {}}, None)


def measured(random: np.random.Generator, patients: int, bootstrap: int) -> pd.DataFrame:
    """Drift of one cohort, a row a measure."""
    each = (patients, CHANNELS)
    first = np.repeat(0.6 * random.normal(size=each), ROWS, 0) + random.normal(size=(patients * ROWS, CHANNELS))
    second = first @ (0.8 * np.eye(CHANNELS) + 0.2 * TURN) + np.repeat(0.4 * random.normal(size=each), ROWS, 0)
    second += 0.3 + 0.4 * random.normal(size=first.shape)
    stores = [store(first, patients), store(second, patients)]
    table = tk.drift(stores, "l", bootstrap=bootstrap, null_splits=0, max_rows=400, directions=64).table()
    return table[(table["class"] == "pooled") & (table["from"] == 1)].set_index("measure")


def main(studies: int) -> None:
    random = np.random.default_rng(0)
    truth = pd.concat([measured(random, 300, 0)["value"] for _ in range(4)], axis=1).mean(axis=1)
    truth = truth.drop(["grassmann_2", "chordal_2"])  # they have no interval
    rows = []
    for patients in (10, 30):
        tables = [measured(random, patients, 200) for _ in range(studies)]
        for measure, value in truth.items():
            held = np.mean([t.loc[measure, "low"] <= value <= t.loc[measure, "high"] for t in tables])
            mean = np.mean([t.loc[measure, "value"] for t in tables])
            names = ("measure", "patients", "studies", "truth", "mean_value", "coverage")
            values = (measure, patients, studies, f"{value:.4f}", f"{mean:.4f}", f"{held:.3f}")
            rows.append(dict(zip(names, values, strict=True)))
            print(rows[-1], flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)
