"""What EWC's lambda does: a sequence of two sites, with and without the scale of the Fisher information.

`python -m benchmarks.ewc_weights` (some minutes on one core) writes benchmarks/results/ewc_weights.csv: final Dice on
both sites, backward transfer, and how far the final weights are from those after the first site and from fine-tuning's.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import toolkit as tk
from toolkit.methods.continual.strategies import ElasticWeightConsolidation

RESULTS = Path(__file__).parent / "results" / "ewc_weights.csv"
CONFIG = tk.TrainConfig(steps=80, batch_size=8, validate_every=0, select="last", checkpoint_every=0, threads=1)
ARMS: list[tuple[str, bool, float]] = [
    ("images", False, 0.4),
    *(("images", True, weight) for weight in (0.4, 0.04, 4.0, 40.0)),
    ("last_batch", False, 0.4),
    ("last_batch", True, 0.4),
]


def sequence(folder: Path, strategy: Any) -> tuple[dict[str, float], Tensor, Tensor]:
    """Scores, and all weights after the first and after the last site."""
    task = tk.load_task("phantom-cardiac")
    torch.manual_seed(0)
    model = tk.unet(1, 4, channels=(8, 16))
    stages = tk.train_sequence(
        model, task, sites=task.sites[:2], strategy=strategy, config=CONFIG, out=folder, progress=False
    )
    transfer = stages.transfer()
    scores = {"first": transfer.scores[1, 0], "second": transfer.scores[1, 1], "bwt": transfer.value("bwt")}
    weights = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in stages.stages]
    return scores, weights[0], weights[1]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scores, _, plain = sequence(Path(folder) / "plain", "sequential")
        rows.append({"fisher": "", "scaled": "", "weight": 0.0, **scores})
        for index, (fisher, scaled, weight) in enumerate(ARMS):
            strategy = ElasticWeightConsolidation(weight=weight, images=60, fisher=fisher, scaled=scaled)
            scores, before, after = sequence(Path(folder) / str(index), strategy)
            moved = {"moved": float((after - before).norm()), "from_fine_tuning": float((after - plain).norm())}
            rows.append({"fisher": fisher, "scaled": scaled, "weight": weight, **scores, **moved})
            print(rows[-1], flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
