"""Targeted and random masks against the reference numbers and the properties of the method."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_cases import golden_case
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.methods.latent_augmentation import dropout_mask, targeted_mask

FRACTIONS = {
    "mask_channel_mse_hard": 0.5,
    "mask_channel_mse_soft": 0.5,
    "mask_channel_ce_hard": 0.3,
    "mask_channel_ce_soft_random": 0.5,
    "mask_channel_mse_soft_random": 0.5,
    "mask_channel_corr_hard": 1 / 3,
    "mask_channel_zero_fraction": 0.05,
    "mask_channel_ties": 0.5,
    "mask_channel_ties_cut_inside": 0.34,
    "mask_spatial_mse_hard": 0.5,
    "mask_spatial_mse_soft_random": 0.5,
    "mask_spatial_ce_hard": 0.3,
    "mask_spatial_ce_soft": 0.25,
    "mask_spatial_corr_hard": 1 / 3,
    "mask_decoder_channel_mse": 0.5,
    "mask_decoder_spatial_ce": 0.5,
}


def load(case: str) -> dict[str, Tensor]:
    arrays = golden_case("latent_augmentation", case).tensors()
    return {name: array for name, array in arrays.items() if "/" not in name}


@pytest.mark.parametrize("case", FRACTIONS)
def test_targeted_mask_gives_the_reference_mask(case: str) -> None:
    arrays = load(case)
    fraction = FRACTIONS[case] * float(arrays.get("percentile_uniform", torch.ones(())))
    annealing = 0.5 * arrays["annealing_uniform"] if "annealing_uniform" in arrays else None
    axis = "spatial" if "spatial" in case else "channel"
    mask = targeted_mask(arrays["grad"], axis, fraction, annealing)
    assert mask.shape == arrays["mask"].shape
    assert torch.equal(mask == 1, arrays["mask"] == 1)
    torch.testing.assert_close(mask, arrays["mask"], rtol=1e-6, atol=0)
    torch.testing.assert_close(arrays["z"] * mask, arrays["masked_code"], rtol=1e-5, atol=0)
    assert (mask != 1).flatten(1).sum(1).tolist() == arrays["n_masked"].tolist()


@pytest.mark.parametrize(
    "case", ["mask_channel_ce_hard", "mask_spatial_ce_hard", "mask_spatial_mse_hard", "mask_channel_mse_hard"]
)
def test_gradient_of_the_stated_loss_gives_the_reference_mask(case: str) -> None:
    arrays = load(case)
    code = arrays["z"].requires_grad_()
    up = F.interpolate(code, scale_factor=2, mode="nearest")
    output = F.conv2d(up, arrays["dec_weight"], arrays["dec_bias"])
    loss = F.cross_entropy if "ce" in case else F.mse_loss
    value = loss(output, arrays["label"])
    torch.testing.assert_close(value.detach(), arrays["loss"].to(value.dtype), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value, code)
    mask = targeted_mask(gradient, case.split("_")[1], FRACTIONS[case])
    assert torch.equal(mask, arrays["mask"])


def test_dropout_mask_gives_the_reference_code_for_the_same_keeps() -> None:
    arrays = load("mask_dropout")
    mask = dropout_mask(arrays["z"], 0.5, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    keep = (mask > 0).float()
    same = keep == arrays["keep"]
    expected = arrays["masked_code"]
    result = arrays["z"] * mask
    assert same.any()
    where = same.expand_as(result)
    torch.testing.assert_close(result[where], expected[where], rtol=1e-6, atol=0)


def test_support_by_brute_force_in_3d() -> None:
    gradient = torch.randn(3, 10, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    for axis, entries in (("channel", 10), ("spatial", 24)):
        mask = targeted_mask(gradient, axis, 0.4, 0.25)
        scores = gradient.mean((2, 3, 4)) if axis == "channel" else gradient.mean(1).reshape(3, -1)
        for sample in range(3):
            top = sorted(range(entries), key=lambda i, s=scores[sample]: -float(s[i]))[: int(0.4 * entries)]
            flat = mask[sample].flatten()
            assert {i for i in range(entries) if flat[i] != 1} == set(top)
            assert all(flat[i] == 0.25 for i in top)
    assert mask.shape == (3, 1, 2, 3, 4)


def test_scaling_keeps_and_negating_reverses_the_ranking() -> None:
    gradient = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    mask = targeted_mask(gradient, "channel", 0.25)
    assert torch.equal(mask, targeted_mask(7.5 * gradient, "channel", 0.25))
    assert torch.equal(
        targeted_mask(-gradient, "channel", 0.25), targeted_mask(gradient, "channel", 0.25, score="negated")
    )
    code = torch.rand_like(gradient)
    assert torch.equal(
        targeted_mask(gradient, "channel", 0.25, score="product", code=code),
        targeted_mask(-gradient * code, "channel", 0.25),
    )
    assert torch.equal(targeted_mask(gradient, score="absolute"), targeted_mask(gradient.abs()))


def test_a_fraction_of_one_masks_everything_and_masks_carry_no_gradient() -> None:
    gradient = torch.randn(2, 4, 3, 3, requires_grad=True)
    mask = targeted_mask(gradient, "channel", 1.0)
    assert (mask == 0).all()
    assert (targeted_mask(gradient, "spatial", 1.0, 0.25, inclusive=True) == 0.25).all()
    assert not mask.requires_grad


def test_dropout_rates_and_expectation() -> None:
    code = torch.ones(500, 40, 2)
    before = torch.get_rng_state()
    mask = dropout_mask(code, 0.3, torch.Generator().manual_seed(0))
    assert abs(float((mask == 0).float().mean()) - 0.3) < 4 * (0.21 / 20000) ** 0.5
    assert abs(float((code * mask).mean()) - 1) < 0.02
    assert not torch.equal(dropout_mask(code), dropout_mask(code))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "call",
    [
        lambda g: targeted_mask(g, "rows", 0.1),
        lambda g: targeted_mask(g, "channel", 1.2),
        lambda g: targeted_mask(g, "channel", 0.1, torch.rand(3)),
        lambda g: targeted_mask(g, "channel", 0.1, score="best"),
        lambda g: targeted_mask(g, "channel", 0.1, score="product"),
        lambda g: targeted_mask(g[0, 0], "channel", 0.1),
        lambda g: dropout_mask(g, 1.0),
    ],
)
def test_wrong_arguments_are_refused(call: object) -> None:
    with pytest.raises(ConfigError):
        call(torch.randn(2, 4, 3, 3))  # type: ignore[operator]
