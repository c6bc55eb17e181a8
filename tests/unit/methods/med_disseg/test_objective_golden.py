"""Reference numbers of Med-DisSeg's losses and per-image scores: every case of losses_metrics.npz."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import golden_file
from torch import Tensor

from toolkit.measure.segmentation import IMAGE_SCORES, image_scores
from toolkit.methods.med_disseg.dispersion import token_rows
from toolkit.methods.med_disseg.objective import (
    MedDisSegObjective,
    MedDisSegStageOneObjective,
    balance,
    complementary,
    consistency,
    dice_cross_entropy,
    dice_loss,
    multiclass_loss,
)

FILE = golden_file("med_disseg", "losses_metrics.npz")
CASES: dict[str, dict[str, Any]] = {name: case.entry for name, case in FILE.items()}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return next(iter(FILE.values())).numbers()


def tensors(name: str, arrays: dict[str, np.ndarray]) -> list[Tensor]:
    dtype = getattr(torch, CASES[name]["dtype"])
    return [
        torch.from_numpy(arrays[key]).to(dtype).requires_grad_(key in ("mask", "fg", "bg", "uc", "mc_logits"))
        for key in CASES[name]["inputs"].values()
        if isinstance(key, str)
    ]


def close(name: str, loss: Tensor, arrays: dict[str, np.ndarray]) -> None:
    case = CASES[name]
    np.testing.assert_allclose(loss.item(), case["value"], **case["tolerance"])
    stored = case["expected"].get("loss", case["expected"].get("total"))
    if stored:
        np.testing.assert_allclose(loss.item(), arrays[stored], **case["tolerance"])


def gradient_close(name: str, loss: Tensor, arrays: dict[str, np.ndarray], **inputs: Tensor) -> None:
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    for key, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(gradient, arrays[f"{name}/{key}"], **CASES[name]["tolerance"])


def logit(p: Tensor) -> Tensor:
    return p.log() - (1 - p).log()


@pytest.mark.parametrize("name", ["dicebce_mask", "dicebce_bg"])
@pytest.mark.parametrize("with_logits", [False, True])
def test_dice_cross_entropy(name: str, with_logits: bool, arrays: dict[str, np.ndarray]) -> None:
    probability, target = tensors(name, arrays)
    loss = dice_cross_entropy(probability, target, logit(probability) if with_logits else None)
    close(name, loss, arrays)
    gradient_close(name, loss, arrays, grad=probability)


def test_dice(arrays: dict[str, np.ndarray]) -> None:
    close("dice", dice_loss(*tensors("dice", arrays)), arrays)


def test_consistency(arrays: dict[str, np.ndarray]) -> None:
    first, second = tensors("consistency", arrays)
    loss = consistency(first, second)
    close("consistency", loss, arrays)
    gradient_close("consistency", loss, arrays, grad_a=first, grad_b=second)


def test_complementary(arrays: dict[str, np.ndarray]) -> None:
    close("complementary", complementary(*tensors("complementary", arrays)), arrays)
    constants = {"uniform": (0.3, 0.3, 0.3), "hard": (1.0, 0.0, 0.0), "two_on": (1.0, 1.0, 0.0)}
    for name, values in constants.items():
        maps = [torch.full((2, 1, 3, 4), value, dtype=torch.float64) for value in values]
        close(f"complementary_{name}", complementary(*maps), arrays)


@pytest.mark.parametrize("name", ["stage2_total", "stage2_total_nodisp"])
def test_stage_two_total(name: str, arrays: dict[str, np.ndarray]) -> None:
    settings, maps = (
        CASES[name]["hyperparameters"],
        dict(zip(("mask", "fg", "bg", "uc"), tensors(name, arrays), strict=False)),
    )
    for part in ("fg", "bg"):
        np.testing.assert_allclose(balance(maps[part]).item(), settings[f"beta_{part}"], rtol=1e-6)
    logits = {key: logit(p) for key, p in maps.items()}
    mask = torch.cat((torch.zeros_like(logits["mask"]), logits["mask"]), dim=1)
    batch = {"image": mask, "label": torch.from_numpy(arrays["y_fg"]).long()}
    terms = MedDisSegObjective()((mask, logits["fg"], logits["bg"], logits["uc"]), batch)
    assert list(terms) == ["mask", "foreground", "background", "complementary"]
    dispersive = CASES[name]["inputs"]["dispersive_value"] or 0.0
    total = torch.stack(list(terms.values())).sum() + settings["lambda"] * dispersive
    close(name, total, arrays)
    gradient_close(name, total, arrays, **{f"grad_{key}": p for key, p in maps.items()})


@pytest.mark.parametrize("name", ["stage1_total", "stage1_total_nodisp"])
def test_stage_one_total(name: str, arrays: dict[str, np.ndarray]) -> None:
    clean, strong, _ = tensors(name, arrays)
    outputs = [torch.cat((torch.zeros_like(p), logit(p)), dim=1) for p in (clean, strong)]
    batch = {"image": outputs[0], "label": torch.from_numpy(arrays["y_fg"]).long()}
    terms = MedDisSegStageOneObjective()(outputs, batch)
    assert list(terms) == ["clean", "strong", "consistency"]
    dispersive = CASES[name]["inputs"]["dispersive_value_each_view"] or 0.0
    total = torch.stack(list(terms.values())).sum() + CASES[name]["hyperparameters"]["lambda"] * 2 * dispersive
    close(name, total, arrays)
    gradient_close(name, total, arrays, grad_view_a=clean, grad_view_b=strong)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cedice", {}),
        ("cedice_w", {"class_weights": [0.5, 1, 2, 1.5]}),
        ("cedice_ignore2", {"ignore_label": 2}),
        ("softdice", {"cross_entropy": 0, "dice": 1, "include_background": True}),
    ],
)
def test_multiclass(name: str, options: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    logits, target = tensors(name, arrays)
    loss = multiclass_loss(logits, target.long(), **options)
    close(name, loss, arrays)
    gradient_close(name, loss, arrays, grad=logits)


def test_metrics(arrays: dict[str, np.ndarray]) -> None:
    scores = image_scores(*(torch.from_numpy(arrays[key]) for key in ("metric_prob", "metric_target")))
    assert [name.lower() for name in CASES["metrics"]["hyperparameters"]["columns"]] == list(IMAGE_SCORES)
    np.testing.assert_allclose(scores, arrays["metric_values"], **CASES["metrics"]["tolerance"])


def test_spatial_tokens(arrays: dict[str, np.ndarray]) -> None:
    rows = token_rows(torch.from_numpy(arrays["tokens_map"]))
    np.testing.assert_array_equal(rows, arrays["tokens_rows"])


def test_every_case_of_the_file_is_used() -> None:
    assert set(CASES) == {
        "dicebce_mask",
        "dicebce_bg",
        "dice",
        "consistency",
        "complementary",
        "complementary_uniform",
        "complementary_hard",
        "complementary_two_on",
        "stage1_total",
        "stage1_total_nodisp",
        "stage2_total",
        "stage2_total_nodisp",
        "cedice",
        "cedice_w",
        "cedice_ignore2",
        "softdice",
        "metrics",
        "spatial_tokens",
    }
