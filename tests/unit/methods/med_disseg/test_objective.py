"""Med-DisSeg's losses: the acceptance list 9.2, the two objectives, and the strong view."""

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from toolkit import registry
from toolkit.errors import ConfigError, ProtocolError
from toolkit.methods.med_disseg import MedDisSegOutput, med_disseg, med_disseg_stage_one
from toolkit.methods.med_disseg.network import TwoViews
from toolkit.methods.med_disseg.objective import (
    MedDisSegObjective,
    MedDisSegStageOneObjective,
    StrongView,
    balance,
    complementary,
    consistency,
    dice_cross_entropy,
    multiclass_loss,
)
from toolkit.models.unet import unet
from toolkit.training.protocol import keyed_generator
from toolkit.training.step import TrainingStep


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=keyed_generator(seed))


def hard(*shape: int, seed: int = 0) -> Tensor:
    return (random(*shape, seed=seed) > 0).float()


def constant(*values: float) -> list[Tensor]:
    return [torch.full((2, 1, 3, 4), value, dtype=torch.float64) for value in values]


def test_9_2_complementary_range() -> None:
    lowest, highest = 0.28912544, 1 / 3
    for values in itertools.product((0.0, 0.3, 1.0), repeat=3):
        assert lowest - 1e-8 <= complementary(*constant(*values)).item() <= highest + 1e-12
    assert complementary(*constant(0.4, 0.4, 0.4)).item() == pytest.approx(highest, rel=1e-12)
    assert complementary(*constant(0, 1, 0)).item() == pytest.approx(lowest, abs=5e-9)


def test_9_2_perfect_predictions() -> None:
    truth = hard(2, 1, 6, 5)
    assert dice_cross_entropy(truth, truth).item() == pytest.approx(0.0, abs=1e-6)
    assert consistency(truth, truth).item() == pytest.approx(0.0, abs=1e-6)
    wrong = dice_cross_entropy(1 - truth, truth).item()
    # the published form clamps the logarithm at -100
    assert wrong == pytest.approx(100 + 1 - 1 / (truth.numel() + 1), rel=1e-6)


@pytest.mark.parametrize("level", [0.001, 0.1, 0.5, 1.0])
def test_9_2_balance(level: float) -> None:
    p = torch.full((3, 1, 4, 5), level, dtype=torch.float64)
    assert balance(p).item() == pytest.approx(1 / math.tanh(3 * level), rel=1e-12)
    assert balance(p).item() >= 1


def test_balance_carries_gradient_unless_detached() -> None:
    torch.manual_seed(0)
    maps = [random(2, 1, 4, 4, seed=k).requires_grad_() for k in range(4)]
    outputs = MedDisSegOutput(torch.cat((torch.zeros_like(maps[0]), maps[0]), dim=1), *maps[1:])
    batch = {"image": maps[0], "label": hard(2, 1, 4, 4, seed=7).long()}
    for detached in (False, True):
        term = MedDisSegObjective(detach_balance=detached)(outputs, batch)["foreground"]
        p = maps[1].sigmoid()
        loss = dice_cross_entropy(p, batch["label"].float())
        expected = (balance(p).detach() if detached else balance(p)) * loss
        (gradient,) = torch.autograd.grad(term, maps[1], retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, maps[1])[0])


def test_saturated_mistakes_keep_a_gradient() -> None:
    logit = torch.tensor([[[[40.0]]]], requires_grad=True)
    target = torch.zeros(1, 1, 1, 1)
    (published,) = torch.autograd.grad(dice_cross_entropy(logit.sigmoid(), target), logit)
    (ours,) = torch.autograd.grad(dice_cross_entropy(logit.sigmoid(), target, logit), logit)
    assert published.item() == 0
    assert ours.item() == pytest.approx(1.0)


def test_consistency_targets_carry_no_gradient() -> None:
    a, b = (torch.sigmoid(random(2, 1, 4, 4, seed=k)).requires_grad_() for k in (1, 2))
    (gradient,) = torch.autograd.grad(consistency(a, b), a)
    expected = torch.nn.functional.binary_cross_entropy(a, (b > 0.5).float())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, a)[0])


