"""The checks of the workshop's exercises: each takes an answer and raises `Unsolved` with a hint unless it is right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from toolkit.apps.workshop import Workshop
from toolkit.errors import ToolkitError
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.mask_result import MaskedLatent
from toolkit.inference.layers import layer_names
from toolkit.measure.drift import Drift
from toolkit.measure.projection import Projection
from toolkit.measure.similarity import channel_similarity

Check = Callable[[Any], None]
UNETS = ("plain", "segreg", "selfreg", "dispersive")


class Unsolved(AssertionError):
    """An exercise without an answer, or with one that does not hold."""


def checks_for(workshop: Workshop) -> tuple[Check, ...]:
    """`check_1` to `check_8` for an opened bundle, each a function of the answer alone."""
    return tuple(functools.partial(check, workshop) for check in _CHECKS)


def check_1(workshop: Workshop, answer: Any) -> None:
    """How many patients (not slices) of the second site are in the test split."""
    hint = "a case is one slice; case.subject says whose it is, and a set holds everyone once."
    _given(1, answer, hint)
    cases = workshop.task.cases("test", workshop.settings["sites"][1])
    _require(1, answer == len({case.subject for case in cases}), f"{answer!r} is not the number of patients", hint)


def check_2(workshop: Workshop, answer: Any) -> None:
    """The name or alias of what the segmentation head of the U-Net reads."""
    hint = "look at the column `aliases` of tk.layers(network, case), or write the input of a layer as 'path:input'."
    _given(2, answer, hint)
    network = workshop.networks["plain"][0]
    try:
        found = layer_names(network, [str(answer)], workshop.task.cases("test")[0])
    except ToolkitError:
        found = []
    _require(2, found == ["head:input"], f"{answer!r} names {found or 'no layer'}", hint)


def check_3(workshop: Workshop, answer: Any) -> None:
    """Grad-CAM at the bottleneck for the right ventricle, inside what the network itself predicts."""
    hint = "the target is tk.Region('RV', inside='prediction'); choose a case in which the network finds one."
    _given(3, answer, hint)
    _require(3, isinstance(answer, GradCamResult), f"a {type(answer).__name__} is no Grad-CAM", hint)
    _require(3, "bottleneck" in answer, f"there are maps of {', '.join(answer)} only", hint)
    wanted = answer.target in ("Region(index='RV', inside='prediction')", "Region(index=1, inside='prediction')")
    _require(3, wanted, f"the target is {answer.target}", hint)


def check_4(workshop: Workshop, answer: Any) -> None:
    """The U-Net method whose bottleneck is least redundant after the first site."""
    hint = "tk.channel_similarity(features, 'bottleneck').redundancy for each of workshop.features[method][0]; take the smallest."
    _given(4, answer, hint)
    scores = {name: channel_similarity(workshop.features[name][0], "bottleneck").redundancy for name in UNETS}
    _require(4, answer in scores, f"{answer!r} is none of {', '.join(scores)}", hint)
    _require(4, answer == min(scores, key=lambda name: scores[name]), f"another method is below {answer}", hint)


def check_5(workshop: Workshop, answer: Any) -> None:
    """Drift of the SegReg network's head input from the first to the second site."""
    hint = "tk.drift takes a list of stores, oldest first: workshop.features['segreg'], and layer='head_input'."
    _given(5, answer, hint)
    _require(5, isinstance(answer, Drift), f"a {type(answer).__name__} is no drift", hint)
    _require(5, answer.layer == "head_input", f"the layer is {answer.layer}", hint)
    stages = [store.provenance["weights"] for store in workshop.features["segreg"]]
    _require(5, _weights(answer) == stages, "these are not the two stages of the SegReg network in order", hint)


def check_6(workshop: Workshop, answer: Any) -> None:
    """A projection of the same two stages in which positions may be compared."""
    hint = "axes fitted on each stage apart cannot be compared: basis='shared' (or 'stage1')."
    _given(6, answer, hint)
    _require(6, isinstance(answer, Projection), f"a {type(answer).__name__} is no projection", hint)
    _require(6, len(answer.coordinates) == 2, f"it has {len(answer.coordinates)} stage(s), not 2", hint)
    _require(6, answer.basis in ("shared", "stage1"), f"the basis is {answer.basis}", hint)


def check_7(workshop: Workshop, answer: Any) -> None:
    """Half of the plain U-Net's bottleneck channels masked, with no way around through the skip connections."""
    hint = "tk.mask_latent(network, case, scheme='channel', fraction=0.5, soft=False, skips='zero')."
    _given(7, answer, hint)
    _require(7, isinstance(answer, MaskedLatent), f"a {type(answer).__name__} is no masked latent", hint)
    _require(7, answer.skips == "zero", f"the skip connections are still there: skips={answer.skips!r}", hint)
    right = (answer.scheme, answer.fraction, answer.soft) == ("channel", 0.5, False)
    _require(7, right, f"scheme {answer.scheme}, fraction {answer.fraction}, soft {answer.soft}", hint)


def check_8(workshop: Workshop, answer: Any) -> None:
    """What may be said about a method that wins with one seed."""
    hint = "read the column `verdict` of tk.compare_scores(...).table() for the method, and answer with that text."
    _given(8, answer, hint)
    _require(8, str(answer).strip().startswith("inconclusive"), f"{answer!r} claims more than one seed can show", hint)


def _weights(result: Any) -> list[Any]:
    """Weights of the stages that a result's provenance names."""
    stages = result.provenance.get("stages", [])
    return [stage.get("weights") for stage in stages]


def _given(number: int, answer: Any, hint: str) -> None:
    if answer is ... or answer is None:
        raise Unsolved(f"Exercise {number} is not solved yet. Hint: {hint}")


def _require(number: int, holds: bool, found: str, hint: str) -> None:
    if not holds:
        raise Unsolved(f"Exercise {number}: {found}. Hint: {hint}")


_CHECKS: tuple[Callable[[Workshop, Any], None], ...] = (
    check_1,
    check_2,
    check_3,
    check_4,
    check_5,
    check_6,
    check_7,
    check_8,
)
