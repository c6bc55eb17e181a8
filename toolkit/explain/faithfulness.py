"""Whether a heat map says what the network uses: deletion, insertion, infidelity and sensitivity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.explain.attribute_methods import AttributionInput, Settings, affordable_settings, baseline_of, explain_one
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.frozen import FixedScore, Frozen, freeze, score_of
from toolkit.explain.targets import Target, as_target
from toolkit.features.modules import device_of
from toolkit.features.provenance import provenance, weights_hash
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import as_batches
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.results import Numbers, as_table


@dataclasses.dataclass(kw_only=True)
class Faithfulness(Numbers):
    """Scores of maps.

    Attributes:
        numbers: one row per map and image, see `faithfulness`.
        curves: "<name>/<case>/deletion" or ".../insertion" -> normalised score after each share (steps + 1,).
        target: what the maps explain.
    """

    curves: dict[str, Tensor]
    target: str
    kind: ClassVar[str] = "faithfulness"


def faithfulness(
    model: nn.Module,
    result: GradCamResult | AttributionResult,
    target: Target | int | str,
    *,
    steps: int = 16,
    orders: int = 5,
    baseline: str | float = "minimum",
    perturbations: int = 10,
    radius: float = 0.02,
    seed: int = 0,
    batch_size: int = 8,
    **passes: Unpack[Passes],
) -> Faithfulness:
    """How faithful maps are, by changing the image and looking at the target's score; the network is left untouched.

    Deletion replaces voxels by the baseline from the highest value of the map to the lowest, insertion puts them into
    the baseline image in that order (Petsiuk et al. 2018). The score of the fixed region is normalised to 1 for the
    image and 0 for the baseline; the area under the curve is the mean over the shares. A faithful map has a lower
    deletion and a higher insertion area than random orders. For attributions to the input, captum's infidelity (normalised,
    Gaussian noise, but for saliency in shares of the distance to the baseline) and sensitivity stand beside (Yeh et al. 2019).

    Args:
        model: the network that was explained.
        result: of `toolkit.grad_cam` or `toolkit.attribute`.
        target: the target that was explained.
        steps: shares of voxels, equally spaced.
        orders: random orders to compare with.
        baseline: see `toolkit.attribute`.
        perturbations: perturbed images of infidelity and of sensitivity; 0 leaves both out.
        radius: largest change of a voxel for sensitivity; for infidelity ten times this is the noise's sd.
        seed: of orders and noise.
        batch_size: images per pass.
        **passes: select, divisor, precision, activation as when the maps were made, see `toolkit.predict`; patch_size and
            overlap are the maps' and refused.

    Returns:
        Columns name, case, status (of the map), deletion, insertion, deletion_random, insertion_random (means over orders),
        deletion_p, insertion_p (share of random orders at least as good, counting this one), infidelity, sensitivity;
        NaN where baseline and image score alike, or for maps of another kind.

    Raises:
        ResultError: the network has other weights than the one that was explained.
        ConfigError: an invalid setting.

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.1", tk.Region("LV"))
        >>> areas = tk.faithfulness(model, cam, tk.Region("LV"), steps=4, orders=2, perturbations=0).table()
    """
    if result.provenance.get("weights") != weights_hash(model):
        fix = "Explain this network first."
        raise ResultError("These maps were made with other weights.", where="faithfulness", fix=fix)
    wanted, rows = as_target(target), []
    curves: dict[str, Tensor] = {}
    asked = result.provenance.get("parameters", {})
    if own := sorted({"patch_size", "overlap"} & passes.keys()):
        what = f"The windows are the maps': {own[0]} cannot be given here."
        raise ConfigError(what, where="faithfulness", fix="Leave it out, or make the maps with it.")
    passes |= {"patch_size": asked.get("patch_size") or "whole", "overlap": asked.get("overlap", 0.5)}
    predictor = Predictor(model, **passes)
    batch = next(iter(as_batches(result.image, model, batch_size=10**6)))
    label = None if result.label is None else result.label.to(device_of(model))
    known: dict[str, Any] = {"ids": list(result.cases), "label": label, "classes": dict(result.classes) or None}
    batch = dataclasses.replace(batch, **known)
    batch_size = predictor.affordable("faithfulness", batch.image[:1], min(batch_size, steps + 1))
    frame = predictor.frame(batch.image)
    with untouched(model, "eval"), torch.inference_mode(False):
        with torch.no_grad():
            frozen = freeze(wanted, predictor.logits(batch.image, frame), batch, predictor)
        for index, case in enumerate(result.cases):
            image, base = (batch.image[index : index + 1], baseline_of(batch.image, baseline)[index : index + 1])
            score = score_of(predictor, frozen.select(index), frame.select(index), image)

            def run(order: Tensor, i: Tensor = image, b: Tensor = base, s: FixedScore = score) -> list[Tensor]:
                return deletion_insertion(lambda x: s.in_batches(x, batch_size), i, b, order, steps)

            keys = [keyed_random("faithfulness", seed, case, k) for k in range(orders)]
            numel = image[0, 0].numel()
            chance = [run(torch.from_numpy(key.permutation(numel))) for key in keys]
            for name in result.maps:
                order = result.resized(name)[index].flatten().argsort(descending=True, stable=True)
                deleted, inserted = run(order)
                curves[f"{name}/{case}/deletion"], curves[f"{name}/{case}/insertion"] = deleted, inserted
                wrong = {"infidelity": math.nan, "sensitivity": math.nan}
                if isinstance(result, AttributionResult) and name == "input" and perturbations >= 1:
                    given = AttributionInput(image, base, frame.select(index), batch.label_of(index))
                    noise = perturbations, radius, seed
                    wrong = _captum_checks(predictor, result, index, frozen.select(index), given, noise)
                # what a cancelled or empty map scores is chance, and its row says so
                head = {"name": name, "case": case, "status": result.status[name][index]}
                rows.append({**head, **_areas(deleted, inserted, chance), **wrong})
    settings = {"target": repr(wanted), "steps": steps, "orders": orders, "baseline": baseline}
    settings |= {"perturbations": perturbations, "radius": radius, "seed": seed}
    made_by = provenance(model, result.provenance.get("data"), **settings)
    return Faithfulness(numbers=as_table(rows), curves=curves, target=repr(wanted), provenance=made_by)


def deletion_insertion(
    score: Callable[[Tensor], Tensor], image: Tensor, baseline: Tensor, order: Tensor, steps: int = 16
) -> list[Tensor]:
    """Normalised scores (steps + 1,) while voxels of one image (1, C, *S) are deleted, and while they are inserted.

    `order` holds the indices of the flattened voxels, the most important first, which go in `steps` equal shares.
    """
    numel = order.numel()
    rank = torch.empty(numel, dtype=torch.long)
    rank[order.cpu()] = torch.arange(numel)
    rank = rank.reshape(image.shape[2:]).to(image.device)
    cuts = [round(numel * step / steps) for step in range(steps + 1)]
    chosen = torch.stack([rank < cut for cut in cuts])[:, None]
    deleted, inserted = torch.where(chosen, baseline, image), torch.where(chosen, image, baseline)
    scores = [score(deleted).double().cpu(), score(inserted).double().cpu()]
    full, nothing = scores[0][0], scores[0][-1]
    change = full - nothing
    if float(change.abs()) < 1e-9 * max(1.0, float(full.abs())):
        return [torch.full_like(scores[0], math.nan)] * 2
    return [(one - nothing) / change for one in scores]


def area(curve: Tensor) -> float:
    """Area under a curve over [0, 1] by the trapezoid rule."""
    return float(torch.trapezoid(curve, dx=1 / (len(curve) - 1)))


def _areas(deleted: Tensor, inserted: Tensor, chance: list[list[Tensor]]) -> dict[str, float]:
    own = area(deleted), area(inserted)
    random = torch.tensor([[area(one) for one in pair] for pair in chance], dtype=torch.float64).reshape(-1, 2)
    defined = math.isfinite(own[0]) and len(random) > 0
    better = ((random[:, 0] <= own[0]).sum(), (random[:, 1] >= own[1]).sum())
    return {
        "deletion": own[0],
        "insertion": own[1],
        "deletion_random": float(random[:, 0].mean()) if defined else math.nan,
        "insertion_random": float(random[:, 1].mean()) if defined else math.nan,
        "deletion_p": float(1 + better[0]) / (1 + len(random)) if defined else math.nan,
        "insertion_p": float(1 + better[1]) / (1 + len(random)) if defined else math.nan,
    }


def _captum_checks(
    predictor: Predictor,
    result: AttributionResult,
    index: int,
    frozen: Frozen,
    given: AttributionInput,
    noise: tuple[int, float, int],
) -> dict[str, float]:
    """Infidelity and largest sensitivity of an attribution to the input; `noise` is perturbations, radius and seed."""
    from captum.metrics import infidelity, sensitivity_max

    image, (draws, radius, seed) = given.image, noise
    settings = affordable_settings(predictor, image, result.method, Settings(**result.settings), "faithfulness")
    score = score_of(predictor, frozen, given.frame, image)
    random = keyed_random("infidelity", seed, result.cases[index])
    local = {"saliency": torch.ones_like(image), "input_x_gradient": image}
    away = local.get(result.method, image - baseline_of(image, settings.baseline))
    away = torch.where(away == 0, 1, away)  # as captum's infidelity_perturb_func_decorator does

    def disturb(x: Tensor) -> tuple[Tensor, Tensor]:
        added = torch.from_numpy(random.normal(0, 10 * radius, tuple(x.shape))).to(x)
        return added / away, x - added

    def disturb_a_little(x: Tensor) -> Tensor:
        return x + torch.from_numpy(random.uniform(-radius, radius, tuple(x.shape))).to(x)

    def explain(x: Tensor | tuple[Tensor], **_: Any) -> tuple[Tensor]:
        def of(one: Tensor) -> Tensor:
            changed = dataclasses.replace(given, image=one, base=baseline_of(one, settings.baseline))
            return explain_one(predictor, frozen, changed, result.method, settings)

        images = x if isinstance(x, Tensor) else x[0]  # captum hands them over bare or in a tuple
        return (torch.cat([of(one) for one in images.split(1)]),)

    values = result["input"][index : index + 1].to(image)
    with torch.enable_grad():
        options = {"n_perturb_samples": draws, "max_examples_per_batch": min(settings.batch_size, draws)}
        wrong = infidelity(score, disturb, image, values, normalize=True, **options)
        moved = sensitivity_max(explain, image, disturb_a_little, n_perturb_samples=draws)
    return {"infidelity": float(wrong), "sensitivity": float(moved)}