def test_multiclass_consistency_and_mask() -> None:
    clean, strong = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    label = torch.randint(0, 3, (2, 1, 4, 4), generator=keyed_generator(3))
    terms = MedDisSegStageOneObjective(consistency=0.5)((clean, strong), {"image": clean, "label": label})
    assert terms["clean"] == multiclass_loss(clean, label[:, 0])
    log_a, log_b = clean.log_softmax(1), strong.log_softmax(1)
    expected = -(
        log_a.gather(1, strong.argmax(1, keepdim=True)) + log_b.gather(1, clean.argmax(1, keepdim=True))
    ).mean()
    torch.testing.assert_close(terms["consistency"], 0.5 * expected)


@pytest.mark.parametrize("stage", [1, 2])
def test_autocast_computes_the_losses_in_single_precision(stage: int) -> None:
    objective = MedDisSegStageOneObjective() if stage == 1 else MedDisSegObjective()
    logits = random(2, 2, 8, 8).bfloat16()
    auxiliary = [random(2, 1, 8, 8, seed=k).bfloat16() for k in (1, 2, 3)]
    outputs = (logits, logits.flip(0)) if stage == 1 else (logits, *auxiliary)
    batch = {"image": random(2, 3, 8, 8), "label": hard(2, 1, 8, 8).long()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(outputs, batch)
    exact = objective(tuple(x.float() for x in outputs), batch)
    for name, term in rough.items():
        assert term.dtype == torch.float32
        assert torch.equal(term, exact[name])


def test_logits_for_validation_are_found_in_both_kinds_of_output() -> None:
    logits = random(1, 2, 4, 4)
    for objective in (MedDisSegObjective(), MedDisSegStageOneObjective()):
        assert objective.logits(logits) is logits
        assert objective.logits(TwoViews(logits, logits + 1)) is logits


def test_unmet_needs_are_errors() -> None:
    network = unet(3, 2, (4, 8))
    for objective in (MedDisSegObjective(), MedDisSegStageOneObjective()):
        with pytest.raises(ProtocolError, match="forward_"):
            TrainingStep(network, objective)
    with pytest.raises(ConfigError, match="do not fit"):
        MedDisSegStageOneObjective()(
            (random(1, 2, 4, 4), random(1, 2, 4, 4)), {"image": random(1), "label": torch.zeros(1, 1, 8, 8)}
        )


def test_objectives_are_rebuilt_from_json() -> None:
    for objective in (
        MedDisSegObjective(auxiliary=0.5, detach_balance=True),
        MedDisSegStageOneObjective(strong_view={"hue": 0.2, "vertical_only": True}),
        MedDisSegStageOneObjective(strong_view=StrongView(blur=None)),
    ):
        stored = json.loads(json.dumps(registry.describe(objective)))
        twin = registry.build("objective", stored)
        if isinstance(objective, MedDisSegStageOneObjective):
            assert StrongView.of(twin.strong_view) == StrongView.of(objective.strong_view)
        else:
            assert twin == objective


def test_forward_passes_are_the_networks() -> None:
    torch.manual_seed(0)
    batch = {"image": random(2, 3, 32, 32), "label": hard(2, 1, 32, 32).long()}
    one, two = med_disseg_stage_one(encoder_width=4).eval(), med_disseg(width=16, encoder_width=4).eval()
    with torch.no_grad():
        clean, strong = MedDisSegStageOneObjective().forward_pass(one, batch, keyed_generator(0))
        view = StrongView()(batch["image"], keyed_generator(0))
        assert torch.equal(clean, one(batch["image"]))
        assert torch.equal(strong, one(view))
        output = MedDisSegObjective().forward_pass(two, batch, keyed_generator(0))
        assert torch.equal(output.logits, two(batch["image"]))


def test_the_strong_view_depends_on_its_generator_only() -> None:
    image, state = random(3, 3, 12, 10), torch.random.get_rng_state()
    first = StrongView()(image, keyed_generator(1))
    assert torch.equal(first, StrongView()(image, keyed_generator(1)))
    assert not torch.equal(first, StrongView()(image, keyed_generator(2)))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_strong_view_keeps_shape_and_range(channels: int) -> None:
    image = 5 * random(4, channels, 12, 10) - 3
    for seed in range(10):
        view = StrongView(per_image=seed % 2 == 0)(image, keyed_generator(seed))
        assert view.shape == image.shape
        low, high = image.amin(dim=(1, 2, 3)), image.amax(dim=(1, 2, 3))
        assert (view.amin(dim=(1, 2, 3)) >= low - 1e-4).all()
        assert (view.amax(dim=(1, 2, 3)) <= high + 1e-4).all()
    flat = torch.full((1, channels, 8, 8), 2.5)
    torch.testing.assert_close(StrongView()(flat, keyed_generator(0)), flat)


def test_the_strong_view_without_changes_is_the_image() -> None:
    image = random(2, 3, 9, 9)
    still = StrongView(brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=None)
    torch.testing.assert_close(still(image, keyed_generator(0)), image, rtol=1e-5, atol=1e-5)


def test_one_draw_serves_the_batch_unless_asked_otherwise() -> None:
    image = random(1, 3, 9, 9).repeat(4, 1, 1, 1)
    together = StrongView()(image, keyed_generator(5))
    assert all(torch.equal(together[0], view) for view in together)
    apart = StrongView(per_image=True)(image, keyed_generator(5))
    assert not torch.equal(apart[0], apart[1])


def test_grey_and_blur_do_what_they_say() -> None:
    image = random(2, 3, 16, 16)
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    grey = StrongView(**still, grey=1.0, blur=None)(image, keyed_generator(0))
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(grey[:, 0], torch.einsum("bchw,c->bhw", image, torch.tensor([0.299, 0.587, 0.114])))
    # a single bright pixel becomes the kernel itself, with weights exp(-k^2 / (2 sigma^2))
    dot = torch.zeros(1, 1, 15, 15)
    dot[0, 0, 7, 7] = 1
    weights = torch.exp(-torch.arange(-3.0, 4).square() / (2 * 1.5**2))
    weights = weights / weights.sum()
    both = StrongView(**still, grey=0, blur=(1.5, 1.5))(dot, keyed_generator(0))
    torch.testing.assert_close(both[0, 0, 4:11, 4:11], torch.outer(weights, weights))
    vertical = StrongView(**still, grey=0, blur=(1.5, 1.5), vertical_only=True)(dot, keyed_generator(0))
    torch.testing.assert_close(vertical[0, 0, 4:11, 7], weights)
    assert vertical[0, 0, :, 6].abs().max() == 0


def test_hue_turns_colours_and_leaves_grey_alone() -> None:
    image = torch.zeros(2, 3, 2, 2)
    image[0, 0], image[1] = 1.0, torch.tensor([0.0, 1.0]).expand(3, 2, 2)
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "grey": 0, "blur": None}
    turned = StrongView(**still, hue=0.1)(image, keyed_generator(3))
    torch.testing.assert_close(turned[1], image[1])
    assert not torch.allclose(turned[0], image[0], atol=1e-2)


