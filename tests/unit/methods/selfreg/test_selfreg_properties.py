"""Acceptance properties 1 to 18 of the SelfReg losses, and SelfReg on a network through the training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError, ProtocolError
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.terms import (
    channel_score,
    draw_channels,
    expected_semantic_consistency,
    internal_distillation,
    semantic_consistency,
)
from toolkit.models.unet import unet
from toolkit.training.protocol import StepContext, keyed_generator
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(sides: tuple[int, ...], classes: int = 3, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "image": torch.randn(images, 1, *sides, generator=generator),
        "label": torch.randint(0, classes, (images, 1, *sides), generator=generator),
    }


def test_scr_01_zero_case_and_not_zero_for_equal_maps() -> None:
    one = seeded(2, 1, 8, 8)
    teacher = one.expand(-1, 5, -1, -1)
    student = torch.nn.functional.avg_pool2d(one, 2).expand(-1, 7, -1, -1)
    generator = torch.Generator().manual_seed(0)
    assert semantic_consistency(student, teacher, generator=generator).item() < 1e-30
    f = seeded(2, 6, 8, 8)
    assert semantic_consistency(f, f, generator=generator).item() > 0.1


@pytest.mark.parametrize("mode", ["code", "expected"])
def test_scr_02_what_feeds_only_the_teacher_gets_no_gradient(mode: str) -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8, 8))
    step = TrainingStep(network, SegmentationObjective(), [SelfReg(mode=mode)])
    batch = batch_of((16, 16))
    objective = TrainingStep(network, SegmentationObjective())(batch).total
    total = step(batch).total
    assert objective is not None
    assert total is not None
    difference = dict(
        zip(
            [n for n, _ in network.named_parameters()],
            torch.autograd.grad(total - objective, list(network.parameters()), allow_unused=True),
            strict=True,
        )
    )
    moved = {name for name, g in difference.items() if g is not None and float(g.abs().max()) > 1e-9}
    assert not any(name.startswith(("head", "decoder.1")) for name in moved)
    for block in ("encoder.1", "encoder.2", "bottleneck", "decoder.2"):
        assert any(name.startswith(f"{block}.") for name in moved), block


def test_scr_03_exactly_k_student_channels_get_a_gradient() -> None:
    student = seeded(2, 9, 4, 4).requires_grad_()
    loss = semantic_consistency(student, seeded(2, 5, 8, 8), generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(loss, student)
    assert int((gradient.abs().sum((0, 2, 3)) > 0).sum()) == 5


def test_scr_04_samples_flips_and_channel_names() -> None:
    student, teacher = seeded(3, 6, 4, 4), seeded(3, 4, 8, 8, seed=1)
    a, b = draw_channels(6, 4, torch.Generator().manual_seed(2))
    value = semantic_consistency(student, teacher, a, b)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(semantic_consistency(student[order], teacher[order], a, b), value)
    torch.testing.assert_close(semantic_consistency(student.flip(2), teacher.flip(2), a, b), value)
    names = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    renamed = semantic_consistency(student[:, names], teacher, names.argsort()[a], b)
    torch.testing.assert_close(renamed, value)


def test_scr_05_and_06_scale_and_shift() -> None:
    student, teacher = seeded(2, 4, 4, 4), seeded(2, 3, 8, 8, seed=1)
    draws = draw_channels(4, 3, torch.Generator().manual_seed(2))
    value = semantic_consistency(student, teacher, *draws)
    torch.testing.assert_close(semantic_consistency(-3 * student, -3 * teacher, *draws), 9 * value)
    z = seeded(2, 1, 8, 8, seed=5)
    pooled = torch.nn.functional.avg_pool2d(z, 2)
    torch.testing.assert_close(semantic_consistency(student + pooled, teacher + z, *draws), value)


def test_scr_07_mean_over_draws_is_the_closed_form() -> None:
    student, teacher = seeded(2, 6, 4, 4), seeded(2, 4, 8, 8, seed=1)
    generator = torch.Generator().manual_seed(0)
    values = torch.stack([semantic_consistency(student, teacher, generator=generator) for _ in range(2000)])
    error = values.std() / 2000**0.5
    assert abs(values.mean() - expected_semantic_consistency(student, teacher)) < 5 * error


def test_scr_08_pooling_composes_for_whole_ratios() -> None:
    teacher, student = seeded(1, 3, 224, 224), seeded(1, 3, 14, 14, seed=1)
    draws = draw_channels(3, 3, torch.Generator().manual_seed(0))
    half_way = torch.nn.functional.adaptive_avg_pool2d(teacher, 56)
    torch.testing.assert_close(
        semantic_consistency(student, half_way, *draws), semantic_consistency(student, teacher, *draws)
    )


def test_ifd_09_and_10_zero_and_opposite_gradients() -> None:
    assert internal_distillation(seeded(2, 1, 5, 5).expand(-1, 6, -1, -1)).item() == 0.0
    x = seeded(2, 8, 5, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(internal_distillation(x), x)
    assert float(gradient.sum(1).abs().max()) < 1e-15
    assert float(gradient.abs().max()) > 0


def test_ifd_11_channel_and_position_permutations() -> None:
    x = seeded(2, 8, 5, 4)
    value = internal_distillation(x)
    channels = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    positions = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(internal_distillation(x[:, channels]), value)
    torch.testing.assert_close(internal_distillation(x.flatten(2)[..., positions]), value)


def test_ifd_12_scale() -> None:
    x = seeded(2, 8, 5, 4)
    for factor in (3.0, -0.5):
        torch.testing.assert_close(internal_distillation(factor * x), factor**2 * internal_distillation(x))
    scaled = x * torch.linspace(0.5, 4, 8, dtype=torch.float64).view(1, 8, 1, 1)
    assert torch.equal(channel_score(scaled).argsort(), channel_score(x).argsort())
    assert not torch.isclose(internal_distillation(scaled), internal_distillation(x))


def test_ifd_13_dead_channel() -> None:
    x = seeded(2, 6, 4, 4)
    x[:, 2] = 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(internal_distillation(x), x)
    assert channel_score(x)[2] == 0
    assert bool(gradient.isfinite().all())


def test_ifd_14_duplicated_batch() -> None:
    x = seeded(2, 6, 4, 4)
    twice = torch.cat((x, x))
    torch.testing.assert_close(internal_distillation(twice), internal_distillation(x))
    assert torch.equal(channel_score(twice).argsort(), channel_score(x).argsort())


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("stop_gradient", ["none", "top"])
def test_ifd_odd_channel_counts_leave_out_the_middle(channels: int, stop_gradient: str) -> None:
    x = seeded(2, channels, 4, 4).requires_grad_()
    loss = internal_distillation(x, stop_gradient=stop_gradient)
    order, half = channel_score(x).argsort(descending=True), channels // 2
    top, bottom = x[:, order[:half]], x[:, order[channels - half :]]
    top = top.detach() if stop_gradient == "top" else top
    expected = (top - bottom).square().mean() if half else x.sum() * 0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("sides", [(16, 24), (8, 8, 16)])
def test_total_15_and_16_weights(sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 6, 8), dims=len(sides))
    batch = batch_of(sides)

    def run(*regularizers: SelfReg) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        part = TrainingStep(network, SegmentationObjective(), regularizers)(batch, step=5)
        assert part.total is not None
        return (part.total.detach(), part.terms, list(torch.autograd.grad(part.total, list(network.parameters()))))

    plain, objective, gradients = run()
    silent, _, same = run(SelfReg(0.0, 0.0))
    assert torch.equal(plain, silent)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    total, terms, _ = run(SelfReg(0.2, 0.5))
    torch.testing.assert_close(total, plain + 0.2 * terms["selfreg/scr"] + 0.5 * terms["selfreg/ifd"])
    assert {name: value for name, value in terms.items() if name in objective} == objective
    only, terms, _ = run(SelfReg(0.2, 0.0))
    assert set(terms) - set(objective) == {"selfreg/scr"}
    torch.testing.assert_close(only, plain + 0.2 * terms["selfreg/scr"])


def test_total_16_group_weights_and_modes() -> None:
    names = ("encoder.2", "encoder.3", "bottleneck", "decoder.3", "decoder.2", "head_input")
    maps = {name: seeded(2, 4, 6, 6, seed=k) for k, name in enumerate(names)}
    context = StepContext(batch={}, model=nn.Identity(), features=maps, generator=keyed_generator(0))
    ifd = {name: internal_distillation(f) for name, f in maps.items()}
    encoder = torch.stack([ifd[n] for n in names[:3]])
    decoder = torch.stack([ifd[n] for n in names[3:5]])
    scr = torch.stack([expected_semantic_consistency(maps[n], maps["head_input"]) for n in names[:5]])
    terms = SelfReg(mode="expected")(context)
    torch.testing.assert_close(terms["ifd"], encoder.mean() + decoder.mean())
    torch.testing.assert_close(terms["scr"], scr.mean())
    literal = SelfReg(mode="paper_literal", scr_draw="expected")(context)
    by_index = [internal_distillation(maps[n], "index", "top") for n in names]
    torch.testing.assert_close(literal["ifd"], torch.stack(by_index).mean())
    torch.testing.assert_close(literal["scr"], scr.mean())


def test_total_17_the_method_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8, 8))
    batch = batch_of((16, 16))
    before = network.eval()(batch["image"])
    TrainingStep(network, SegmentationObjective(), [SelfReg()])(batch)
    assert torch.equal(network(batch["image"]), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_total_18_half_precision_maps_are_summed_in_float32() -> None:
    f = torch.full((2, 4, 64, 64), 100.0, dtype=torch.float16)
    f[:, :2] = -200.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = internal_distillation(f, order="index")
        pair = semantic_consistency(f[:, :1], f[:, 3:])
    assert value.dtype == pair.dtype == torch.float32
    assert value.item() == pair.item() == 90000.0


def test_normalised_maps_make_both_losses_scale_free() -> None:
    maps = {n: seeded(2, 4, 6, 6, seed=k) for k, n in enumerate(("bottleneck", "decoder.2", "head_input"))}
    scaled = {name: 7.0 * f for name, f in maps.items()}
    values = [
        SelfReg(normalise=True)(StepContext(batch={}, model=nn.Identity(), features=f, generator=keyed_generator(1)))
        for f in (maps, scaled)
    ]
    for name in ("scr", "ifd"):
        torch.testing.assert_close(values[0][name], values[1][name])


def test_taps_on_the_unet_leave_out_the_first_and_the_last_block() -> None:
    network = unet(1, 2, channels=(2, 2, 2, 2))
    assert SelfReg().taps_on(network) == (
        "encoder.2",
        "encoder.3",
        "bottleneck",
        "decoder.3",
        "decoder.2",
        "head_input",
    )
    assert SelfReg(mode="paper_literal").taps_on(network)[0] == "encoder.1"


def test_draws_follow_the_step_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 6, 8))
    step, batch = TrainingStep(network, SegmentationObjective(), [SelfReg()]), batch_of((16, 16))
    before = torch.get_rng_state()
    values = [float(step(batch, step=s).terms["selfreg/scr"]) for s in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_student_draw_keeps_the_teachers_order() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = draw_channels(9, 4, generator, "student")
    assert teacher.tolist() == [0, 1, 2, 3]
    assert len(set(student.tolist())) == 4
    student, teacher = draw_channels(3, 8, generator, "student")
    assert student.tolist() == [0, 1, 2]
    assert len(set(teacher.tolist())) == 3


def test_gradient_ratio_and_diagnostics_are_reported() -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 6, 8))
    regularizer = SelfReg()
    part = TrainingStep(network, SegmentationObjective(), [regularizer])(batch_of((16, 16)), logging=True)
    assert float(part.gradients["selfreg"]) > 0
    assert float(part.gradients["segmentation@selfreg"]) > 0
    assert regularizer.diagnostics()["feature_rms"] > 0


def test_bad_settings_and_networks_without_blocks() -> None:
    for options in ({"mode": "fast"}, {"scr": -1}, {"scr_draw": "all"}, {"grouping": "none"}):
        with pytest.raises(ConfigError):
            SelfReg(**options)
    with pytest.raises(ConfigError, match="channel-first"):
        semantic_consistency(seeded(2, 4, 4), seeded(2, 4, 4, 4))
    with pytest.raises(ConfigError, match="order"):
        internal_distillation(seeded(2, 4, 4, 4), order="random")
    with pytest.raises(ConfigError, match="as many"):
        semantic_consistency(seeded(1, 4, 4, 4), seeded(1, 4, 4, 4), torch.arange(3), torch.arange(2))
    with pytest.raises(ProtocolError, match="groups"):
        SelfReg()(StepContext(batch={}, model=nn.Identity(), features={"head_input": seeded(1, 2, 4, 4)}))


def test_rebuilt_from_its_description() -> None:
    original = SelfReg(0.1, 0.2, groups=[{"encoder": ["a"], "decoder": ["b"]}], teacher="c", normalise=True)
    assert registry.build("regularizer", registry.describe(original)) == original
