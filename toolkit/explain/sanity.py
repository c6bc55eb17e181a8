"""The sanity check that a heat map must pass: it changes when the network forgets what it has learnt."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from toolkit.explain.cam_maps import TELLING
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import Target
from toolkit.features.changed_weights import shuffled
from toolkit.features.modules import device_of, named
from toolkit.features.provenance import provenance
from toolkit.features.trace import trace_calls
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.results import DataFrame, Result, as_table

WARN_ABOVE = 0.5


@dataclasses.dataclass(kw_only=True)
class RandomisedWeights(Result):
    """Similarity of maps to those of the same network with shuffled weights.

    Attributes:
        numbers: one row per layer, image, draw and, for a cascade, step; see `randomised_weights`.
        target: what was explained.
        method: "grad_cam" or a variant.
    """

    numbers: DataFrame
    target: str
    method: str
    kind: ClassVar[str] = "randomised_weights"

    def table(self) -> DataFrame:
        """One row per layer: mean and largest similarity over images and draws, and the verdict.

        A cascade has a row per layer and step; its last step has all weights shuffled, and only there is a verdict. It
        is "passes" if the mean of |rank correlation| is at most 0.5, else "fails: the map shows the image, not the
        network"; "undefined" if no map says anything. `left_out` names the states (cancelled, empty, constant, ...) of
        maps that did not enter.
        """
        rows = []
        cascade = "shuffled_down_to" in self.numbers
        keys = ["layer", "shuffled_down_to"] if cascade else ["layer"]
        for names, part in self.numbers.groupby(keys, sort=False):
            layer = names[0]
            correlations = part["rank_correlation"].abs().dropna()
            mean = float(correlations.mean()) if len(correlations) else math.nan
            verdict = "undefined" if math.isnan(mean) else "passes"
            if mean > WARN_ABOVE:
                verdict = "fails: the map shows the image, not the network"
            if cascade and names[1] != self.numbers["shuffled_down_to"].iloc[-1]:
                verdict = ""
            largest = float(correlations.max()) if len(correlations) else math.nan
            left_out = ", ".join(sorted(set(part["status"]) - set(TELLING)))
            row = {"layer": layer} | ({"shuffled_down_to": names[1]} if cascade else {})
            row |= {"similarity": mean, "largest": largest, "maps": len(correlations)}
            rows.append(row | {"left_out": left_out, "verdict": verdict})
        return as_table(rows)


def randomised_weights(
    model: nn.Module,
    inputs: Any,
    layers: str | Sequence[str],
    target: Target | int | str,
    *,
    draws: int = 3,
    seed: int = 0,
    method: str = "grad_cam",
    label: Any = None,
    batch_size: int = 8,
    cascade: int = 0,
    **passes: Unpack[Passes],
) -> RandomisedWeights:
    """Compare Grad-CAM maps with those of copies whose weights are shuffled (Adebayo et al. 2018).

    In a copy the entries of every parameter tensor are permuted, which keeps their distribution and destroys what was
    learnt; statistics of batch norms stay. A map that hardly changes shows edges of the image, not the network.

    Args:
        model: any network; it is copied, not changed.
        inputs: as for `toolkit.grad_cam`.
        layers: as for `toolkit.grad_cam`.
        target: use `ClassSum` or `inside="reference"`: a region inside the prediction would be another one in the
            copies, and may be empty there.
        draws: shuffled copies.
        seed: of the shuffles.
        method: as for `toolkit.grad_cam`.
        label: label map(s) for bare arrays or paths.
        batch_size: images per pass.
        cascade: shuffle in this many steps from the output down to the input, each step on top of those before
            (Adebayo's cascading randomisation); 0 shuffles everything at once.
        **passes: select, patch_size, overlap, divisor, precision and activation, as for `toolkit.grad_cam`.

    Returns:
        `numbers`: layer, case, draw, status (of the network's own map, or of the copy's), rank_correlation (Spearman, of the raw maps; NaN
        if one is constant or says nothing), and for a
        cascade shuffled_down_to, the module nearest the input whose weights are shuffled.

    Raises:
        As `toolkit.grad_cam`, and ConfigError for less than one draw.

    Example:
        >>> numbers = tk.randomised_weights(model, case, "bottleneck", tk.ClassSum("LV"), draws=2).table()
    """
    label = list(label) if hasattr(label, "__next__") else label
    options: dict[str, Any] = {"method": method, "label": label, "batch_size": batch_size, **passes}
    if hasattr(inputs, "__iter__") and not (hasattr(inputs, "shape") or hasattr(inputs, "__getitem__")):
        inputs = list(inputs)  # an iterator can be read once only, and a loader may shuffle anew
    own = grad_cam(model, inputs, layers, target, **options)
    rows = []
    groups: list[tuple[set[str] | None, str]] = [(None, "")]
    if cascade:
        groups = _cascade(Predictor(model, **passes), own.image[:1].to(device_of(model)), cascade)
    for draw, (modules, down_to) in itertools.product(range(draws), groups):
        other = grad_cam(shuffled(model, seed, draw, modules), inputs, list(own), target, **options)
        for layer in own:
            for index, (case, one, two) in enumerate(zip(own.cases, own[layer], other[layer], strict=True)):
                states = (own.status[layer][index], f"{other.status[layer][index]} in the copy")
                silent = [state for state in states if state.removesuffix(" in the copy") not in TELLING]
                row = {"layer": layer, "case": case, "draw": draw} | ({"shuffled_down_to": down_to} if cascade else {})
                correlation = math.nan if silent else rank_correlation(one, two)
                rows.append(row | {"status": (silent or states)[0], "rank_correlation": correlation})
    shown = {"target": own.target, "method": method}
    settings = {"layers": own.layers, **shown, "draws": draws, "seed": seed, "cascade": cascade}
    made_by = provenance(model, own.provenance.get("data"), **settings)
    return RandomisedWeights(numbers=as_table(rows), **shown, provenance=made_by)


def _cascade(predictor: Predictor, image: Tensor, steps: int) -> list[tuple[set[str] | None, str]]:
    """Growing sets of modules with weights, from the last one that runs to the first, and the name of the newest."""
    network = predictor.model
    modules = {**named(network), "": network}
    owners = [n for n, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    calls = trace_calls(network, [predictor.one_window(image)], select=predictor.select).calls
    last = {str(call.name.path): call.end for call in calls}
    order = sorted(owners, key=lambda name: -last.get(name, -1))
    cuts = sorted({math.ceil(len(order) * step / steps) for step in range(1, steps + 1)} - {0})
    return [(set(order[:cut]), order[cut - 1] or type(network).__name__) for cut in cuts]


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of two maps; NaN if one of them is constant."""
    from scipy import stats

    one, two = first.flatten().double().numpy(), second.flatten().double().numpy()
    if one.min() == one.max() or two.min() == two.max():
        return math.nan
    return float(stats.spearmanr(one, two).statistic)
