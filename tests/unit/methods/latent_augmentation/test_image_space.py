"""Image-space augmentations: reference cases, closed forms, bounds, and that a network is given back as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import golden_case
from scipy.interpolate import BSpline
from scipy.ndimage import sobel
from torch import Tensor, nn

from toolkit.errors import ConfigError
from toolkit.methods.latent_augmentation import image_space
from toolkit.methods.latent_augmentation.image_space import ADVERSARIAL, RANDOM, augment_image
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.models.unet import unet
from toolkit.training.protocol import keyed_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*sides: int, count: int = 3) -> Tensor:
    return torch.rand(count, 1, *sides, generator=seeded(9))


@pytest.mark.parametrize("name", ["rand_conv_k3", "rand_conv_k7"])
def test_random_convolution_as_published(name: str) -> None:
    case = golden_case("latent_augmentation", name).tensors()
    made = image_space.convolved(case["images"], case["kernel"], case["alpha"])
    torch.testing.assert_close(made, case["output"], rtol=0, atol=1e-5)


def test_bias_field_as_published() -> None:
    case = golden_case("latent_augmentation", "adv_bias_field").tensors()
    picture, points = case["images"], case["control_points"]
    assert image_space.control_grid((48, 48)) == tuple(points.shape[2:])
    field = image_space.bias_field(points, (48, 48))
    seen = picture > 1e-3
    torch.testing.assert_close(field[seen], case["bias_field"][seen], rtol=1e-4, atol=0)
    torch.testing.assert_close(field * picture, case["biased"], rtol=1e-4, atol=1e-7)
    after = image_space.ascended(points, case["gradient"])
    torch.testing.assert_close(after, case["control_points_after"], rtol=1e-4, atol=1e-7)
    biased = image_space.bias_field(after, (48, 48)) * picture
    torch.testing.assert_close(biased, case["biased_after"], rtol=1e-4, atol=1e-7)


def test_spline_kernel_approaches_the_cubic_b_spline() -> None:
    stride = 40
    kernel = image_space._spline_kernel(stride).numpy()
    spline = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    places = (np.arange(len(kernel)) - (len(kernel) - 1) / 2) / stride
    expected = np.nan_to_num(spline(places))
    assert np.abs(kernel - expected).max() < 1e-3
    assert kernel.sum() == pytest.approx(stride)


@pytest.mark.parametrize("sides", [(48, 48), (40, 64), (37, 51), (16, 24, 32)])
def test_equal_control_points_are_kept_where_four_of_them_reach(sides: tuple[int, ...]) -> None:
    points = torch.full((2, 1, *image_space.control_grid(sides)), math.log(1.25))
    field = image_space.bias_field(points, sides)
    assert field.shape == (2, 1, *sides)
    assert float(field[(0, 0, *[side // 2 for side in sides])]) == pytest.approx(1.25, rel=1e-3)
    assert float(field.max()) <= 1.25 + 1e-6
    assert float(field.min()) > 1.1


@pytest.mark.parametrize("sides", [(48, 60), (24, 36, 30)])
def test_windows_keep_to_their_sizes(sides: tuple[int, ...]) -> None:
    mask = image_space.window_mask(200, sides, seeded())
    shares = mask.flatten(1).float().mean(1)
    smallest = math.prod(side // 6 / side for side in sides)
    largest = 5 * math.prod(side // 3 / side for side in sides)
    drawn = shares[shares > 0]
    assert float(drawn.min()) >= smallest - 1e-6
    assert float(drawn.max()) <= largest + 1e-6
    assert 0.01 < float((shares == 0).float().mean()) < 0.12, "an image stops before its first window, 1 in 20"
    border = mask.any(0)[0]
    for axis in range(len(sides)):
        assert not border.movedim(axis, 0)[:3].any()
        assert not border.movedim(axis, 0)[-3:].any()


def test_windows_inside_and_outside_are_complements() -> None:
    picture = images(36, 36) * 4 - 2
    kept, painted = (image_space.random_windows(picture, seeded(3), keep=keep) for keep in (True, False))
    changed_outside, changed_inside = kept != picture, painted != picture
    assert (changed_outside ^ changed_inside).all()
    for made in (kept, painted):
        assert torch.equal(made.amin((1, 2, 3)) >= picture.amin((1, 2, 3)), torch.ones(3, dtype=torch.bool))
        assert torch.equal(made.amax((1, 2, 3)) <= picture.amax((1, 2, 3)), torch.ones(3, dtype=torch.bool))


def test_random_convolution_spans_the_unit_range_and_draws_every_kernel() -> None:
    for sides in ((20, 24), (10, 12, 14)):
        made = image_space.random_convolution(images(*sides), seeded(1))
        assert made.flatten(1).amin(1).tolist() == [0.0] * 3
        torch.testing.assert_close(made.flatten(1).amax(1), torch.ones(3))
    sizes = {image_space.KERNELS[int(torch.randint(4, (), generator=seeded(k)))] for k in range(40)}
    assert sizes == {1, 3, 5, 7}


class Linear(nn.Module):
    """Logits (w x, 0) of a fixed weight map: the divergence's curvature is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.weight * x, torch.zeros_like(x)), 1)


