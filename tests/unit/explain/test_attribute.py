"""Attributions against closed forms of linear networks, captum called by hand, and completeness."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captum import attr as captum
from networks import Inplace, Outputs, Reused
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError
from toolkit.explain.attribute import METHODS, attribute
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.frozen import FixedScore, freeze
from toolkit.explain.targets import BoundaryBand, ClassSum, NormalisedClassSum, Region, Voxel
from toolkit.inference.inputs import as_batches
from toolkit.inference.network import Predictor
from toolkit.models.unet import unet
from toolkit.show.figures import compose


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def linear() -> nn.Conv2d:
    """Two classes, two channels, one pixel: logit_k = w_k . x + b_k."""
    net = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -1.0], [2.0, 3.0]])[..., None, None])
        net.bias.copy_(torch.tensor([0.1, -0.2]))
    return net


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "input_x_gradient", "feature_ablation"])
def test_a_linear_network_gives_weight_times_input(linear: nn.Conv2d, method: str) -> None:
    image, label = noise(2, 2, 5, 6), torch.zeros(2, 5, 6, dtype=torch.long)
    label[:, 1:3, 2:5] = 1
    options = {"window": 1, "stride": 1} if method in ("occlusion", "feature_ablation") else {}
    result = attribute(linear, image, method, Region(1, inside="reference"), label=label, baseline="zero", **options)
    weight = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    expected = weight * image * (label[:, None] == 1)
    if options:  # both channels are removed at once, so each gets the sum
        expected = expected.sum(1, keepdim=True).expand(-1, 2, -1, -1)
    torch.testing.assert_close(result["input"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.score, (weight * image - 0.1).mul(label[:, None] == 1).sum((1, 2, 3)))
    assert result.table()["region_voxels"].tolist() == [6, 6]
    assert result.table()["inside"].tolist() == pytest.approx([1, 1])


def test_saliency_is_the_gradient(linear: nn.Conv2d) -> None:
    result = attribute(linear, noise(1, 2, 4, 4), "saliency", Voxel((1, 2), 0))
    expected = torch.zeros(1, 2, 4, 4)
    expected[0, :, 1, 2] = torch.tensor([0.5, -1.0])
    torch.testing.assert_close(result["input"], expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_path_methods_are_complete_and_equal_captum(dims: int) -> None:
    torch.manual_seed(0)
    net = unet(1, 3, channels=(4, 8), dims=dims).eval()
    image = noise(1, 1, *[8] * dims)
    own = attribute(net, image, "integrated_gradients", ClassSum(2), steps=20, baseline=0.0)
    direct = captum.IntegratedGradients(lambda x: net(x)[:, 2].flatten(1).sum(1)).attribute(
        image.clone().requires_grad_(), n_steps=20
    )
    torch.testing.assert_close(own["input"], direct, atol=1e-4, rtol=1e-4)
    layer = attribute(net, image, "layer_conductance", ClassSum(2), layer="bottleneck", steps=20, baseline=0.0)
    reference = captum.LayerConductance(lambda x: net(x)[:, 2].flatten(1).sum(1), net.bottleneck).attribute(
        image.clone().requires_grad_(), n_steps=20
    )
    torch.testing.assert_close(layer["bottleneck"], reference, atol=1e-4, rtol=1e-4)
    net = unet(1, 3, channels=(4, 8), dims=dims, norm="batch").eval()  # instance norm has a pole at a flat image
    fine = attribute(net, image, "integrated_gradients", ClassSum(2), steps=128).table().iloc[0]
    assert abs(fine["completeness_gap"]) < 0.02 * abs(fine["score"] - fine["baseline_score"])


def test_conductance_at_a_layers_input_and_in_place_networks() -> None:
    torch.manual_seed(0)
    net = Inplace().eval()
    image = noise(1, 1, 8, 8)
    result = attribute(net, image, "layer_conductance", ClassSum(1), layer="head:input", steps=64)
    assert result["head:input"].shape == (1, 6, 8, 8)
    row = result.table().iloc[0]
    assert abs(row["completeness_gap"]) < 1e-2 * abs(row["score"] - row["baseline_score"])


class Contrast(nn.Module):
    """Class 1 where the image is above 1; its logit is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(1, 1, 1)  # says that images are 2D with one channel

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((torch.ones_like(x), x), 1)


