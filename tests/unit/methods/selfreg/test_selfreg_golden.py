"""SCR, IFD and their sum against numbers of the published loss code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toolkit.methods.selfreg.terms as selfreg_module
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.terms import (
    channel_score,
    expected_semantic_consistency,
    internal_distillation,
    semantic_consistency,
)
from toolkit.training.protocol import StepContext

from .golden_selfreg import assert_array, assert_scalar, read_case

SCR = [
    "scr_same_shape",
    "scr_more_student_channels",
    "scr_fewer_student_channels",
    "scr_student_larger",
    "scr_nonint_ratio",
    "scr_rect_equal",
    "scr_single_channel",
    "scr_zero",
    "scr_rect_pool",
]
IFD = [
    "ifd_basic",
    "ifd_relu",
    "ifd_two_channels",
    "ifd_rect",
    "ifd_dead_channel",
    "ifd_zero",
    "ifd_scaled",
    "ifd_unscaled",
]


@pytest.mark.parametrize("case", SCR)
def test_semantic_consistency(case: str) -> None:
    data, entry = read_case(case)
    student, teacher = data["student"].clone().requires_grad_(), data["teacher"].clone().requires_grad_()
    loss = semantic_consistency(student, teacher, data["idx_student"], data["idx_teacher"])
    assert_scalar(loss, data["loss"], entry)
    if "loss_f64" in data:
        double = semantic_consistency(
            data["student"].double(), data["teacher"].double(), data["idx_student"], data["idx_teacher"]
        )
        assert double.item() == pytest.approx(data["loss_f64"].item(), rel=1e-12, abs=1e-30)
    loss.backward()
    assert student.grad is not None
    assert_array(student.grad, data["grad_student"], entry)
    assert teacher.grad is None


@pytest.mark.parametrize("case", IFD)
def test_internal_distillation(case: str) -> None:
    data, entry = read_case(case)
    x = data["x"].clone().requires_grad_()
    loss = internal_distillation(x)
    assert_scalar(loss, data["loss"], entry)
    assert internal_distillation(data["x"].double()).item() == pytest.approx(data["loss_f64"].item(), rel=1e-12)
    assert_array(channel_score(x), data["score"], entry)
    if "order" in data:
        assert torch.equal(channel_score(x).argsort(descending=True, stable=True), data["order"])
    (gradient,) = torch.autograd.grad(loss, x)
    assert_array(gradient, data["grad_x"], entry)


def test_score_of_single_pixel_maps() -> None:
    data, entry = read_case("ifd_1x1")
    assert_array(channel_score(data["x"]), data["score"], entry)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("ifd_index_halves", {"order": "index"}),
        ("ifd_index_halves_stopgrad", {"order": "index", "stop_gradient": "top"}),
        ("ifd_sorted_stopgrad", {"order": "score", "stop_gradient": "top"}),
    ],
)
def test_internal_distillation_variants(case: str, options: dict[str, str]) -> None:
    data, entry = read_case(case)
    x = data["x"].clone().requires_grad_()
    loss = internal_distillation(x, **options)
    assert_scalar(loss, data["loss"], entry)
    assert_array(torch.autograd.grad(loss, x)[0], data["grad_x"], entry)


def test_expectation_over_draws() -> None:
    data, entry = read_case("scr_expectation")
    student, teacher = data["student"].double().requires_grad_(), data["teacher"].double()
    loss = expected_semantic_consistency(student, teacher)
    assert_scalar(loss, data["expected_loss"], entry)
    assert_array(torch.autograd.grad(loss, student)[0], data["expected_grad_student"], entry)
    alike = expected_semantic_consistency(
        torch.nn.functional.adaptive_avg_pool2d(teacher, 5).mean(1, keepdim=True).expand(-1, 6, -1, -1), teacher
    )
    assert_scalar(alike, data["irreducible"], entry)
    assert abs(loss.item() - data["mc_mean"].item()) <= 5 * data["mc_standard_error"].item()


@pytest.mark.parametrize(("case", "layers"), [("total_unet_small", (0,)), ("total_swin_small", (1, 0))])
def test_totals_of_both_networks(case: str, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    data, entry = read_case(case)
    names = [n for n in entry["inputs"] if n[:3] in ("enc", "dec")]
    features = {n: data[n].clone().requires_grad_() for n in [*names, "final"]}
    groups = [
        {
            "encoder": sorted(n for n in names if n.startswith("enc") and n.endswith(f"_{k}")),
            "decoder": sorted(n for n in names if n.startswith("dec") and n.endswith(f"_{k}")),
        }
        for k in layers
    ]
    weight = entry["hyperparameters"]["lambda_x"]
    regularizer = SelfReg(scr=weight, ifd=weight, groups=groups, teacher="final")

    def run(maps: dict[str, Tensor]) -> dict[str, Tensor]:
        draws = iter(entry["hyperparameters"]["draw_order"])

        def given(*_: Any) -> tuple[Tensor, Tensor]:
            name = next(draws)
            return data[f"idx_student_{name}"], data[f"idx_teacher_{name}"]

        monkeypatch.setattr(selfreg_module, "draw_channels", given)
        terms = regularizer(StepContext(batch={}, model=nn.Identity(), features=maps))
        assert next(draws, None) is None
        return terms

    terms = run(features)
    total = weight * (terms["scr"] + terms["ifd"])
    assert_scalar(total, data["loss"], entry)
    total.backward()
    for name in names:
        gradient = features[name].grad
        assert gradient is not None
        assert_array(gradient, data[f"grad_{name}"], entry)
    assert features["final"].grad is None
    assert float(data["grad_final"].abs().max()) == 0.0
    double = run({name: tensor.detach().double() for name, tensor in features.items()})
    assert double["scr"].item() == pytest.approx(data["scr_sum_f64"].item(), rel=1e-12)
    assert double["ifd"].item() == pytest.approx(data["ifd_sum_f64"].item(), rel=1e-12)
