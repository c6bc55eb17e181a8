"""The image-space baselines as regularizers: routes of their gradients, terms against their definitions, keyed draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.methods.latent_augmentation.image_baselines import (
    AdversarialBias,
    AdversarialNoise,
    RandomConvolution,
    RandomWindows,
    _agreement,
)
from toolkit.methods.latent_augmentation.network import FastSlowNetwork, fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.training.protocol import Regularizer, StepContext
from toolkit.training.step import TrainingStep

ALL = [RandomWindows, RandomConvolution, AdversarialNoise, AdversarialBias]


def build(**options: Any) -> FastSlowNetwork:
    torch.manual_seed(0)
    return fast_slow_network(1, 3, width=2, **options)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "image": torch.rand(2, 1, 32, 48, generator=generator),
        "label": torch.randint(0, 3, (2, 1, 32, 48), generator=generator),
    }


def context(network: FastSlowNetwork, **options: Any) -> StepContext:
    data = batch()
    with torch.no_grad():
        image_code = network.encode(data["image"])
        features = {"image_code": image_code, "shape_code": network.decouple(image_code)}
    return StepContext(
        batch=data, model=network, features=features, generator=torch.Generator().manual_seed(1), **options
    )


@pytest.mark.parametrize("kind", ALL)
def test_a_step_has_its_terms_and_gives_the_network_back(kind: type[Regularizer]) -> None:
    network, regularizer = build(), kind()
    step = TrainingStep(network, FastSlowObjective(), [regularizer])
    modes = [m.training for m in network.modules()]
    first = step(batch(), part=0, step=3, logging=True)
    first.total.backward()
    second = step(batch(), part=1, step=3, logging=True)
    assert [m.training for m in network.modules()] == modes
    assert set(second.terms) == {f"{regularizer.name}/{name}" for name in regularizer.weights(3)}
    assert all(torch.isfinite(v) and v >= 0 for v in second.terms.values())
    assert float(second.gradients[regularizer.name]) > 0
    second.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ALL)
def test_draws_are_keyed(kind: type[Regularizer]) -> None:
    values = []
    for seed in (7, 7, 8):
        one = context(build())
        one.generator = torch.Generator().manual_seed(seed)
        values.append({name: value.item() for name, value in kind()(one).items()})
    assert values[0] == values[1]
    assert values[0] != values[2]


class Made(Exception):
    """Carries the hard image out of the step that made it."""


def hard_image(regularizer: Regularizer, given: StepContext) -> torch.Tensor:
    """The image that the hard pass, which alone runs in training mode, is about to encode."""
    network: Any = given.model
    encode = network.encode

    def stop(image: torch.Tensor) -> torch.Tensor:
        if network.training:
            raise Made(image)
        return encode(image)

    network.encode = stop
    try:
        regularizer(given)
    except Made as made:
        return made.args[0]
    finally:
        del network.encode
    raise AssertionError("no hard pass")


@pytest.mark.parametrize("kind", [RandomWindows, AdversarialNoise, AdversarialBias])
def test_making_the_image_leaves_no_gradient_and_no_statistics(kind: Any) -> None:
    network = build()
    given = context(network)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    made = hard_image(kind(), given)
    assert made.shape == given.batch["image"].shape
    assert not made.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(buffers[name], value) for name, value in network.named_buffers())


def test_the_reference_is_the_standard_pass() -> None:
    network = build()
    given = context(network)
    with torch.no_grad():
        expected = network.decode_segmentation(network.decouple(network.encode(given.batch["image"])))
    references: list[torch.Tensor] = []

    class Watched(AdversarialNoise):
        def _search(self, *search: Any, reference: torch.Tensor) -> torch.Tensor:
            references.append(reference)
            return super()._search(*search, reference=reference)

    Watched()(given)
    torch.testing.assert_close(references[0], expected)


def test_noise_has_the_stated_length_and_stays_in_range() -> None:
    network = build()
    given = context(network)
    image = given.batch["image"]
    made = hard_image(AdversarialNoise(size=0.1), given)
    lengths = (made - image).flatten(1).norm(dim=1)
    assert float(lengths.max()) <= 0.1 + 1e-6
    assert float(lengths.min()) > 0.09, "clipping takes little away"
    assert made.min() >= image.min()
    assert made.max() <= image.max()


def test_agreement_is_the_mean_divergence_to_the_middle() -> None:
    logits = [torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    maps = [value.softmax(1).numpy() for value in logits]
    middle = sum(maps) / 3
    expected = sum(entropy(q, middle, axis=1).mean() for q in maps) / 3
    assert float(_agreement(logits)) == pytest.approx(float(expected), rel=1e-4)
    assert float(_agreement([logits[0]] * 3)) == pytest.approx(0, abs=1e-6)


def test_batch_norm_learns_from_hard_images_in_the_image_decoder_only() -> None:
    network = build()
    sum(RandomWindows()(context(network)).values()).backward()
    norms = {
        name.split(".")[0]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and module.weight.grad is not None
    }
    assert norms == {"image_decoder"}


def test_settings() -> None:
    for wrong in (
        lambda: RandomWindows(weight=-1),
        lambda: AdversarialNoise(size=0),
        lambda: AdversarialBias(size=1.0),
        lambda: AdversarialBias(consistency=-1),
        lambda: RandomConvolution(views=1),
    ):
        with pytest.raises(ConfigError):
            wrong()
    assert AdversarialNoise(weight=0.5, consistency=2).weights(0)["consistency"] == 1.0
    assert RandomConvolution().weights(0) == {"view_reconstruction": 1.0, "agreement": 10.0, "refined_agreement": 10.0}
    for kind in ALL:
        assert registry.build("regularizer", registry.describe(kind())) == kind()
