"""Latent augmentation: draws, gradient routes, batch-norm rules, presets; acceptance properties 5 to 14."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from golden_cases import golden_case
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError, ProtocolError
from toolkit.features.masks import targeted_mask
from toolkit.methods.latent_augmentation.network import FastSlowNetwork, fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import SCHEMES, Draw, LatentAugmentation
from toolkit.models.unet import unet
from toolkit.training.protocol import StepContext
from toolkit.training.step import TrainingStep


def build(width: int = 2, **options: Any) -> FastSlowNetwork:
    torch.manual_seed(0)
    return fast_slow_network(1, 3, width=width, **options)


def batch_of(*sides: int, images: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sides = sides or (32, 48)
    return {
        "image": torch.rand(images, 1, *sides, generator=generator),
        "label": torch.randint(0, 3, (images, 1, *sides), generator=generator),
    }


@dataclasses.dataclass(frozen=True)
class Fixed(LatentAugmentation):
    fraction: float = 0.4

    def draw(self, which: str, code: Tensor, generator: torch.Generator) -> Draw:
        return dataclasses.replace(super().draw(which, code, generator), fraction=self.fraction)


def contexts(network: nn.Module, batch: dict[str, Tensor], **options: Any) -> StepContext:
    with torch.no_grad():
        image_code = network.encode(batch["image"])
        features = {"image_code": image_code, "shape_code": network.decouple(image_code)}
    return StepContext(
        batch=batch, model=network, features=features, generator=torch.Generator().manual_seed(1), **options
    )


def updates(network: nn.Module) -> dict[str, int]:
    counts = collections.defaultdict(set)
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            counts[name.split(".")[0]].add(int(buffer))
    assert all(len(values) == 1 for values in counts.values())
    return {name: values.pop() for name, values in counts.items()}


def touched(gradients: dict[str, Tensor | None], norm: bool = True) -> set[str]:
    """Modules that got a gradient; convolution biases in front of a batch norm (true gradient 0) do not count."""
    return {n.split(".")[0] for n, g in gradients.items() if g is not None and float(g.abs().max()) > 1e-6}


def gradients_of(loss: Tensor, network: nn.Module) -> dict[str, Tensor | None]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True))


def test_05_soft_draws_share_the_support_and_hard_ones_are_identical() -> None:
    network, batch = build(), batch_of()
    context = contexts(network, batch)
    code = context.features["image_code"]

    def masks(soft: bool) -> list[Tensor]:
        regularizer = Fixed(image_schemes=("channel",), soft=soft)
        return [
            regularizer.mask(
                "image",
                code,
                network.decode_image,
                lambda made: (made - batch["image"]).square().mean(),
                torch.Generator().manual_seed(seed),
            )
            for seed in (1, 2)
        ]

    first, second = masks(soft=True)
    assert torch.equal(first < 1, second < 1)
    assert not torch.equal(first, second)
    assert float(first[first < 1].max()) < 0.5
    assert (first < 1).flatten(1).sum(1).tolist() == [6, 6, 6]
    assert torch.equal(*masks(soft=False))


def test_06_and_08_schemes_and_fractions_are_uniform() -> None:
    regularizer, generator = LatentAugmentation(), torch.Generator().manual_seed(0)
    code = torch.zeros(1, 128, 12, 12)
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    fractions = {"channel": [], "spatial": []}
    for _ in range(6000):
        draws = [regularizer.draw(which, code, generator) for which in ("image", "shape")]
        pairs[draws[0].scheme, draws[1].scheme] += 1
        for draw in draws:
            if draw.scheme != "dropout":
                fractions[draw.scheme].append(draw.fraction)
    assert len(pairs) == 9
    assert all(abs(count / 6000 - 1 / 9) < 0.02 for count in pairs.values())
    for scheme, entries, expected in (("channel", 128, 0.246), ("spatial", 144, 0.247)):
        drawn = torch.tensor(fractions[scheme])
        assert float(drawn.max()) < 0.5
        assert float(drawn.mean()) == pytest.approx(0.25, abs=0.01)
        assert float(((drawn * entries).floor() / entries).mean()) == pytest.approx(expected, abs=0.01)


def test_07_dropout_draws() -> None:
    draw = LatentAugmentation(image_schemes=("dropout",)).draw("image", torch.zeros(8, 4000, 2, 2), torch.Generator())
    assert draw.mask is not None
    assert sorted(draw.mask.unique().tolist()) == [0.0, 2.0]
    assert float((draw.mask > 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_09_making_hard_examples_leaves_no_gradient(scheme: str) -> None:
    network = build()
    regularizer = LatentAugmentation(image_schemes=(scheme,), shape_schemes=(scheme,))
    context = contexts(network, batch_of())
    image, logits = regularizer.hard_examples(context)
    assert logits is not None
    assert not image.requires_grad
    assert not logits.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert not any(code.requires_grad for code in context.features.values())


def test_10_routes_of_the_standard_terms() -> None:
    network, batch = build(), batch_of()
    fast = {"image_encoder", "decoupler", "segmentation_decoder"}
    slow = {"shape_encoder", "shape_decoder"}
    expected = {
        "reconstruction": {"image_encoder", "image_decoder"},
        "segmentation": fast,
        "shape_prediction": fast | slow,
        "shape_label": slow,
    }
    objective = FastSlowObjective()
    terms = objective(objective.forward_pass(network, batch, torch.Generator()), batch)
    assert {name: touched(gradients_of(term, network)) for name, term in terms.items()} == expected
    apart = FastSlowObjective(separate_training=True)
    terms = apart(apart.forward_pass(network, batch, torch.Generator()), batch)
    assert touched(gradients_of(terms["shape_prediction"], network)) == slow


def test_11_routes_of_the_hard_terms() -> None:
    network, batch = build(), batch_of()
    fast = {"image_encoder", "decoupler", "segmentation_decoder"}
    slow = {"shape_encoder", "shape_decoder"}
    terms = LatentAugmentation()(contexts(network, batch))
    found = {name: gradients_of(term, network) for name, term in terms.items()}
    assert {name: touched(g) for name, g in found.items()} == {
        "hard_reconstruction": {"image_encoder", "image_decoder"},
        "hard_segmentation": fast,
        "hard_shape_prediction": fast | slow,
        "hard_shape_corrupted": slow,
    }
    affine = {
        f"{name}.{p}"
        for name, m in network.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for p in ("weight", "bias")
    }
    for gradients in found.values():
        moved = {n for n in affine if gradients[n] is not None}
        assert all(n.startswith("image_decoder") for n in moved)
    assert any(found["hard_reconstruction"][n] is not None for n in affine)


def test_12_two_backward_passes_equal_one() -> None:
    batch, results = batch_of(), []
    for split in (True, False):
        network = build().double()
        doubled = {"image": batch["image"].double(), "label": batch["label"]}
        step = TrainingStep(network, FastSlowObjective(), [LatentAugmentation()])
        assert step.parts(0) == 2
        first = step(doubled, part=0).total
        if split:
            first.backward()
            step(doubled, part=1).total.backward()
        else:
            (first + step(doubled, part=1).total).backward()
        results.append([torch.zeros(()) if p.grad is None else p.grad for p in network.parameters()])
    for ours, together in zip(*results, strict=True):
        torch.testing.assert_close(ours, together, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_13_masking_nothing_decodes_the_standard_pass(scheme: str) -> None:
    network, batch = build(), batch_of()
    context = contexts(network, batch)
    regularizer = Fixed(image_schemes=(scheme,), shape_schemes=(scheme,), fraction=0.0)
    image, logits = regularizer.hard_examples(context)
    torch.testing.assert_close(image, network.decode_image(context.features["image_code"]).detach())
    torch.testing.assert_close(logits, network.decode_segmentation(context.features["shape_code"]).detach())
    assert regularizer.diagnostics()["image_masked"] == 0.0


@pytest.mark.parametrize("preset", ["final", "first"])
@pytest.mark.parametrize("schemes", [("channel", "spatial"), ("dropout", "channel"), ("dropout", "dropout")])
def test_14_batch_norm_updates_a_step(schemes: tuple[str, str], preset: str) -> None:
    network, batch = build(), batch_of()
    regularizer = LatentAugmentation(image_schemes=schemes[:1], shape_schemes=schemes[1:], preset=preset)
    step = TrainingStep(network, FastSlowObjective(), [regularizer])
    for part in range(step.parts(0)):
        step(batch, part=part)
    image, shape = (int(scheme != "dropout") for scheme in schemes)
    frozen = {
        "image_encoder": 1,
        "decoupler": 1,
        "segmentation_decoder": 1 + shape,
        "image_decoder": 2 + image,
        "shape_encoder": 2,
        "shape_decoder": 2,
    }
    every = {
        "image_encoder": 2,
        "decoupler": 2,
        "segmentation_decoder": 3 + shape,
        "image_decoder": 3 + image,
        "shape_encoder": 4,
        "shape_decoder": 4,
    }
    assert updates(network) == (frozen if preset == "final" else every)


def test_literal_preset() -> None:
    regularizer = LatentAugmentation(preset="literal", image_schemes=("dropout",), shape_schemes=("channel",))
    generator, code = torch.Generator().manual_seed(0), torch.zeros(2, 1000, 2, 2)
    draw = regularizer.draw("image", code, generator)
    assert draw.mask is not None
    assert sorted(draw.mask.unique().tolist()) == [0.0, 1.0]
    assert float((draw.mask == 0).float().mean()) == pytest.approx(draw.fraction, abs=0.05)
    assert len({regularizer.draw("image", code, generator).fraction for _ in range(5)}) == 5
    assert isinstance(regularizer.draw("shape", code, generator).factors, float)
    network, batch = build(), batch_of()
    literal = LatentAugmentation(preset="literal")(contexts(network, batch))["hard_reconstruction"]
    assert float(literal.detach()) > 0


def test_masking_the_image_code_only() -> None:
    network = build()
    regularizer = LatentAugmentation(shape_schemes=())
    terms = regularizer(contexts(network, batch_of()))
    assert (
        set(terms)
        == set(regularizer.weights(0))
        == {"hard_segmentation", "hard_reconstruction", "hard_shape_prediction"}
    )


def test_gradient_ratio_is_taken_at_the_codes_of_each_pass() -> None:
    network, batch = build(), batch_of()
    step = TrainingStep(network, FastSlowObjective(), [LatentAugmentation()])
    first = step(batch, part=0, logging=True)
    second = step(batch, part=1, logging=True)
    assert float(first.gradients["fast_slow@latent_augmentation"]) > 0
    assert float(second.gradients["latent_augmentation"]) > 0
    codes = {}
    handle = network.decoupler.register_forward_hook(lambda _, i, o: codes.update(image=i[0], shape=o))
    objective = FastSlowObjective()
    fresh = build()
    handle.remove()
    handle = fresh.decoupler.register_forward_hook(lambda _, i, o: codes.update(image=i[0], shape=o))
    step = TrainingStep(fresh, objective, [LatentAugmentation(weight=0.0)])
    assert step.parts(0) == 1
    total = step(batch).total
    handle.remove()
    expected = sum(g.square().sum() for g in torch.autograd.grad(total, list(codes.values())))
    torch.testing.assert_close(first.gradients["fast_slow@latent_augmentation"], expected, rtol=1e-4, atol=0)


def test_draws_are_keyed_and_the_global_state_is_untouched() -> None:
    batch, values = batch_of(), []
    before = torch.get_rng_state()
    for number in (7, 7, 8):
        network = build()
        torch.set_rng_state(before)
        step = TrainingStep(network, FastSlowObjective(), [LatentAugmentation()], seed=3)
        step(batch, part=0, step=number)
        values.append(step(batch, part=1, step=number).terms["latent_augmentation/hard_segmentation"])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("score", ["signed", "negated", "absolute", "product"])
def test_every_score_runs_in_half_precision_and_three_dimensions(score: str) -> None:
    network, batch = build(width=1, dims=3), batch_of(16, 32, 16, images=2)
    step = TrainingStep(network, FastSlowObjective(), [LatentAugmentation(score=score, image_schemes=("spatial",))])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [step(batch, part=number) for number in range(2)]
    for part in parts:
        assert part.total is not None
        assert part.total.dtype == torch.float32
        part.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_a_network_without_the_passes_is_refused() -> None:
    with pytest.raises(ProtocolError, match="decode_image"):
        TrainingStep(unet(1, 3, channels=(2, 2)), FastSlowObjective(), [LatentAugmentation()])


def test_images_outside_the_unit_range_are_refused() -> None:
    batch = batch_of()
    batch["image"] = 4 * batch["image"] - 2
    with pytest.raises(ConfigError, match="normalisation"):
        TrainingStep(build(), FastSlowObjective())(batch)
    TrainingStep(build(), FastSlowObjective(clip=False))(batch)


def test_impossible_settings_and_description() -> None:
    for options in ({"image_schemes": ()}, {"shape_schemes": ("rows",)}, {"preset": "last"}, {"max_fraction": 1.0}):
        with pytest.raises(ConfigError):
            LatentAugmentation(**options)
    original = LatentAugmentation(0.5, shape_schemes=("channel",), soft=False)
    assert registry.build("regularizer", registry.describe(original)) == original
    standard = FastSlowObjective(noise=0.0, label_reconstruction=False)
    assert registry.build("objective", registry.describe(standard)) == standard


def test_inclusive_cut_masks_the_whole_tie() -> None:
    gradient = torch.tensor([5.0, 4.0, 4.0, 4.0, 1.0, 0.0, 0.0, 0.0]).view(1, 8, 1, 1)
    strict, inclusive = (targeted_mask(gradient, fraction=0.25, inclusive=flag).flatten() for flag in (False, True))
    assert strict.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert inclusive.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert targeted_mask(gradient, fraction=0.1, inclusive=True).min() == 1


def test_schemes_are_chosen_apart_for_the_two_codes_and_equally_often_as_in_the_reference() -> None:
    """The published generator is Python's own; with another one only the thirds can agree."""
    picks = golden_case("latent_augmentation", "scheme_choice").document()["picks"]
    ours = []
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        code = torch.zeros(1, 4, 2, 2)
        regularizer = LatentAugmentation()
        ours.append([regularizer.draw(which, code, generator).scheme for which in ("image", "shape")])
    for pairs in (list(picks.values()), ours):
        spread = 4 * (2 / 9 / len(pairs)) ** 0.5  # four standard deviations of a share of one third
        for position in (0, 1):
            shares = collections.Counter(pair[position] for pair in pairs)
            assert set(shares) == {"dropout", "channel", "spatial"}
            assert all(abs(count / len(pairs) - 1 / 3) < spread for count in shares.values())
        equal = sum(first == second for first, second in pairs) / len(pairs)
        assert abs(equal - 1 / 3) < spread
