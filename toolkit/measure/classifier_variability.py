"""How much a linear head refitted on other samples of the same features varies, and what that does on another domain.

Source: Vaish et al., "SegReg", arXiv 2602.23509, Fig. 1, whose left panel claims a classifier of lower variance; the
protocol is ours: the paper gives no numbers for it. Margins of a head are normalised so that neither the scale of the
features nor that of the head counts: Chuang et al., "Measuring Generalization with Optimal Transport" (NeurIPS 2021),
the margin normalised by k-variance and gradient norm.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import ClassVar

import numpy as np
import torch

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure.pairing import rows_of
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame, Result, as_table

MOST_ROWS = 256  # of each of the two samples whose transport cost is computed exactly


@dataclasses.dataclass(kw_only=True)
class ClassifierVariability(Result):
    """Refitted heads of one layer.

    Attributes:
        layer: layer name.
        weights: (bootstraps, classes, C) of the refitted heads.
        biases: (bootstraps, classes).
        classes: class index of every row of the weights.
        class_names: their names.
        angles: (classes,) mean angle in degrees between the class's vectors of two bootstraps.
        source_disagreement: share of source rows on which two heads disagree, mean over pairs of heads.
        target_disagreement: the same on the target's rows; NaN without a target.
        source_accuracy: balanced accuracy on all source rows, mean over heads.
        target_accuracy: the same on the target.
        source_margin: median margin of the source rows, normalised by the distance of the two class vectors and by the
            k-variance of the classes, mean over heads.
        target_margin: the same on the target's rows and their own k-variance; NaN without a target.
    """

    layer: str
    weights: torch.Tensor
    biases: torch.Tensor
    classes: list[int]
    class_names: list[str]
    angles: torch.Tensor
    source_disagreement: float
    target_disagreement: float
    source_accuracy: float
    target_accuracy: float
    source_margin: float = math.nan
    target_margin: float = math.nan
    kind: ClassVar[str] = "classifier_variability"

    def table(self) -> DataFrame:
        """One row per measure: mean angle per class and over classes, disagreement, balanced accuracy, margin."""
        angles = zip(self.class_names, self.angles, strict=True)
        rows: list[tuple[str, str, float]] = [("angle", name, float(angle)) for name, angle in angles]
        rows.append(("angle", "all", float(self.angles.mean())))
        for measure in ("disagreement", "balanced accuracy", "normalised margin"):
            field = measure.rpartition(" ")[2]
            rows += [(measure, domain, getattr(self, f"{domain}_{field}")) for domain in ("source", "target")]
        return as_table(rows, columns=["measure", "of", "value"]).assign(layer=self.layer)


def classifier_variability(
    source: Features,
    layer: str,
    target: Features | None = None,
    *,
    bootstraps: int = 50,
    rows: int = 4000,
    penalty: float = 1e-3,
    seed: int = 0,
) -> ClassifierVariability:
    """Refit a linear head on bootstraps of class-balanced features; how far apart are the heads and their answers.

    Multinomial logistic regression with L2 penalty on features as they are stored, intercept free. Weight vectors are
    centred over the classes first, because adding one vector to all of them changes nothing.

    Args:
        source: features of the domain that the head is fitted on, extracted with pool="voxels" or "per-class".
        layer: layer name, usually "head_input".
        target: features of another domain, to count how often two heads disagree there.
        bootstraps: refitted heads.
        rows: rows of each bootstrap, equally many of every class, drawn with replacement.
        penalty: of half the squared weights of all classes, beside the mean loss.
        seed: of the draws.

    Raises:
        LayerError: no such layer.
        DataError: NaN features.
        ResultError: fewer than two classes.
        ConfigError: fewer than two bootstraps, fewer rows than classes, or a penalty of 0.

    Example:
        >>> heads = tk.classifier_variability(features, "head_input", target=later, bootstraps=3, rows=40).table()
    """
    state_rows("classifier_variability", [source] if target is None else [source, target], layer)
    values, labels = rows_of(source, layer).numpy(), source.cases["class"].to_numpy()
    classes = np.unique(labels)
    if len(classes) < 2:
        fix = "Extract with pool='voxels' and labels."
        raise ResultError("A classifier needs rows of two classes.", where=layer, fix=fix)
    if bootstraps < 2 or rows < len(classes):
        raise ConfigError("bootstraps is at least 2, rows at least the number of classes.")
    if penalty <= 0:
        fix = "Give one above 0."
        raise ConfigError(f"penalty={penalty} leaves the weights of separable classes without a bound.", fix=fix)
    with guarded_random_state():
        fitted = [_fit(values, labels, classes, rows, penalty, (seed, draw)) for draw in range(bootstraps)]
    weights, biases = (np.stack(part) for part in zip(*fitted, strict=True))
    domains = {"source": (values, labels)}
    if target is not None:
        there = rows_of(target, layer).numpy()
        if there.shape[1] != values.shape[1]:
            raise ResultError(f"The target has {there.shape[1]} channels, the source {values.shape[1]}.", where=layer)
        domains["target"] = there, target.cases["class"].to_numpy()
    judged = dict.fromkeys(("target_disagreement", "target_accuracy"), math.nan)
    for domain, (rows_there, labels_there) in domains.items():
        scores = (rows_there @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
        answers = np.stack([score.argmax(1) for score in scores])  # (bootstraps, N) place of the most likely class
        judged[f"{domain}_disagreement"] = _disagreement(answers)
        judged[f"{domain}_accuracy"] = _accuracy(answers, labels_there, classes)
        judged[f"{domain}_margin"] = median_margin(rows_there, labels_there, classes, (weights, biases), seed)
    units = weights / np.linalg.norm(weights, axis=2, keepdims=True).clip(1e-300)
    cosines = [(one @ one.T)[np.triu_indices(bootstraps, 1)] for one in units.swapaxes(0, 1)]
    angles = [np.degrees(np.arccos(cosine.clip(-1, 1))).mean() for cosine in cosines]
    table = source.cases.drop_duplicates("class").set_index("class")
    settings = {"bootstraps": bootstraps, "rows": rows, "penalty": penalty, "seed": seed}
    return ClassifierVariability(
        layer=layer,
        weights=torch.from_numpy(weights),
        biases=torch.from_numpy(biases),
        classes=[int(one) for one in classes],
        class_names=[str(table.loc[one, "class_name"]) for one in classes],
        angles=torch.from_numpy(np.array(angles)),
        **judged,
        provenance={**source.provenance, "layer": layer, "measure": "classifier variability", "settings": settings},
    )


def _fit(
    values: np.ndarray, labels: np.ndarray, known: np.ndarray, rows: int, penalty: float, key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, C) and biases (classes,) of one refitted head, centred over the classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    random = keyed_random("classifier variability", *key)
    each = rows // len(known)
    index = np.concatenate([random.choice(np.flatnonzero(labels == one), each) for one in known])
    model = LogisticRegression(C=(2 if len(known) == 2 else 1) / (penalty * len(index)), max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes: the direction settles first
        model.fit(values[index].astype(np.float64), labels[index])
    weight, bias = model.coef_, model.intercept_
    if len(known) == 2:  # one vector for two classes, of twice their squares
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.stack([-bias[0], bias[0]]) / 2
    return weight - weight.mean(0), bias - bias.mean()


def _disagreement(answers: np.ndarray) -> float:
    """Share of rows on which two different heads disagree, mean over all pairs, from how often each class is given."""
    heads = len(answers)
    counts = np.stack([(answers == one).sum(0) for one in range(int(answers.max()) + 1)]).astype(float)
    return float(1 - ((counts * (counts - 1)).sum(0) / (heads * (heads - 1))).mean())


def _accuracy(answers: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    shares = [(answers[:, labels == one] == place).mean() for place, one in enumerate(known) if (labels == one).any()]
    return float(np.mean(shares)) if shares else math.nan


def k_variance(rows: np.ndarray, key: tuple[int | str, ...], most: int = MOST_ROWS) -> float:
    """Wasserstein-1 distance of two disjoint random samples of k = min(N // 2, most) rows of (N, C); NaN below two rows.

    It is small where the rows of a class lie close together.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    k = min(len(rows) // 2, most)
    if k < 1:
        return math.nan
    chosen = keyed_random("k-variance", *key).choice(len(rows), 2 * k, replace=False)
    cost = cdist(rows[chosen[:k]], rows[chosen[k:]])
    return float(cost[linear_sum_assignment(cost)].mean())


def concentration(values: np.ndarray, labels: np.ndarray, known: np.ndarray, seed: int) -> float:
    """Mean k-variance of the classes, each class counted once."""
    variances = [k_variance(values[labels == one].astype(np.float64), (seed, int(one))) for one in known]
    finite = [one for one in variances if math.isfinite(one)]
    return float(np.mean(finite)) if finite else math.nan


def normalised_margins(
    values: np.ndarray, places: np.ndarray, weights: np.ndarray, biases: np.ndarray, spread: float
) -> np.ndarray:
    """Per row: (score of its class - best other score) / (|w_class - w_other| * spread); below 0 = misclassified.

    `places` are those of the rows' classes among `weights` (classes, C); `spread` is the features' `concentration`.
    """
    scores = values @ weights.T + biases
    index = np.arange(len(values))
    own = scores[index, places].copy()
    scores[index, places] = -np.inf
    other = scores.argmax(1)
    slope = np.linalg.norm(weights[:, None] - weights[None], axis=2)[places, other]
    return (own - scores[index, other]) / (slope * spread + 1e-12)


def median_margin(
    values: np.ndarray, labels: np.ndarray, known: np.ndarray, heads: tuple[np.ndarray, np.ndarray], seed: int
) -> float:
    """Median normalised margin of the rows of known classes, mean over heads (weights (B, K, C), biases (B, K))."""
    inside = np.isin(labels, known)
    values, labels = values[inside], labels[inside]
    spread = concentration(values, labels, known, seed)
    if not len(values) or not math.isfinite(spread):
        return math.nan
    places = np.searchsorted(known, labels)
    medians = [np.median(normalised_margins(values, places, w, b, spread)) for w, b in zip(*heads, strict=True)]
    return float(np.mean(medians))
