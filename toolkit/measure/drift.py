"""Drift of features over training stages: raw and rotation-free measures with case-bootstrap intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure import drift_moments as moments
from toolkit.measure.drift_samples import KernelBlocks, SlicedSamples, fixed_directions, subsample
from toolkit.measure.pairing import RowStream, class_members, cluster_codes, row_streams
from toolkit.results import DataFrame, Numbers, as_table

POOLED = "pooled"
WIDENED = 1.25  # for what the bias correction adds; set by the simulation of benchmarks/drift_coverage.py
KINDS = dict.fromkeys(("centroid_shift", "frechet", "sliced_w2", "mmd2"), "raw")
KINDS |= dict.fromkeys(("linear_cka", "procrustes"), "rotation-free")


@dataclasses.dataclass(kw_only=True)
class Drift(Numbers):
    """Drift of one layer.

    Attributes:
        layer: layer name.
        numbers: one row per measure, class and pair of stages, see `drift`.
        means: the same measures averaged over consecutive stages, with intervals.
        settings: bootstrap, cluster, directions, rows used by the sampled measures.
    """

    layer: str
    means: DataFrame
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "drift"


class _Plan:
    """Everything that the groups, of which there are so many, have in common."""

    def __init__(
        self, stages: list[RowStream], clusters: list[Tensor], number: int, groups: int, settings: dict[str, Any]
    ) -> None:
        count, self.seed, self.max_rows = len(stages), settings["seed"], settings["max_rows"]
        self.paired: bool = settings["paired"]
        self.clusters, self.number = clusters, number  # patient of every row, per stage; how many patients
        self.repeat = count - 1 if "repeat" in settings else None
        compared = count if self.repeat is None else self.repeat
        self.consecutive: list[moments.Pair] = [(s, s + 1) for s in range(compared - 1)]
        self.pairs = self.consecutive + [(0, s) for s in range(2, compared)]
        self.pairs += [] if self.repeat is None else [(0, self.repeat)]
        first, channels = stages[0].rows, stages[0].channels
        variances = [channel.double().var() for channel in first.T] if len(first) > 1 else []
        scale = float(torch.stack(variances).mean().sqrt()) if variances else math.nan
        subspaces = sorted({min(k, max(1, channels - 1)) for k in (2, groups - 2) if k > 0})
        self.measures = moments.MomentMeasures(self.pairs, scale or 1.0, subspaces, self.paired)
        self.directions = fixed_directions(channels, settings["directions"], self.seed)
        patients = moments.strata(clusters, number)
        smallest = min(len(torch.unique(codes)) for codes in clusters)
        self.weights = moments.bootstrap_weights(patients, settings["bootstrap"] if smallest > 2 else 0, self.seed)
        self.halves = moments.half_splits(patients, settings["null_splits"] if smallest > 3 else 0, self.seed)


def drift(
    features: Features | Sequence[Features],
    layer: str,
    *,
    paired: bool = True,
    bootstrap: int = 200,
    null_splits: int = 100,
    max_rows: int = 1024,
    directions: int = 512,
    seed: int = 0,
    cluster: str | None = None,
    confidence: float = 0.95,
    repeat: Features | None = None,
) -> Drift:
    """Compare the features of one layer at consecutive stages, and of stage 1 with every later one.

    Raw measures (centroid shift, Frechet, sliced W2, MMD, Grassmann) see every change; linear CKA and Procrustes see
    none that is a rotation (they are given as 1 - CKA and as the disparity). Raw drift without rotation-free drift is
    a harmless turn of the latent space. Because N(0, I) is rotation invariant, a claim that features are anchored
    needs both kinds. The choice of measures accompanies SegReg's Fig. 3 and is our inference.

    Args:
        features: one store per stage, in order.
        layer: layer name.
        paired: rows are the same places in the same images at every stage (checked). False compares different
            samples, without the measures that need pairs.
        bootstrap: replicates of the interval; patients are drawn, never voxels. 0 = no intervals.
        null_splits: random splits of stage 1's patients into halves, for the null interval. 0 = none.
        max_rows: rows that sliced W2 and MMD use (drawn at random, the same at all stages if paired).
        directions: directions of sliced W2.
        seed: of the draws.
        cluster: column of the row table that holds the unit drawn (default: subject, else volume, else case).
        confidence: level of both intervals.
        repeat: stage 1 once more, on the same rows (or, unpaired, cohorts): of a training with another seed ("is this
            more than another training would show?"), or of the same weights after `toolkit.extract(..., jitter=0.01)`
            ("is this more than weights that moved by 1 % would show?": a smaller yardstick, and no training). What it
            differs from stage 1 is a yardstick of the same kind as the drift; the null of halves is one of patients.

    Returns:
        Rows with: measure, kind (raw, rotation-free, reference), class ("pooled" = all rows), from, to (stages from
        1; from 0 = the distance to N(0, I)), value, low, high (bootstrap over patients, corrected for bias and for few
        patients: it holds the truth in 92 to 98 % of simulated cohorts of 10 and 30 patients, see
        benchmarks/results/drift_coverage.csv; NaN for Grassmann and chordal distances, for which no interval held
        it), null_low, null_high (what two halves of stage 1's patients show: whether the drift exceeds what other
        patients would have shown; they hold half the rows, so this null is generous), and with `repeat` also repeat,
        repeat_low, repeat_high (the measure between stage 1 and its repeat: whether the drift exceeds what another
        training, or a jitter, of the same network shows on these very patients), rows, clusters (patients), status
        ("ok", "debiased", "few rows": not more rows than channels). Centroid shift is in units of the root mean
        channel variance of stage 1 times sqrt(C), Frechet and
        MMD are squared, sliced W2 is in feature units, Grassmann and chordal (with the number of principal
        directions) in radians and without unit.

    Raises:
        LayerError: a store lacks the layer.
        ResultError: fewer than two stages, stores that differ, or too few rows.
        DataError: NaN features.
        ConfigError: an invalid setting.

    Example:
        >>> drift = tk.drift([features, later], "head_input", bootstrap=20, null_splits=20).table()
    """
    import pandas as pd

    features = [features] if isinstance(features, Features) else list(features)
    if len(features) < 2:
        raise ResultError(f"Drift needs at least two stages; there are {len(features)}.")
    everything = features if repeat is None else [*features, repeat]
    state_rows("drift", everything, layer)
    stages = row_streams(everything, layer, paired=paired)
    if not all(len(stage.rows) for stage in stages):
        raise ResultError("A stage without any row has no drift.", where=layer, fix="Extract cases that hold a class.")
    groups = [class_members(stage.table) for stage in stages]
    members = {POOLED: [torch.arange(len(stage.rows)) for stage in stages]}
    members |= {name: [own[name] for own in groups] for name in groups[0] if all(name in own for own in groups)}
    tables = [stage.table for stage in stages]
    codes, unit = cluster_codes(tables[0] if paired else pd.concat(tables, ignore_index=True), cluster)
    clusters = [codes] * len(tables) if paired else list(codes.split([len(table) for table in tables]))
    settings: dict[str, Any] = {"bootstrap": bootstrap, "null_splits": null_splits, "cluster": unit}
    settings |= {"max_rows": max_rows, "directions": directions, "seed": seed}
    settings |= {"confidence": confidence, "paired": paired}
    if repeat is not None:
        jitter = repeat.provenance.get("parameters", {}).get("jitter")
        moved = f"weights that a jitter moved by {jitter or 0:.2g} of their size"
        settings["repeat"] = moved if jitter else "another training"
    plan = _Plan(stages, clusters, int(codes.max()) + 1, len(members), settings)
    numbers: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for name, rows in members.items():
        group = _Group(name, stages, rows, plan)
        numbers += group.records(confidence)
        means += group.mean_records(confidence)
    return Drift(
        layer=layer,
        numbers=as_table(numbers),
        means=as_table(means),
        settings=settings,
        provenance={"layer": layer, "measure": "drift", "stages": [dict(one.provenance) for one in everything]},
    )


class _Group:
    """One class, or all rows."""

    def __init__(self, name: str, stages: list[RowStream], members: list[Tensor], plan: _Plan) -> None:
        self.name, self.plan, self.paired, channels = name, plan, plan.paired, stages[0].channels
        self.rows = [_part(stage.rows, m) for stage, m in zip(stages, members, strict=True)]
        self.clusters = [_part(c, m) for c, m in zip(plan.clusters, members, strict=True)]
        self.count = min(len(r) for r in self.rows)
        self.cases = len(torch.unique(torch.cat(self.clusters)))
        self.fewest = min(len(torch.unique(codes)) for codes in self.clusters)
        if self.count < 4:
            what = f"{self.count} rows of {name!r} are too few to measure drift; at least 4 are needed."
            raise ResultError(what, fix="Extract more cases, or more samples per class with pool='voxels'.")
        weights, halves, units = plan.weights, plan.halves, None
        if len(weights) + len(halves) < plan.number:  # keep sums for each replicate, not for each patient
            units = torch.cat((weights, halves))
            weights, halves = torch.eye(len(units), dtype=units.dtype).split([len(weights), len(halves)])
        sums = moments.PatientMoments(self.rows, self.clusters, plan.number, plan.pairs if self.paired else [], units)
        self.values: moments.Values = plan.measures.over(sums, weights)
        self.status = {"linear_cka": "ok"}
        self.null = plan.measures.between_halves(sums, halves, weights[:1]) if len(halves) else {}
        if self.paired and self.count < 10 * channels:
            self.status["linear_cka"] = "debiased"
            for i, j in plan.pairs:
                pair = self.rows[i], self.rows[j], self.clusters[i]
                self.values["linear_cka", (i, j)] = moments.debiased_cka(*pair, plan.weights)
        self._sampled()
        self.few = self.count <= channels

    def _sampled(self) -> None:
        plan = self.plan
        number = min(plan.max_rows, self.count)
        keys = [(plan.seed, self.name, 0 if self.paired else stage) for stage in range(len(self.rows))]
        chosen = [subsample(len(r), number, *key) for r, key in zip(self.rows, keys, strict=True)]
        rows = [r.index_select(0, c) for r, c in zip(self.rows, chosen, strict=True)]
        codes = [k.index_select(0, c) for k, c in zip(self.clusters, chosen, strict=True)]
        sliced = [SlicedSamples(r, c, plan.directions) for r, c in zip(rows, codes, strict=True)]
        for i, j in plan.pairs:
            kernel = KernelBlocks(rows[i], rows[j], codes[i], codes[j])
            self.values["sliced_w2", (i, j)] = sliced[i].distance(sliced[j], plan.weights)
            self.values["mmd2", (i, j)] = kernel.discrepancy(plan.weights)
        if len(plan.halves):
            self.null["sliced_w2"] = sliced[0].between_halves(plan.halves)
            self.null["mmd2"] = KernelBlocks(rows[0], rows[0], codes[0], codes[0]).between_halves(plan.halves)

    def records(self, confidence: float) -> Iterator[dict[str, Any]]:
        for (measure, (i, j)), values in self.values.items():
            if j == self.plan.repeat:
                continue
            against_reference = i == moments.REFERENCE
            null = None if against_reference else self.null.get(measure)
            yield {
                **self._head(measure, against_reference),
                "from": 0 if against_reference else i + 1,
                "to": j + 1,
                **self._interval(measure, values, confidence),
                **_null(null, confidence, self._signed(measure)),
                **({} if self.plan.repeat is None else self._repeat(measure, against_reference, confidence)),
                **self._tail(measure),
            }

    def _repeat(self, measure: str, against_reference: bool, confidence: float) -> dict[str, float]:
        if against_reference:
            return dict.fromkeys(("repeat", "repeat_low", "repeat_high"), math.nan)
        ends = self._interval(measure, self.values[measure, (0, self.plan.repeat or 0)], confidence)
        return {"repeat": ends["value"], "repeat_low": ends["low"], "repeat_high": ends["high"]}

    def mean_records(self, confidence: float) -> Iterator[dict[str, Any]]:
        for measure in dict.fromkeys(name for name, (i, _) in self.values if i != moments.REFERENCE):
            values = torch.stack([self.values[measure, pair] for pair in self.plan.consecutive]).mean(0)
            head = self._head(measure, False) | {"comparisons": len(self.plan.consecutive)}
            yield head | self._interval(measure, values, confidence) | self._tail(measure)

    def _interval(self, measure: str, values: Tensor, confidence: float) -> dict[str, float]:
        reliable = not measure.startswith(("grassmann", "chordal"))  # theirs would hold the truth in 78 to 92 % only
        numbers = _interval(values, confidence, self._signed(measure), self.fewest if reliable else 0)
        if KINDS.get(measure) == "rotation-free" and not self._signed(measure) and numbers["high"] > 1:
            numbers["high"] = 1.0  # 1 - CKA and the disparity end there
        return numbers

    def _signed(self, measure: str) -> bool:
        return measure == "mmd2" or self.status.get(measure) == "debiased"

    def _head(self, measure: str, against_reference: bool) -> dict[str, Any]:
        kind = "reference" if against_reference else KINDS.get(measure, "raw")
        return {"measure": measure, "kind": kind, "class": self.name}

    def _tail(self, measure: str) -> dict[str, Any]:
        status = self.status.get(measure, "ok")
        status = "few rows" if status == "ok" and self.few else status
        return {"rows": self.count, "clusters": self.cases, "status": status}


def _part(values: Tensor, members: Tensor) -> Tensor:
    return values if len(members) == len(values) else values.index_select(0, members)


def _interval(values: Tensor, confidence: float, signed: bool, clusters: int) -> dict[str, float]:
    """Value and interval from the value (first) and its bootstrap replicates.

    Spread of the replicates around their median, widened as Student's t is for so few patients, around the value and
    around the value less the bias that the replicates show (drawing again lifts distances and lowers correlations by
    about what the sample itself did): the hull of both.
    """
    value = float(values[0])
    if len(values) < 3 or clusters < 2:
        return {"value": value, "low": math.nan, "high": math.nan}
    from scipy.special import ndtri, stdtrit

    tail = (1 - confidence) / 2
    levels = torch.tensor([tail, 0.5, 1 - tail], dtype=torch.float64)
    low, middle, high = torch.nanquantile(values[1:].double(), levels).tolist()
    factor = WIDENED * math.sqrt(clusters / (clusters - 1)) * float(stdtrit(clusters - 1, tail) / ndtri(tail))
    centres = (value, 2 * value - middle)
    low, high = min(centres) + factor * (low - middle), max(centres) + factor * (high - middle)
    return {"value": value, "low": low if signed else max(0.0, low), "high": high}


def _null(values: Tensor | None, confidence: float, signed: bool) -> dict[str, float]:
    if values is None or not len(values):
        return {"null_low": math.nan, "null_high": math.nan}
    high = float(torch.nanquantile(values.double(), confidence))
    return {"null_low": -abs(high) if signed else 0.0, "null_high": high}