def test_adversarial_noise_is_the_power_iteration_of_the_divergence() -> None:
    # For logits (w x, 0) the Hessian of KL at x is diagonal: p (1 - p) w^2. One iteration multiplies by it.
    weight = torch.linspace(0.1, 3, 36, dtype=torch.float64).reshape(1, 1, 6, 6)
    picture = torch.linspace(0.2, 0.8, 36, dtype=torch.float64).reshape(1, 1, 6, 6)
    made = image_space.adversarial_noise(Linear(weight), picture, seeded(4), size=1e-3, probe=1e-5)
    start = torch.randn(picture.shape, generator=seeded(4)).double()
    p = torch.sigmoid(weight * picture)
    expected = p * (1 - p) * weight.square() * start
    noise = (picture + 1e-3 * expected / expected.norm()).clamp(0.2, 0.8) - picture
    torch.testing.assert_close(made - picture, noise, rtol=1e-3, atol=1e-8)


def test_adversarial_bias_ascends_the_distance() -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8)).eval()
    picture = images(32, 32)
    start = torch.rand(3, 1, *image_space.control_grid((32, 32)), generator=seeded(2))
    points = math.log(0.6) + (math.log(1.4) - math.log(0.6)) * start
    before = picture * image_space.bias_field(points, (32, 32))
    after = image_space.adversarial_bias(network, picture, seeded(2))
    with torch.no_grad():
        reference = network(picture)
        distance = [image_space.prediction_distance(network(x), reference, 0.5) for x in (before, after)]
    assert distance[1] > distance[0]
    ratio = after / picture
    assert float(ratio.min()) >= 0.6 - 1e-5
    assert float(ratio.max()) <= 1.4 + 1e-5


def test_contours_are_scipys_sobel_responses() -> None:
    a, b = (torch.randn(1, 3, 8, 9, generator=seeded(k)).double() for k in (1, 2))
    maps = [x.softmax(1)[0, 1:].numpy() for x in (a, b)]
    edges = [[sobel(m[c], axis=k, mode="constant") for k in (0, 1) for c in (0, 1)] for m in maps]
    expected = np.mean([np.mean((x - y) ** 2) for x, y in zip(*edges, strict=True)])
    assert float(image_space.contour_distance(a, b)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [*RANDOM, *ADVERSARIAL])
@pytest.mark.parametrize("dims", [2, 3])
def test_gallery_is_repeatable_and_leaves_the_network_alone(method: str, dims: int) -> None:
    torch.manual_seed(1)
    network = fast_slow_network(1, 3, width=2, dims=dims).train()
    picture = images(*([32, 48] if dims == 2 else [16, 16, 32]), count=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    made = [augment_image(picture, method, network, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == picture.shape
    assert not made[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_the_search_meets_images_of_any_size_and_any_output(method: str) -> None:
    torch.manual_seed(2)
    network = unet(1, 3, channels=(4, 8)).eval()
    picture = images(33, 46)
    bare, kind = keyed_generator(3, "augment_image", method), getattr(image_space, method)
    level = picture.amin((2, 3))[:, :, None, None]

    def padded(x: Tensor) -> Tensor:
        return network(torch.cat([x, level.expand(-1, -1, 1, 46)], 2))[:, :, :33]

    expected = kind(padded, picture, bare, **({"probe": 1.0} if method == "adversarial_noise" else {}))

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.divisor = network, 2

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.inside(x)
            return {"features": -y, "mask": y}

    torch.testing.assert_close(augment_image(picture, method, network, seed=3), expected)
    torch.testing.assert_close(augment_image(picture, method, Several(), seed=3, select="mask"), expected)


def test_what_the_gallery_refuses() -> None:
    with pytest.raises(ConfigError, match="no image-space augmentation"):
        augment_image(images(8, 8), "blur")
    with pytest.raises(ConfigError, match="searched against a network"):
        augment_image(images(32, 32), "adversarial_bias")
    with pytest.raises(ConfigError, match="batch and channel"):
        augment_image(torch.zeros(8, 8), "random_windows")
