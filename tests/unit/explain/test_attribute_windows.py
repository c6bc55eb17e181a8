"""Attributions of stitched logits against captum on a stitching written out here, and maps that lie on the image."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from toolkit.errors import ConfigError, LayerError
from toolkit.explain.attribute import attribute
from toolkit.explain.attribute_methods import METHODS, _spread
from toolkit.explain.faithfulness import faithfulness
from toolkit.explain.frozen import FixedScore, StitchedScore, freeze
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import ClassSum, Region
from toolkit.inference.inputs import as_batches
from toolkit.inference.network import Predictor
from toolkit.models.unet import unet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pointwise(dims: int) -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(convolution(1, 5, 1), nn.Tanh(), convolution(5, 3, 1))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_windows_change_nothing_for_a_network_of_single_voxels(method: str, dims: int) -> None:
    net, image = pointwise(dims), noise(2, 1, *[7, 6, 5][:dims])
    options = {"layer": "0"} if method == "layer_conductance" else {"window": 3, "stride": 2}
    if method not in ("occlusion", "feature_ablation", "layer_conductance"):
        options = {}
    whole = attribute(net, image, method, Region(0), steps=8, **options)
    parts = attribute(net, image, method, Region(0), steps=8, patch_size=[4, 3, 3][:dims], overlap=0.3, **options)
    for name, maps in whole.maps.items():
        torch.testing.assert_close(parts.maps[name], maps, atol=2e-5, rtol=1e-4)
    assert torch.equal(parts.region, whole.region)
    torch.testing.assert_close(parts.score, whole.score)
    torch.testing.assert_close(parts.baseline_score, whole.baseline_score)


def stitched_by_hand(net: nn.Module, image: Tensor) -> Tensor:
    """Two windows of 8 x 8 that overlap by half, weighted by a Gaussian of sd 1 around their middle."""
    axis = torch.exp(-((torch.arange(8) - 3.5) ** 2) / 2)
    weight = (axis[:, None] * axis).clamp_min(1e-3)
    left, right = net(image[..., 0:8]), net(image[..., 4:12])
    total = nn.functional.pad(weight * left, (0, 4)) + nn.functional.pad(weight * right, (4, 0))
    return total / (nn.functional.pad(weight, (0, 4)) + nn.functional.pad(weight, (4, 0)))


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "occlusion", "feature_ablation"])
def test_captum_on_the_stitched_logits(method: str) -> None:
    torch.manual_seed(0)
    net, image, base = unet(1, 2, channels=(4, 8)).eval(), noise(1, 1, 8, 12), torch.zeros(1, 1, 8, 12)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    region = stitched_by_hand(net, image).argmax(1) == 1
    assert 0 < int(region.sum()) < region.numel()

    def score(x: Tensor) -> Tensor:
        return (stitched_by_hand(net, x)[:, 1] * region).flatten(1).sum(1)

    found = attribute(
        net, image, method, Region(1), baseline="zero", steps=8, window=4, stride=2, patch_size=(8, 8), overlap=0.5
    )
    assert torch.equal(found.region[:, 0], region)
    if method == "integrated_gradients":
        expected = captum.IntegratedGradients(score).attribute(image, base, n_steps=8)
    elif method == "saliency":
        expected = captum.Saliency(score).attribute(image.clone().requires_grad_(), abs=False)
    elif method == "occlusion":
        expected = captum.Occlusion(score).attribute(image, (1, 4, 4), (1, 2, 2), baselines=base)
    else:
        cells = (torch.arange(8)[:, None] // 4 * 3 + torch.arange(12) // 4)[None, None]
        expected = captum.FeatureAblation(score).attribute(image, baselines=base, feature_mask=cells)
    torch.testing.assert_close(found["input"], expected.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.score, score(image))


def test_path_methods_stay_complete() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8), dims=3, norm="batch"), noise(1, 1, 12, 8, 8)
    for method, layer in (("integrated_gradients", None), ("layer_conductance", "decoder.1")):
        result = attribute(net, image, method, ClassSum(1), layer=layer, steps=64, patch_size=(8, 8, 8))
        row = result.table().iloc[0]
        change = abs(row["score"] - row["baseline_score"])
        assert abs(row["completeness_gap"]) < 0.03 * change
        assert result.maps[layer or "input"].shape == image.shape


def test_units_are_spread_evenly_and_keep_their_sum() -> None:
    values = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    found = _spread(values, torch.zeros(1, 1, 4, 6), "layer")
    assert found[0, 0, 0].tolist() == pytest.approx([1 / 6] * 3 + [2 / 6] * 3)
    assert found[0, 0, 3].tolist() == pytest.approx([3 / 6] * 3 + [5 / 6] * 3)
    finer = _spread(noise(1, 4, 10, 6), torch.zeros(1, 1, 5, 3), "layer")
    torch.testing.assert_close(finer.sum(), noise(1, 4, 10, 6).sum())


def test_untouched_windows_are_remembered_not_guessed() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 2, channels=(4, 8)).eval(), noise(1, 1, 16, 24)
    (batch,) = as_batches(image, net)
    predictor = Predictor(net, patch_size=(8, 8))
    frame = predictor.frame(image)
    with torch.no_grad():
        frozen = freeze(ClassSum(1), predictor.logits(image, frame), batch, predictor)
    score = StitchedScore(predictor, frozen, frame, image)
    changed = image.repeat(3, 1, 1, 1)
    changed[1, :, :3, :3], changed[2] = 0, noise(1, 16, 24, seed=1)
    runs: list[int] = []
    net.register_forward_pre_hook(lambda _, x: runs.append(len(x[0])))
    quick = score.in_batches(changed, 2)
    with torch.no_grad():
        direct = torch.stack([FixedScore(predictor, frozen, frame)(one[None])[0] for one in changed])
    torch.testing.assert_close(quick, direct, rtol=1e-4, atol=1e-4)
    assert len(score.parts) > 4
    del runs[:]
    torch.testing.assert_close(score.in_batches(changed[1:2], 1), direct[1:2], rtol=1e-4, atol=1e-4)
    assert sum(runs) == 1  # the corner lies in one window only
    with torch.enable_grad():
        torch.testing.assert_close(score(changed), direct, rtol=1e-4, atol=1e-4)


def test_faithfulness_stitches_as_the_result_did() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8)), noise(1, 1, 16, 16)
    tiled = {"patch_size": (8, 8), "overlap": 0.5}
    own = attribute(net, image, "input_x_gradient", ClassSum(1), baseline="zero", **tiled)
    cam = grad_cam(net, image, "decoder.1", ClassSum(1), **tiled)
    for result, name in ((own, "input"), (cam, "decoder.1")):
        found = faithfulness(net, result, ClassSum(1), steps=2, orders=1, perturbations=2, baseline="zero")
        predictor = Predictor(net, patch_size=(8, 8))
        order = result.resized(name).flatten().argsort(descending=True, stable=True)[:128]
        half = image.flatten().index_fill(0, order, 0.0).view_as(image)
        net.eval()
        score = [float(predictor.logits(x)[:, 1].detach().sum()) for x in (image, half, torch.zeros_like(image))]
        expected = (score[1] - score[2]) / (score[0] - score[2])
        assert found.curves[f"{name}/image0000/deletion"][1].item() == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(faithfulness(net, own, ClassSum(1), steps=2, orders=1).table()["infidelity"][0])


@pytest.mark.parametrize("dims", [2, 3])
def test_attributions_lie_on_the_image(tmp_path: Path, dims: int) -> None:
    affine = np.array([[0, 0, -2.5, 30], [1.1, 0.2, 0, -20], [-0.2, 1.1, 0, 5], [0, 0, 0, 1.0]])
    source = tmp_path / "scan.nii.gz"
    data = np.random.default_rng(0).normal(size=(9, 7, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, affine), source)
    net = nn.Conv2d(1, 2, 1, bias=False) if dims == 2 else nn.Conv3d(1, 2, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    tiled = {"patch_size": [4, 4, 4][:dims]} if dims == 3 else {}
    result = attribute(net, source, "input_x_gradient", ClassSum(1), **tiled)
    (path,) = result.save_nifti(tmp_path / "maps")["input"]
    image, written = nibabel.load(source), nibabel.load(path)
    assert path.name == "scan_input.nii.gz"
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-6)
    assert np.corrcoef(written.get_fdata().ravel(), image.get_fdata().ravel())[0, 1] > 0.98  # clipped outliers
    with pytest.raises(LayerError, match="no map of"):
        result.save_nifti(tmp_path / "none", ["tail"])


def test_wrong_windows() -> None:
    net, image = unet(1, 2, channels=(4, 8)), noise(1, 1, 16, 16)
    with pytest.raises(ConfigError, match=r"is not a window") as error:
        attribute(net, image, "saliency", 1, patch_size=(0, 8))
    assert error.value.where.startswith("patch_size")
    with pytest.raises(ConfigError, match="overlap"):
        attribute(net, image, "saliency", 1, patch_size=(8, 8), overlap=1.0)
