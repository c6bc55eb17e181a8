"""Distances between clouds against golden numbers, scipy, closed forms and brute force."""

from __future__ import annotations

import math

import exact_distances
import numpy as np
import pytest
import torch
from golden_cases import golden_case
from scipy import stats
from scipy.spatial.distance import cdist

from toolkit.errors import ResultError
from toolkit.measure.distances import linear_cka, median_squared_distance, procrustes, rbf_kernel, unbiased_hsic


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor, dict[str, np.ndarray]]:
    numbers = golden_case("segreg", "drift_other").numbers()
    return torch.from_numpy(numbers["a"]), torch.from_numpy(numbers["b"]), numbers


def test_golden_drift_other(pair: tuple[torch.Tensor, torch.Tensor, dict[str, np.ndarray]]) -> None:
    a, b, expected = pair
    angles = exact_distances.subspace_angles(a, b, 2)
    got = {
        "frechet_squared": exact_distances.frechet(a, b),
        "frechet_squared_b_vs_standard_normal": exact_distances.frechet_to_standard_normal(b),
        "procrustes_disparity": procrustes(a, b),
        "subspace_angles_rad_desc": angles.flip(0),
        "grassmann_geodesic": angles.square().sum().sqrt(),
        "chordal": angles.sin().square().sum().sqrt(),
        "centroid_shift": exact_distances.centroid_shift(a, b),
        "mmd_sigma2": median_squared_distance(torch.cat((a, b))),
        "mmd2_unbiased": exact_distances.maximum_mean_discrepancy(a, b),
        "mmd2_biased": exact_distances.maximum_mean_discrepancy(a, b, biased=True),
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_golden_cka() -> None:
    numbers = golden_case("segreg", "drift_cka").numbers()
    a, b, turn = (torch.from_numpy(numbers[name]) for name in ("a", "b", "rotation"))
    got = {
        "linear_cka_biased": linear_cka(a, b),
        "linear_cka_debiased": linear_cka(a, b, debiased=True),
        "linear_cka_gram": exact_distances.kernel_cka(a @ a.T, b @ b.T),
        "rbf_cka_half_median": exact_distances.rbf_cka(a, b),
        "linear_cka_under_rotation": linear_cka(a, a @ turn),
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, numbers[name], rtol=1e-8, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(
        exact_distances.kernel_cka(a @ a.T, b @ b.T, debiased=True), numbers["linear_cka_debiased"], rtol=1e-8
    )


def test_unbiased_hsic_is_the_mean_over_distinct_quadruples() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = torch.stack([rbf_kernel(torch.randn(6, 3, generator=generator)) for _ in range(3)])
    k, h = kernels[0].numpy(), kernels[1].numpy()
    number, total, count = 6, 0.0, 0
    for i in range(number):
        for j in range(number):
            for q in range(number):
                for r in range(number):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (h[i, j] + h[q, r] - 2 * h[i, q])
                        count += 1
    assert float(unbiased_hsic(kernels)[0, 1]) == pytest.approx(total / count, rel=1e-10)


def test_cka_invariances() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(80, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))[0]
    for measure in (linear_cka, exact_distances.rbf_cka, lambda x, y: linear_cka(x, y, debiased=True)):
        assert float(measure(a, a)) == pytest.approx(1, abs=1e-12)
        assert float(measure(a, b)) == pytest.approx(float(measure(b, a)), abs=1e-12)
        assert float(measure(a, b)) == pytest.approx(float(measure(3 * a @ turn + 5, b)), abs=1e-9)
    few = torch.randn(10, 200, generator=generator)
    other = torch.randn(10, 200, generator=generator)
    assert linear_cka(few, other) > 0.9
    assert abs(linear_cka(few, other, debiased=True)) < 0.2


def test_closed_forms() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # exactly N(0, I) in its moments
    assert float(exact_distances.frechet_to_standard_normal(x)) == pytest.approx(0, abs=1e-9)
    assert float(exact_distances.frechet(x, 3 * x + 1)) == pytest.approx(5 * 1 + 5 * (3 - 1) ** 2, rel=1e-6)
    assert float(exact_distances.centroid_shift(x, x + 2, scale=1.0)) == pytest.approx(2)
    assert float(procrustes(x, -4 * x + 7)) == pytest.approx(0, abs=1e-9)
    directions = torch.nn.functional.normalize(torch.randn(5, 2000, generator=generator), dim=0)
    shifted = exact_distances.sliced_wasserstein(x, x + 1, directions)
    assert float(shifted) == pytest.approx(1.0, rel=0.05)  # E (d'1)^2 = |1|^2 / C
    one = directions[:, :1]
    reference = stats.wasserstein_distance((x @ one.double())[:, 0], (x @ one.double() + 0.3)[:, 0])
    assert float(exact_distances.sliced_wasserstein(x @ one.double(), x @ one.double() + 0.3, torch.ones(1, 1))) == (
        pytest.approx(reference, rel=1e-9)
    )


def test_mmd_against_loops() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 0.5
    kernel = [np.exp(-cdist(p, q, "sqeuclidean") / 4) for p, q in ((x, x), (y, y), (x, y))]
    expected = (
        np.mean([kernel[0][i, j] for i in range(12) for j in range(12) if i != j])
        + np.mean([kernel[1][i, j] for i in range(9) for j in range(9) if i != j])
        - 2 * kernel[2].mean()
    )
    got = exact_distances.maximum_mean_discrepancy(torch.from_numpy(x), torch.from_numpy(y), bandwidth=2.0)
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_subspace_angle_of_a_turned_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 3, generator=generator, dtype=torch.float64) * torch.tensor([10.0, 1.0, 0.1])
    angle = 0.4
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert float(exact_distances.subspace_angles(x, x @ turn, 1)[0]) == pytest.approx(angle, abs=1e-6)


def test_too_few_or_unequal_rows() -> None:
    x = torch.randn(3, 2)
    with pytest.raises(ResultError, match="at least 4"):
        linear_cka(x, x, debiased=True)
    with pytest.raises(ResultError, match="3 and 2"):
        linear_cka(x, x[:2])
    with pytest.raises(ResultError, match="3 and 2"):
        procrustes(x, x[:2])
    with pytest.raises(ResultError, match="as many rows"):
        exact_distances.sliced_wasserstein(x, x[:2], torch.ones(2, 1))
    with pytest.raises(ResultError, match="covariance"):
        exact_distances.frechet(x, x[:1])
    with pytest.raises(ResultError, match="at least 4"):
        unbiased_hsic(torch.zeros(2, 3, 3))
