"""Do the statistics of a comparison keep what they promise? Simulated studies with a known truth.

`python -m benchmarks.interval_coverage [studies]` (default 4000 a design, a few minutes of one core) writes benchmarks/results/coverage.csv:
the share of nominal 95 % intervals that hold the truth (and their median width), of studies of equal methods with a
winner, of new studies that find the smallest detectable difference which an earlier one printed (and its median), and the
posterior probability of a wrong claim beside how often the claim is wrong.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.measure.intervals import PATIENTS, SEEDS, mean_of, won
from toolkit.measure.statistics import CAUTION

RESULTS = Path(__file__).parent / "results" / "coverage.csv"
KINDS = ("normal", "skewed", "dice")
FOLDS = 5
COLUMNS = ("quantity", "scores", "patients", "seeds", "folds", "studies", "share", "width")
REPLICATES = 1000
LEVEL = CAUTION * 0.05
FEWEST = (6, 8)  # patients with which a verdict is possible, beside those of the intervals


def scores(random: np.random.Generator, kind: str, shape: tuple[int, int, int], folds: int = 0) -> np.ndarray:
    """Scores (studies, patients, seeds) of one method: patients vary, trainings vary, and both together.

    `dice`: the mean of three organs, each missed for good in 5 % of patients and in 3 % by one training alone, the
    others below 1 with a tail of hard cases. With folds, a training is shared by the patients of one fold.
    """
    studies, patients, _ = shape
    training = _trainings(random, shape, folds)
    if kind == "normal":
        return (
            0.8 + 0.1 * random.normal(size=(studies, patients, 1)) + 0.02 * training + 0.03 * random.normal(size=shape)
        )
    if kind == "skewed":
        hard = 0.12 * random.exponential(size=(studies, patients, 1))
        return 0.95 - hard + 0.02 * training + 0.03 * random.normal(size=shape)
    each = (studies, patients, 1, 3)
    organ = 0.9 - 0.05 * random.exponential(size=each) + 0.02 * training[..., None]
    organ = np.clip(organ + 0.03 * random.normal(size=(*shape, 3)), 0, 1)
    missed = (random.random(each) < 0.05) | (random.random((*shape, 3)) < 0.03)
    return np.where(missed, 0, organ).mean(-1)


def differences(random: np.random.Generator, kind: str, shape: tuple[int, int, int], folds: int = 0) -> np.ndarray:
    """Paired differences (studies, patients, seeds) of two methods that are equal in the mean."""
    studies, patients, _ = shape
    if kind == "dice":
        return scores(random, kind, shape, folds) - scores(random, kind, shape, folds)
    patient = (studies, patients, 1)
    effect = random.normal(size=patient) if kind == "normal" else random.exponential(size=patient) - 1
    return 0.03 * effect + 0.02 * _trainings(random, shape, folds) + 0.02 * random.normal(size=shape)


def simulate(studies: int) -> Iterator[dict[str, Any]]:
    """A row a quantity, kind of scores and design."""
    random = np.random.default_rng(0)
    designs = [(patients, seeds, 0) for patients in PATIENTS for seeds in SEEDS]
    designs += [(patients, seeds, FOLDS) for patients in PATIENTS[3:] for seeds in SEEDS[:3]]
    designs += [(patients, seeds, 0) for patients in FEWEST for seeds in SEEDS[1:]]
    for kind in KINDS:
        truth = np.mean([scores(random, kind, (2000, 60, 1)).mean() for _ in range(10)])
        for patients, seeds, folds in designs:
            shape = (studies, patients, seeds)
            design = {"scores": kind, "patients": patients, "seeds": seeds, "folds": folds, "studies": studies}
            yield {"quantity": "mean", **design, **_covered(scores(random, kind, shape, folds), truth, folds)}
            paired = differences(random, kind, shape, folds)
            yield {"quantity": "difference", **design, **_covered(paired, 0.0, folds)}
            if seeds > 1 and 2 * 0.5**patients <= LEVEL:
                either = won(paired, _folds(paired[0], folds), level=LEVEL).mean()
                either += won(-paired, _folds(paired[0], folds), level=LEVEL).mean()
                yield {"quantity": "false winner", **design, "share": either}
                again = differences(random, kind, shape, folds)
                yield {"quantity": "power at smallest detectable", **design, **_power(paired, again, folds)}
                yield from _claims(random, paired, folds, design)


def _covered(values: np.ndarray, truth: float, folds: int) -> dict[str, float]:
    ends = np.array([mean_of(v, _folds(v, folds), replicates=REPLICATES).interval() for v in values])
    inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return {"share": inside.mean(), "width": np.median(ends[:, 1] - ends[:, 0])}


def _power(paired: np.ndarray, again: np.ndarray, folds: int) -> dict[str, float]:
    """Winners among new studies whose true difference is what an earlier study printed; the median of what is printed."""
    sizes = [mean_of(e, _folds(e, folds), replicates=0).smallest_detectable(LEVEL) for e in paired]
    found = won(again + np.reshape(sizes, (-1, 1, 1)), _folds(paired[0], folds), level=LEVEL)
    return {"share": found.mean(), "width": float(np.median(sizes))}


def _claims(
    random: np.random.Generator, paired: np.ndarray, folds: int, design: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """True differences drawn widely: the mean posterior of a wrong claim, and how often the leading method is no better."""
    scale = float(np.mean([mean_of(each, _folds(each, folds), replicates=0).errors[0][0] for each in paired]))
    truths = random.uniform(-6 * scale, 6 * scale, len(paired))
    known = [mean_of(e + t, _folds(e, folds), replicates=0) for e, t in zip(paired, truths, strict=True)]
    wrong = np.array([one.mean * truth <= 0 for one, truth in zip(known, truths, strict=True)])
    claimed = np.array([one.probability_wrong_side() for one in known])
    yield {"quantity": "claim wrong, posterior", **design, "share": claimed.mean()}
    yield {"quantity": "claim wrong, measured", **design, "share": wrong.mean()}


def _trainings(random: np.random.Generator, shape: tuple[int, int, int], folds: int) -> np.ndarray:
    studies, patients, seeds = shape
    if not folds:
        return random.normal(size=(studies, 1, seeds))
    return random.normal(size=(studies, folds, seeds))[:, np.arange(patients) % folds]


def _folds(values: np.ndarray, folds: int) -> np.ndarray | None:
    return np.arange(len(values)) % folds if folds else None


def main(studies: int) -> None:
    rows = list(simulate(studies))
    with RESULTS.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {key: f"{row[key]:.4f}" for key in ("share", "width") if key in row})
    print("COVERAGE = (")
    for patients in PATIENTS:
        worst = [
            min(
                r["share"]
                for r in rows
                if (r["quantity"], r["patients"], r["seeds"]) == ("mean", patients, seeds) and not r["folds"]
            )
            for seeds in SEEDS
        ]
        print(f"    ({', '.join(f'{value:.2f}' for value in worst)}),")
    print(")")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
