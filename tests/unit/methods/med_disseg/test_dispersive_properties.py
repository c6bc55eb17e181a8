"""The loss properties of the method's acceptance list (9.1 and 9.3), from closed forms and invariances."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.methods.med_disseg.dispersion import PRESETS, dispersive_loss

DELTA = 1e-8
FORMS = [
    ("infonce_l2", "released"),
    ("infonce_cosine", "released"),
    ("hinge", "released"),
    ("covariance", "released"),
    ("infonce_l2", "original"),
    ("hinge", "default"),
    ("infonce_cosine", "default-cosine"),
]
NOT_COSINE = [form for form in FORMS if form[0] != "infonce_cosine"]
PAIRWISE = [form for form in FORMS if form[0] != "covariance"]


def rows(batch: int = 8, features: int = 16, scale: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, features, dtype=torch.float64, generator=generator)


def value_and_gradient(z: Tensor, *arguments: object, **options: object) -> tuple[float, Tensor]:
    z = z.detach().clone().requires_grad_()
    loss = dispersive_loss(z, *arguments, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


def test_9_1_table_identical_rows() -> None:
    z = torch.full((6, 12), 0.7, dtype=torch.float64)
    expected = {"infonce_l2": math.log1p(DELTA), "infonce_cosine": math.log1p(DELTA), "hinge": 1.0, "covariance": 0.0}
    for variant, value in expected.items():
        assert dispersive_loss(z, variant, preset="released").item() == pytest.approx(value, abs=1e-15)
    assert dispersive_loss(z, preset="original").item() == pytest.approx(0.0, abs=1e-15)


def test_9_1_table_far_rows() -> None:
    z = 1e6 * rows()
    assert dispersive_loss(z, preset="released").item() == pytest.approx(math.log(DELTA))
    assert dispersive_loss(z, "hinge", preset="released").item() == 0
    assert dispersive_loss(z, preset="original").item() == pytest.approx(-math.log(8))


def test_9_1_table_orthogonal_rows_and_two_rows() -> None:
    tau, d = 0.4, 0.6
    eye = 3 * torch.eye(5, 9, dtype=torch.float64)
    assert dispersive_loss(eye, "infonce_cosine", tau, "released").item() == pytest.approx(
        math.log(math.exp(-1 / tau) + DELTA), rel=1e-12
    )
    pair = torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 3.0 + d, 0.0]], dtype=torch.float64)
    assert dispersive_loss(pair, "infonce_l2", tau, "released").item() == pytest.approx(
        math.log(math.exp(-d / tau) + DELTA), rel=1e-12
    )
    assert dispersive_loss(pair, "hinge", tau, "released").item() == pytest.approx((1 - d) ** 2)
    assert dispersive_loss(pair, "infonce_l2", tau, "original").item() == pytest.approx(
        math.log((1 + math.exp(-(d**2) / (4 * tau))) / 2), rel=1e-12
    )


@pytest.mark.parametrize(("variant", "preset"), FORMS)
def test_9_1_table_ranges_and_batch_of_one(variant: str, preset: str) -> None:
    tau = 0.5
    low, high = {
        ("infonce_l2", "released"): (math.log(DELTA), math.log1p(DELTA)),
        ("infonce_cosine", "released"): (math.log(math.exp(-2 / tau) + DELTA), math.log1p(DELTA)),
        ("infonce_l2", "original"): (-math.log(8), 0.0),
        ("infonce_cosine", "default-cosine"): (-2 / tau, 0.0),
        ("hinge", "released"): (0.0, 1.0),
        ("hinge", "default"): (0.0, 1.0),
        ("covariance", "released"): (0.0, math.inf),
    }[variant, preset]
    for seed in range(5):
        for scale in (1e-4, 0.1, 1.0, 30.0):
            loss = dispersive_loss(rows(scale=scale, seed=seed), variant, tau, preset).item()
            assert low - 1e-12 <= loss <= high + 1e-12
    single = dispersive_loss(rows(batch=1).requires_grad_(), variant, tau, preset)
    assert single.item() == 0
    assert not single.requires_grad


@pytest.mark.parametrize(("variant", "preset"), FORMS)
def test_9_1_1_permutations_and_rotations(variant: str, preset: str) -> None:
    z = rows()
    loss, gradient = value_and_gradient(z, variant, 0.5, preset)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    permuted, permuted_gradient = value_and_gradient(z[order], variant, 0.5, preset)
    assert permuted == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-10, atol=1e-13)
    columns = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    assert value_and_gradient(z[:, columns], variant, 0.5, preset)[0] == pytest.approx(loss, rel=1e-12)
    if variant != "covariance":
        rotation, _ = torch.linalg.qr(rows(16, 16, seed=5))
        assert value_and_gradient(z @ rotation, variant, 0.5, preset)[0] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(("variant", "preset"), NOT_COSINE)
def test_9_1_2_translation(variant: str, preset: str) -> None:
    z = rows()
    loss, gradient = value_and_gradient(z, variant, 0.5, preset)
    moved, _ = value_and_gradient(z + rows(1, 16, seed=9), variant, 0.5, preset)
    assert moved == pytest.approx(loss, rel=1e-10)
    assert gradient.sum(dim=0).abs().max() < 1e-13 * max(1.0, gradient.abs().max().item()) * 8


@pytest.mark.parametrize("preset", ["released", "default-cosine"])
def test_9_1_3_cosine_scaling_and_bounds(preset: str) -> None:
    z, tau = rows(), 0.5
    loss, gradient = value_and_gradient(z, "infonce_cosine", tau, preset)
    scales = torch.linspace(0.1, 40, 8, dtype=torch.float64).unsqueeze(1)
    assert value_and_gradient(z * scales, "infonce_cosine", tau, preset)[0] == pytest.approx(loss, rel=1e-12)
    assert (z * gradient).sum(dim=1).abs().max() < 1e-14
    simplex = torch.eye(8, dtype=torch.float64) - 1 / 8
    bound = -8 / (7 * tau)
    reached = dispersive_loss(simplex, "infonce_cosine", tau, preset).item()
    assert reached == pytest.approx(bound, abs=DELTA * math.exp(-bound) * 1.01 + 1e-12)
    assert loss > bound
    assert dispersive_loss(z.abs(), "infonce_cosine", tau, preset).item() >= -1 / tau


def test_9_1_4_scale_law_and_euler_identity() -> None:
    z, tau, c = rows(), 0.5, 2.7
    loss, gradient = value_and_gradient(z, "infonce_l2", tau, "released")
    scaled = dispersive_loss(c * z, "infonce_l2", c * tau, "released").item()
    assert scaled == pytest.approx(loss, rel=1e-12)
    d = torch.pdist(z)
    e = torch.exp(-d / tau)
    expected = -(1 / tau) * (e * d).mean() / (e.mean() + DELTA)
    assert (z * gradient).sum().item() == pytest.approx(expected.item(), rel=1e-12)
    assert expected < 0


@pytest.mark.parametrize(("variant", "preset"), [form for form in PAIRWISE if form[0] != "infonce_cosine"])
def test_9_1_5_monotone_in_one_distance(variant: str, preset: str) -> None:
    # rows 0 and 1 mirror each other about the subspace of the others: only their own distance changes with h
    others = rows(6, 8, scale=0.2)
    losses = []
    for h in torch.linspace(0.0, 0.5, 21, dtype=torch.float64):
        lift = (0.5**2 - h**2).sqrt()  # keeps the distance to the others
        extra = torch.zeros(8, 2, dtype=torch.float64)
        extra[0], extra[1] = torch.stack([h, lift]), torch.stack([-h, lift])
        z = torch.cat([torch.cat([torch.zeros(2, 8, dtype=torch.float64), others]), extra], dim=1)
        losses.append(dispersive_loss(z, variant, 0.5, preset).item())
    assert all(later <= earlier + 1e-14 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


def test_9_1_5_monotone_in_one_angle() -> None:
    losses = []
    for angle in torch.linspace(0, 3.1, 30):
        z = torch.zeros(4, 4, dtype=torch.float64)
        z[0, 0], z[1, :2] = 1, torch.tensor([torch.cos(angle), torch.sin(angle)])
        z[2, 2], z[3, 3] = 1, 1
        losses.append(dispersive_loss(z, "infonce_cosine", 0.5, "default-cosine").item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("variant", "preset"), [("infonce_l2", "released"), ("infonce_l2", "original"), ("hinge", "released")]
)
def test_9_1_6_two_rows_part_along_their_difference(variant: str, preset: str) -> None:
    z = rows(2, 5, scale=0.1)
    _, gradient = value_and_gradient(z, variant, 0.5, preset)
    torch.testing.assert_close(gradient[0], -gradient[1])
    difference = z[0] - z[1]
    cosine = torch.nn.functional.cosine_similarity(-gradient[0], difference, dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("variant", "preset"), FORMS)
def test_9_1_7_coincident_rows(variant: str, preset: str) -> None:
    z = rows()
    z[3] = z[5]
    loss, gradient = value_and_gradient(z, variant, 0.5, preset)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[3], gradient[5])


def test_9_1_7_zero_rows_have_no_gradient_under_cosine() -> None:
    z = rows()
    z[2] = 0
    loss, gradient = value_and_gradient(z, preset="default-cosine")
    assert math.isfinite(loss)
    assert gradient[2].abs().max() == 0
    # the zero row counts as orthogonal to every other row
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
    pairs = cosine[~torch.eye(8, dtype=torch.bool)]
    assert loss == pytest.approx(torch.log(torch.exp((pairs - 1) / 0.5).mean()).item(), rel=1e-12)


def test_9_1_8_underflow() -> None:
    z = rows(8, 2048, scale=1.0).float()
    assert torch.pdist(z).min() > 103 * 0.5
    loss, gradient = value_and_gradient(z, preset="released")
    assert loss == torch.tensor(DELTA).log().item()
    assert gradient.abs().max() == 0
    loss, gradient = value_and_gradient(z, preset="default")
    assert math.isfinite(loss)
    assert gradient.norm() > 1e-6
    # a distance that underflows even when normalised: log-sum-exp without self-pairs stays finite and alive
    loss, gradient = value_and_gradient(z, tau=1e-3, preset="default-cosine")
    assert math.isfinite(loss)
    assert loss < -500
    assert gradient.norm() > 1e-6


@pytest.mark.parametrize(
    ("variant", "preset"),
    [("infonce_l2", "released"), ("infonce_l2", "original"), ("infonce_l2", "default"), ("infonce_cosine", "released")],
)
def test_9_1_9_non_decreasing_in_tau(variant: str, preset: str) -> None:
    z = rows()
    losses = [dispersive_loss(z, variant, tau, preset).item() for tau in (0.1, 0.2, 0.4, 0.8, 1.6)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("variant", "preset"), FORMS)
def test_9_1_10_half_precision_is_widened(dtype: torch.dtype, variant: str, preset: str) -> None:
    z = rows(scale=3.0).to(dtype)
    expected, expected_gradient = value_and_gradient(z.float(), variant, 0.5, preset)
    z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dispersive_loss(z, variant, 0.5, preset)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.dtype == torch.float32
    assert loss.item() == expected
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize(("variant", "preset"), FORMS)
def test_9_1_11_central_differences(variant: str, preset: str) -> None:
    z = rows(5, 4)
    _, gradient = value_and_gradient(z, variant, 0.5, preset)
    h = 1e-5
    numeric = torch.zeros_like(z)
    for i in range(5):
        for j in range(4):
            up, down = z.clone(), z.clone()
            up[i, j] += h
            down[i, j] -= h
            difference = dispersive_loss(up, variant, 0.5, preset) - dispersive_loss(down, variant, 0.5, preset)
            numeric[i, j] = difference / (2 * h)
    assert (numeric - gradient).norm() < 1e-6 * gradient.norm()


def test_9_1_11_second_derivatives_exist() -> None:
    z = rows(4, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda value: dispersive_loss(value, preset="default"), (z,))


@pytest.mark.parametrize("features", [4, 16, 40])
def test_9_1_12_gram_form_of_the_covariance(features: int) -> None:
    z = rows(8, features).requires_grad_()
    covariance = torch.cov(z.T)
    explicit = (covariance - covariance.diagonal().diag()).square().sum()
    (expected,) = torch.autograd.grad(explicit, z)
    loss, gradient = value_and_gradient(z, "covariance")
    assert loss == pytest.approx(explicit.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("variant", "preset"), PAIRWISE)
def test_9_1_13_empty_bank_is_the_plain_loss(variant: str, preset: str) -> None:
    z = rows()
    plain = value_and_gradient(z, variant, 0.5, preset)
    banked = value_and_gradient(z, variant, 0.5, preset, bank=z.new_zeros((0, 16)))
    assert banked[0] == plain[0]
    assert torch.equal(banked[1], plain[1])


@pytest.mark.parametrize("self_pairs", [True, False])
def test_9_1_13_bank_adds_its_pairs(self_pairs: bool) -> None:
    z, bank = rows(4, 6), rows(7, 6, seed=4)
    preset, tau = ("original" if self_pairs else "released"), 0.5
    inside = torch.cdist(z, z)
    outside = torch.cdist(z, bank)
    if self_pairs:
        terms = torch.cat([(inside.square() / 6).flatten(), (outside.square() / 6).flatten()])
        expected = torch.exp(-terms / tau).mean().log()
    else:
        terms = torch.cat([inside[~torch.eye(4, dtype=torch.bool)], outside.flatten()])
        expected = (torch.exp(-terms / tau).mean() + DELTA).log()
    loss, gradient = value_and_gradient(z, "infonce_l2", tau, preset, bank=bank)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert gradient.norm() > 0


def test_9_1_13_bank_serves_a_batch_of_one() -> None:
    z, bank = rows(1, 6), rows(5, 6, seed=4)
    expected = torch.exp(-torch.cdist(z, bank) / 0.5).mean().add(DELTA).log().item()
    assert dispersive_loss(z, preset="released", bank=bank).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("variant", "preset"), [form for form in PAIRWISE if form[0].startswith("infonce")])
def test_9_1_13_median_rule_is_free_of_scale(variant: str, preset: str) -> None:
    z = rows()
    loss = dispersive_loss(z, variant, "median", preset).item()
    for c in (1e-3, 7.0, 1e4):
        assert dispersive_loss(c * z, variant, "median", preset).item() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(
    "arguments", [{"variant": "l2"}, {"preset": "best"}, {"tau": 0.0}, {"tau": "mean"}, {"bank": torch.zeros(3, 5)}]
)
def test_settings_that_cannot_work(arguments: dict) -> None:
    with pytest.raises(ConfigError):
        dispersive_loss(rows(), **arguments)


def test_default_cosine_is_cosine_whatever_the_variant() -> None:
    z = rows()
    assert torch.equal(
        dispersive_loss(z, preset="default-cosine"), dispersive_loss(z, "infonce_cosine", preset="default-cosine")
    )
    assert set(PRESETS) == {"released", "original", "default", "default-cosine"}
