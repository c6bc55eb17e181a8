"""Acceptance properties of the SegReg loss, P1 to P13 of its method description."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import epps_pulley_by_direction, unit_directions
from toolkit.methods.segreg import sliced_epps_pulley


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def axes(channels: int, count: int, seed: int = 1) -> Tensor:
    return unit_directions(channels, count, torch.Generator().manual_seed(seed)).double()


def direct(z: Tensor, directions: Tensor, t_max: float = 3.0, points: int = 17) -> Tensor:
    """The definition, term by term."""
    t = torch.linspace(0, t_max, points, dtype=torch.float64)
    rule = torch.full_like(t, 2 * t_max / (points - 1))
    rule[0] = rule[-1] = t_max / (points - 1)
    phi = torch.exp(-(t**2) / 2)
    angle = (z.double() @ directions.double()).unsqueeze(-1) * t
    distance = (angle.cos().mean(0) - phi) ** 2 + angle.sin().mean(0) ** 2
    return (distance * rule * phi).sum(-1).mean()


def weighted_normal(scale: float = 1.0, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    return (mean + scale * x).unsqueeze(1), torch.exp(-x.square() / 2)


@pytest.mark.parametrize("rows", [64, 512, 4096])
def test_p01_null_mean_does_not_depend_on_the_number_of_rows(rows: int) -> None:
    slices = epps_pulley_by_direction(seeded(rows, 1200, dtype=torch.float32), torch.eye(1200), scaled=True)
    assert float(slices.mean()) == pytest.approx(1.0525, abs=0.10)
    free = epps_pulley_by_direction(seeded(rows, 1200, dtype=torch.float32), torch.eye(1200))
    assert float(free.mean()) == pytest.approx(1.0525 / rows, abs=0.10 / rows)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.1, 0.00482), (0.25, 0.02999), (0.5, 0.11812), (1, 0.44434), (2, 1.40837), (5, 2.84953)]
)
def test_p02_mean_shift(shift: float, expected: float) -> None:
    z, weights = weighted_normal(mean=shift)
    assert float(sliced_epps_pulley(z, torch.ones(1, 1), weights=weights)) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0.01, 0.40189),
        (0.5, 0.15119),
        (0.8, 0.02180),
        (0.9, 0.00514),
        (1.1, 0.00450),
        (1.5, 0.08425),
        (2, 0.23609),
        (5, 0.83341),
        (50, 1.25970),
    ],
)
def test_p03_scale(scale: float, expected: float) -> None:
    z, weights = weighted_normal(scale=scale)
    assert float(sliced_epps_pulley(z, torch.ones(1, 1), weights=weights)) == pytest.approx(expected, abs=6e-6)


def test_p04_joint_rotation() -> None:
    z, a = seeded(500, 12) * 1.4 + 0.2, axes(12, 40)
    rotation, _ = torch.linalg.qr(seeded(12, 12, seed=5))
    torch.testing.assert_close(
        sliced_epps_pulley(z @ rotation, rotation.T @ a), sliced_epps_pulley(z, a), rtol=1e-5, atol=0
    )
    many = axes(12, 20000, seed=9)
    torch.testing.assert_close(sliced_epps_pulley(z @ rotation, many), sliced_epps_pulley(z, many), rtol=0.03, atol=0)


def test_p05_order_of_rows_images_and_positions() -> None:
    f, a = seeded(3, 8, 6, 7), axes(8, 30)

    def value(feature: Tensor) -> Tensor:
        return sliced_epps_pulley(feature.movedim(1, -1).flatten(0, -2), a)

    expected = value(f)
    for other in (f.flip(0), f.flip(2), f.flip((2, 3)), f[[2, 0, 1]]):
        torch.testing.assert_close(value(other), expected, rtol=1e-12, atol=1e-14)


def test_p06_sign_is_exact() -> None:
    z, a = seeded(400, 10, dtype=torch.float32) + 0.3, axes(10, 32).float()
    assert torch.equal(sliced_epps_pulley(-z, a), sliced_epps_pulley(z, a))


def test_p07_channels_with_their_directions() -> None:
    z, a = seeded(400, 10) + 0.3, axes(10, 32)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sliced_epps_pulley(z[:, order], a[order]), sliced_epps_pulley(z, a), rtol=1e-12, atol=0)


def test_p08_descent_moves_towards_the_reference() -> None:
    def descent(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(sliced_epps_pulley(z, torch.ones(1, 1)), z)
        return -gradient

    x = seeded(20000, 1)
    assert descent(x + 0.5).mean() < 0
    correlation = {s: float(torch.corrcoef(torch.cat((descent(s * x), x), 1).T)[0, 1]) for s in (0.5, 2.0)}
    assert correlation[2.0] < 0
    assert correlation[0.5] == pytest.approx(0.96, abs=0.02)


def test_p09_gradient_against_autograd_and_differences() -> None:
    z, a = (seeded(60, 5) * 1.3 + 0.2).requires_grad_(), axes(5, 21)
    weights = torch.rand(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (ours,) = torch.autograd.grad(sliced_epps_pulley(z, a), z)
    (reference,) = torch.autograd.grad(direct(z, a), z)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: sliced_epps_pulley(x, a, weights=weights), z, eps=1e-6, atol=1e-6)
    (single,) = torch.autograd.grad(sliced_epps_pulley(z.float(), a), z)
    assert (single - reference).abs().max() <= 1e-5 * reference.abs().max()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), scale=st.floats(0.01, 100), shift=st.floats(-20, 20))
def test_p10_gradient_is_bounded(seed: int, rows: int, scale: float, shift: float) -> None:
    z = (seeded(rows, 1, seed=seed) * scale + shift).requires_grad_()
    (gradient,) = torch.autograd.grad(sliced_epps_pulley(z, torch.ones(1, 1), scaled=True), z)
    assert float(gradient.abs().max()) <= 5.931


def test_p11_far_outlier_has_a_bounded_gradient() -> None:
    z = torch.cat((seeded(999, 1), torch.full((1, 1), 100.0, dtype=torch.float64))).requires_grad_()
    (gradient,) = torch.autograd.grad(sliced_epps_pulley(z, torch.ones(1, 1), scaled=True), z)
    assert float(gradient[-1].abs()) < 1.0


def test_p12_collapsed_rows() -> None:
    assert float(sliced_epps_pulley(torch.zeros(50, 4), axes(4, 9))) == pytest.approx(0.4021, abs=1e-3)


def test_p13_weights() -> None:
    z, a = seeded(90, 6) * 0.7, axes(6, 20)
    plain = sliced_epps_pulley(z, a)
    torch.testing.assert_close(sliced_epps_pulley(z, a, weights=torch.full((90,), 3.0)), plain, rtol=1e-6, atol=0)
    doubled = sliced_epps_pulley(torch.cat((z, z[:30])), a)
    weights = torch.ones(90)
    weights[:30] = 2
    torch.testing.assert_close(sliced_epps_pulley(z, a, weights=weights), doubled, rtol=1e-6, atol=0)


def test_memory_kept_for_backward_is_one_gradient() -> None:
    z, a, saved = seeded(2000, 16).requires_grad_(), axes(16, 256), []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        sliced_epps_pulley(z, a)
    assert sum(saved) <= 2000 * 16 + 16 * 256 + 10


@pytest.mark.parametrize("points", [2, 3, 4, 6, 17, 33])
@pytest.mark.parametrize("rows", [1, 7, 70000])
def test_any_grid_and_row_count_equals_the_definition(points: int, rows: int) -> None:
    z, a = seeded(rows, 3) * 1.2 + 0.1, axes(3, 5)
    ours = sliced_epps_pulley(z, a, points=points, t_max=2.5)
    torch.testing.assert_close(ours, direct(z, a, 2.5, points), rtol=1e-10, atol=1e-14)


def test_autocast_and_half_inputs_are_computed_in_float32() -> None:
    z, a = seeded(300, 8, dtype=torch.float32), axes(8, 16).float()
    expected = sliced_epps_pulley(z, a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sliced_epps_pulley(z, a), expected)
    half = z.bfloat16().requires_grad_()
    value = sliced_epps_pulley(half, a)
    assert value.dtype == torch.float32
    assert torch.equal(value, sliced_epps_pulley(half.detach().float(), a))
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_errors_say_what_to_do() -> None:
    z, a = seeded(10, 4), axes(4, 3)
    with pytest.raises(ConfigError, match="movedim"):
        sliced_epps_pulley(seeded(2, 4, 5), a)
    with pytest.raises(ConfigError, match="directions"):
        sliced_epps_pulley(z, axes(5, 3))
    with pytest.raises(ConfigError, match="points"):
        sliced_epps_pulley(z, a, points=1)
    with pytest.raises(ConfigError, match="one weight a row"):
        sliced_epps_pulley(z, a, weights=torch.ones(9))
    with pytest.raises(ConfigError, match="non-negative"):
        sliced_epps_pulley(z, a, weights=-torch.ones(10))


def test_p16_free_particles_move_to_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 2.47, 8)
    z = (torch.randn(1024, 8, generator=generator) * spread + 1 / 8**0.5).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        sliced_epps_pulley(z, unit_directions(8, 64, generator)).backward()
        optimizer.step()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z.detach().T))
    assert float(eigenvalues.min()) > 0.8
    assert float(eigenvalues.max()) < 2.0
    assert float(z.detach().mean(0).norm()) < 0.1