def test_the_region_stays_where_it_is_when_the_image_is_changed() -> None:
    """Removing a voxel of the predicted region takes it out of the prediction, but not out of the score."""
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1], image[0, 0, 2, 2] = 3.0, 2.0
    result = attribute(Contrast(), image, "occlusion", Region(1), window=1, stride=1, baseline=-1.0)
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 1, 1], expected[0, 0, 2, 2] = 4.0, 3.0
    torch.testing.assert_close(result["input"], expected)
    assert float(result.baseline_score) == -2.0


@pytest.mark.parametrize(
    "target", [ClassSum(1), Region(2), BoundaryBand(1), Voxel((3, 3)), NormalisedClassSum(inside="prediction")]
)
def test_a_frozen_target_gives_the_targets_own_score(target: object) -> None:
    torch.manual_seed(0)
    net = unet(1, 3, channels=(4, 8)).eval()
    batch = next(as_batches(noise(2, 1, 16, 16), net))
    logits = net(batch.image).detach()
    predictor = Predictor(net)
    frozen = freeze(target, logits, batch, predictor)  # type: ignore[arg-type]
    torch.testing.assert_close(frozen.of(logits), frozen.score)
    one = FixedScore(predictor, frozen.select(1)).in_batches(batch.image[1:], 4)
    torch.testing.assert_close(one, frozen.score[1:])
    torch.testing.assert_close(frozen.of(logits * 2), frozen.score * 2)


def test_ablating_the_classes_of_a_label(linear: nn.Conv2d) -> None:
    image = noise(1, 2, 4, 4)
    label = torch.tensor([[0, 0, 1, 1]] * 4)[None]
    result = attribute(
        linear, image, "feature_ablation", ClassSum(0), label=label, features="reference", baseline="zero"
    )
    contribution = (torch.tensor([0.5, -1.0]).view(1, 2, 1, 1) * image).sum(1)
    for index in (0, 1):
        inside = label == index
        torch.testing.assert_close(
            result["input"][:, 0][inside], contribution[inside].sum().expand(8), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("build", [lambda: Outputs("list"), lambda: Outputs("dict"), Reused])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "layer_conductance"])
def test_awkward_networks(build: Callable[[], nn.Module], method: str) -> None:
    torch.manual_seed(0)
    result = attribute(build(), noise(2, 1, 8, 8), method, 1, steps=4)
    assert result["input"].shape == (2, 1, 8, 8)
    assert torch.isfinite(result["input"]).all()
    assert set(result.table()["status"]) == {"ok"}


def test_round_trip_and_figure(tmp_path: Path, linear: nn.Conv2d) -> None:
    result = attribute(linear, {"image": noise(2, 5, 7), "spacing": (1.0, 2.0)}, "saliency", ClassSum(1))
    again = AttributionResult.load(result.save(tmp_path / "attribution.tkr"))
    assert torch.equal(again["input"], result["input"])
    assert again.table().equals(result.table())
    figure = compose(result)
    assert figure.title == "Gradient of the score of 1 over the whole image"
    assert [panel.title for panel in figure.panels()] == ["image", "input"]
    named = compose(dataclasses.replace(result, classes={0: "background", 1: "LV"}))
    assert named.title == "Gradient of the score of LV over the whole image"  # as `ClassSum("LV")` would say
    assert sum(trace.type == "image" for trace in result.plot().data) >= 2
    assert result.figure(tmp_path / "attribution.png").stat().st_size > 1000


def test_wrong_calls(linear: nn.Conv2d) -> None:
    image = noise(1, 2, 4, 4)
    with pytest.raises(ConfigError, match="no method 'gradient'"):
        attribute(linear, image, "gradient")
    with pytest.raises(ConfigError, match="needs a layer"):
        attribute(linear, image, "layer_conductance")
    with pytest.raises(ConfigError, match="do not go together"):
        attribute(linear, image, "saliency", layer="head")
    with pytest.raises(ConfigError, match="baseline"):
        attribute(linear, image, baseline="median")
    with pytest.raises(ConfigError, match="no class 7"):
        attribute(linear, image, target=7)
    with pytest.raises(DataError, match="needs a reference"):
        attribute(linear, image, target=Region(1, inside="reference"))
    with pytest.raises(DataError, match="empty"):
        attribute(linear, image, target=Region(1, inside="reference"), label=torch.zeros(1, 4, 4))
    with pytest.raises(DataError, match="no reference label"):
        attribute(linear, image, "feature_ablation", features="reference")
    with pytest.raises(LayerError, match="runs 2 times"):
        attribute(Reused(), noise(1, 1, 8, 8), "layer_conductance", layer="shared")
    with pytest.raises(LayerError, match="input'"):
        attribute(linear, image, "saliency")["input'"]
