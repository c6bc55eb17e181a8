"""The sliced Epps-Pulley statistic against numbers of public implementations, at the manifest's tolerances."""

from __future__ import annotations

import pytest
import torch
from golden_cases import golden_case
from torch import Tensor

from toolkit.features.epps_pulley import epps_pulley_by_direction, null_expectation, sliced_epps_pulley


def load(case: str) -> dict[str, Tensor]:
    return golden_case("segreg", case).tensors()


def tolerance(case: str) -> dict:
    return golden_case("segreg", case).entry["tolerance"]


def value_and_gradient(x: Tensor, directions: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = sliced_epps_pulley(x, directions, **options)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ("key", "t_max", "points"), [("tmax3_n17", 3, 17), ("tmax5_n41", 5, 41), ("tmax1_n5", 1, 5), ("tmax3_n5", 3, 5)]
)
def test_univariate(key: str, t_max: float, points: int) -> None:
    data, limits = load("epps_pulley_univariate"), tolerance("epps_pulley_univariate")
    options = {"t_max": t_max, "points": points, "scaled": True}
    columns = torch.eye(6)
    statistic = epps_pulley_by_direction(data["x"], columns, **options)
    torch.testing.assert_close(statistic, data[f"{key}__stat_f32"], **limits["f32"])
    _, gradient = value_and_gradient(data["x"], columns, **options)
    torch.testing.assert_close(gradient * 6, data[f"{key}__grad_sum_f32"], **limits["f32"])
    double = epps_pulley_by_direction(data["x"].double(), columns, **options)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, data[f"{key}__stat_f64"], **limits["f64"])


@pytest.mark.parametrize("name", ["gauss", "aniso", "leaky", "collapsed"])
def test_sliced(name: str) -> None:
    data, limits = load("sliced_epps_pulley"), tolerance("sliced_epps_pulley")
    x = data[f"{name}__x"]
    for step in (0, 1):
        directions = data[f"A_step{step}"]
        by_direction = epps_pulley_by_direction(x, directions, scaled=True)
        torch.testing.assert_close(by_direction, data[f"{name}__step{step}__per_slice"], **limits)
        value, gradient = value_and_gradient(x, directions, scaled=True)
        torch.testing.assert_close(value, data[f"{name}__step{step}__mean"], **limits)
        if step == 0:
            torch.testing.assert_close(gradient, data[f"{name}__step0__grad_mean"], **limits)


def test_sliced_batched() -> None:
    data, limits = load("sliced_epps_pulley_batched"), tolerance("sliced_epps_pulley_batched")
    by_image = torch.stack([epps_pulley_by_direction(x, data["A_step0"], scaled=True) for x in data["x"]])
    torch.testing.assert_close(by_image, data["per_slice"], **limits)
    torch.testing.assert_close(by_image.sum(), data["sum"], **limits)
    torch.testing.assert_close(by_image.where(by_image >= 1.0, 0.0), data["per_slice_clip1"], **limits)
    x = data["x"].clone().requires_grad_()
    mean = torch.stack([sliced_epps_pulley(image, data["A_step0"], scaled=True) for image in x]).mean()
    torch.testing.assert_close(mean.detach(), data["mean"], **limits)
    torch.testing.assert_close(torch.autograd.grad(mean, x)[0], data["grad_mean"], **limits)


@pytest.mark.parametrize("knots", [5, 17])
def test_two_sided_grid_is_the_folded_one(knots: int) -> None:
    data, limits = (load("sliced_epps_pulley_two_sided"), tolerance("sliced_epps_pulley_two_sided"))
    value, gradient = value_and_gradient(data["x"], data["A"], points=(knots + 1) // 2, scaled=True)
    torch.testing.assert_close(value, data[f"num_t{knots}__value"], **limits)
    torch.testing.assert_close(gradient, data[f"num_t{knots}__grad"], **limits)


def test_sigreg_minimal() -> None:
    data, limits = load("sigreg_minimal"), tolerance("sigreg_minimal")
    views = data["proj"].clone().requires_grad_()
    value = torch.stack([sliced_epps_pulley(view, data["A"], scaled=True) for view in views]).mean()
    torch.testing.assert_close(value.detach(), data["value"], **limits)
    torch.testing.assert_close(torch.autograd.grad(value, views)[0], data["grad"], **limits)


def test_feature_map_3d() -> None:
    data, limits = load("feature_map_3d"), tolerance("feature_map_3d")
    f = data["f"].clone().requires_grad_()
    value = sliced_epps_pulley(f.movedim(1, -1).flatten(0, -2), data["A"], scaled=True)
    torch.testing.assert_close(value.detach(), data["value"], **limits)
    torch.testing.assert_close(torch.autograd.grad(value, f)[0], data["grad"], **limits)
    wrong = sliced_epps_pulley(data["f"].reshape(-1, 8), data["A"], scaled=True)
    torch.testing.assert_close(wrong, data["value_if_axes_not_permuted"], **limits)
    assert not torch.isclose(wrong, data["value"], rtol=1e-2)


def normal_rows(scale: float = 1.0, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """A fine grid with normal weights: expectations under N(mean, scale^2) to rounding, without sampling."""
    x = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    return (mean + scale * x).unsqueeze(1), torch.exp(-x.square() / 2)


@pytest.mark.parametrize(
    ("key", "t_max", "points"),
    [("tmax3_n17", 3, 17), ("tmax5_n17", 5, 17), ("tmax5_n41", 5, 41), ("tmax3_n5", 3, 5), ("tmax1_n5", 1, 5)],
)
def test_closed_form(key: str, t_max: float, points: int) -> None:
    data, limits = load("epps_pulley_closed_form"), tolerance("epps_pulley_closed_form")
    options = {"t_max": t_max, "points": points}
    assert null_expectation(t_max, points) == pytest.approx(float(data[f"{key}__null_expectation_of_T"]), rel=1e-10)
    one = torch.ones(1, 1, dtype=torch.float64)
    for i, shift in enumerate(data["mean_shifts"].tolist()):
        z, weights = normal_rows(mean=shift)
        value = sliced_epps_pulley(z, one, weights=weights, **options)
        torch.testing.assert_close(value, data[f"{key}__T_over_N_for_mean_shift"][i], **limits)
    for i, scale in enumerate(data["scales"].tolist()):
        z, weights = normal_rows(scale=scale)
        value, gradient = value_and_gradient(z, one, weights=weights, **options)
        torch.testing.assert_close(value, data[f"{key}__T_over_N_for_scale"][i], **limits)
        slope = (gradient * z / scale).sum()
        torch.testing.assert_close(slope, data[f"{key}__dT_over_N_dscale"][i], **limits)