@pytest.mark.parametrize(
    "settings", [{"brightness": 2.0}, {"hue": 0.7}, {"blur": (0.0, 1.0)}, {"blur": (3.0, 1.0)}, {"grey": -1}]
)
def test_strong_views_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ConfigError):
        StrongView(**settings)
    with pytest.raises(ConfigError, match="unexpected keyword argument"):
        MedDisSegStageOneObjective(strong_view={"sharpen": 1})


def test_the_released_background_target_is_not_moved_with_the_image() -> None:
    outputs = MedDisSegOutput(random(2, 2, 4, 4), *(random(2, 1, 4, 4, seed=k) for k in (1, 2, 3)))
    label, before = (hard(2, 1, 4, 4, seed=k).long() for k in (4, 5))
    batch = {"image": outputs[0], "label": label, "label_before": before}
    sound, released = (MedDisSegObjective(aligned_background=flag)(outputs, batch) for flag in (True, False))
    for name, term in sound.items():
        assert torch.equal(term, released[name]) is (name != "background")
    p = outputs[2].sigmoid()
    for terms, target in ((sound, 1 - label.float()), (released, 1 - before.float())):
        cross = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        torch.testing.assert_close(terms["background"], (cross + dice) / (p.sum() / 16).tanh())
    del batch["label_before"]
    with pytest.raises(ConfigError, match="label_before"):
        MedDisSegObjective(aligned_background=False)(outputs, batch)


def test_a_batch_of_ignored_pixels_has_no_multiclass_loss() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = multiclass_loss(logits, torch.full((2, 4, 4), 255), ignore_label=255)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
