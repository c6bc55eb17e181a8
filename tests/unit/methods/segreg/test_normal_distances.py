"""The other distances to a normal reference: reference numbers, null expectations (P14), weights, robustness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_cases import golden_case
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import sliced_epps_pulley, unit_directions
from toolkit.methods.segreg import divergences as r


def load(case: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    found = golden_case("segreg", case)
    return found.tensors(), found.entry["tolerance"]


def check(function: Callable[[Tensor], Tensor], x: Tensor, value: Tensor, gradient: Tensor, limits: dict) -> None:
    x = x.clone().requires_grad_()
    found = function(x)
    torch.testing.assert_close(found, value.to(found), **limits)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], gradient, **limits)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sliced_wasserstein_against_the_definition() -> None:
    data, limits = load("sliced_wasserstein")
    check(
        lambda x: r.sliced_wasserstein(x, data["A"]),
        data["x"],
        data["one_sample_sw2_squared_mean"],
        data["one_sample_sw2_squared_mean__grad"],
        limits,
    )
    each = torch.stack([r.sliced_wasserstein(data["x"], a.unsqueeze(1)) for a in data["A"].T])
    torch.testing.assert_close(each, data["one_sample_sw2_squared_per_slice"], **limits)


def test_covariance_distance() -> None:
    data, limits = load("weak_strong_sigreg")
    check(r.covariance_distance, data["x_C24"], data["weak_nosketch__value"], data["weak_nosketch__grad"], limits)
    check(
        lambda x: r.covariance_distance(x, data["S_32x40"]),
        data["x_C40"],
        data["weak_sketch32__value"],
        data["weak_sketch32__grad"],
        limits,
    )
    check(
        lambda x: sliced_epps_pulley(x, data["A_40x64"], t_max=5.0, points=9, scaled=True),
        data["x_C40"],
        data["strong_t5_17__value"],
        data["strong_t5_17__grad"],
        limits,
    )


def test_variance_covariance() -> None:
    data, limits = load("vicreg_terms")
    x = data["x"].clone().requires_grad_()
    hinge = r.variance_covariance(x, 1.0, 0.0)
    penalty = r.variance_covariance(x, 0.0, 1.0)
    torch.testing.assert_close(hinge.detach(), data["variance_term__both_branches_same_input"], **limits)
    torch.testing.assert_close(2 * penalty.detach(), data["covariance_term__both_branches_same_input"], **limits)
    # The reference halves the variance over its two branches and differentiates one of them.
    one_branch = 0.5 * torch.autograd.grad(hinge, x)[0]
    torch.testing.assert_close(one_branch, data["variance_term__grad_one_branch"], **limits)
    torch.testing.assert_close(torch.autograd.grad(penalty, x)[0], data["covariance_term__grad_one_branch"], **limits)


@pytest.mark.parametrize("key", ["bhep_beta0.1", "bhep_beta0.5", "bhep_beta1.0", "hz"])
def test_gaussian_kernel_distance(key: str) -> None:
    data, limits = load("bhep_henze_zirkler")
    hz = ((2 * 4 + 1) * 200 / 4) ** (1 / (4 + 4)) / 2**0.5  # Henze and Zirkler, 200 rows of 4 channels
    width = hz if key == "hz" else float(key.removeprefix("bhep_beta"))
    if key == "hz":
        assert width == pytest.approx(float(data["hz_beta"]))
    check(lambda x: r.gaussian_kernel_distance(x, width), data["x"], data[key], data[f"{key}__grad"], limits)


def test_nearest_neighbour_entropy() -> None:
    data, limits = load("koleo")
    check(r.nearest_neighbour_entropy, data["x"], data["value"], data["grad"], limits)


def test_p14_null_expectations() -> None:
    rows, channels, repeats = 512, 6, 200
    values: dict[str, list[Tensor]] = {"R2": [], "R3": [], "R4": [], "R6": []}
    for seed in range(repeats):
        z = seeded(rows, channels, seed=seed)
        directions = unit_directions(channels, 8, torch.Generator().manual_seed(seed)).double()
        values["R2"].append(rows * r.sliced_wasserstein(z, directions))
        values["R3"].append(channels * r.gaussian_kl(z, jitter=0.0))
        values["R4"].append(r.covariance_distance(z).square())
        values["R6"].append(r.gaussian_kernel_distance(z))
    mean = {name: float(torch.stack(found).mean()) for name, found in values.items()}
    assert 2.5 < mean["R2"] < 3.6
    assert mean["R3"] == pytest.approx(channels * (channels + 3) / (4 * rows), rel=0.05)
    assert mean["R4"] == pytest.approx(channels * (channels + 1) / rows, rel=0.05)
    assert mean["R6"] == pytest.approx((1 - (1 + 2 / channels) ** (-channels / 2)) / rows, rel=0.05)


def test_p11_wasserstein_pulls_an_outlier_in_proportion() -> None:
    z = torch.cat((seeded(999, 1), torch.full((1, 1), 100.0, dtype=torch.float64))).requires_grad_()
    (gradient,) = torch.autograd.grad(r.sliced_wasserstein(z, torch.ones(1, 1)), z)
    assert float(gradient[-1]) == pytest.approx(2 * (100 - 3.29) / 1000, rel=0.01)


@pytest.mark.parametrize("function", [lambda z, w: r.gaussian_kernel_distance(z, weights=w)])
def test_doubled_rows_equal_doubled_weights(function: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    z = seeded(60, 3) * 1.3 + 0.2
    weights = torch.ones(60)
    weights[:20] = 2
    torch.testing.assert_close(function(z, weights), function(torch.cat((z, z[:20])), None), rtol=1e-9, atol=0)


def test_covariance_terms_with_weights_use_the_effective_number_of_rows() -> None:
    z = seeded(40, 3)
    shares = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covariance = torch.cov(z.T, aweights=shares)
    expected = torch.linalg.matrix_norm(covariance - torch.eye(3)) + (shares / shares.sum() @ z).square().sum()
    torch.testing.assert_close(r.covariance_distance(z, weights=shares, with_mean=True), expected)
    off_diagonal = (covariance - covariance.diagonal().diag()).square().sum() / 3
    torch.testing.assert_close(r.variance_covariance(z, 0.0, 1.0, weights=shares), off_diagonal)


def test_weighted_quantiles_sit_in_the_middle_of_the_weight() -> None:
    z = torch.special.ndtri(torch.tensor([[0.2], [0.7]], dtype=torch.float64))
    value = r.sliced_wasserstein(z, torch.ones(1, 1), torch.tensor([0.4, 0.6]))
    assert float(value) == pytest.approx(0.0, abs=1e-12)


def test_gaussian_kl_by_hand() -> None:
    z = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    assert float(r.gaussian_kl(z, jitter=0.0)) == pytest.approx((1 + 4 - 1 - 0) / 2)


def test_half_inputs_and_bad_shapes() -> None:
    z = seeded(64, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert r.gaussian_kl(z).dtype == r.gaussian_kernel_distance(z).dtype == torch.float32
    with pytest.raises(ConfigError, match="two rows"):
        r.gaussian_kl(seeded(1, 4))
