"""Stitched maps against plain ones where both must agree, and NIfTI files against the image's own file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, LayerError
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import BoundaryBand, ClassSum, LesionComponent, NormalisedClassSum, Region, Voxel
from toolkit.models.unet import unet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pointwise(dims: int) -> nn.Sequential:
    """A network that looks at one voxel at a time: windows cannot change what it does."""
    torch.manual_seed(0)
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(convolution(1, 5, 1), nn.Tanh(), convolution(5, 3, 1))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "target", [Region(0), LesionComponent(0), NormalisedClassSum((0, 1, 2), inside="prediction"), Voxel([5, 6, 7])]
)
def test_local_maps_are_the_same_with_and_without_windows(dims: int, target: object) -> None:
    if isinstance(target, Voxel):
        target = Voxel(target.position[:dims])
    net, image = pointwise(dims), noise(2, 1, *[11, 12, 10][:dims])
    whole = grad_cam(net, image, ["0", "1"], target, method="hires_cam")  # type: ignore[arg-type]
    parts = grad_cam(
        net,
        image,
        ["0", "1"],
        target,
        method="hires_cam",
        patch_size=[6, 4, 5][:dims],
        overlap=0.4,  # type: ignore[arg-type]
    )
    for layer in whole:
        torch.testing.assert_close(parts[layer], whole[layer], atol=1e-5, rtol=1e-5)
    assert torch.equal(parts.region, whole.region)
    assert torch.equal(parts.prediction, whole.prediction)
    torch.testing.assert_close(parts.score, whole.score)
    assert parts.status == whole.status


def test_tiles_without_overlap_are_explained_one_by_one() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8)).eval(), noise(1, 1, 16, 24)
    stitched = grad_cam(net, image, ["bottleneck", "decoder.1"], ClassSum(1), patch_size=(16, 8), overlap=0.0)
    for start in (0, 8, 16):
        tile = grad_cam(net, image[..., start : start + 8], ["bottleneck", "decoder.1"], ClassSum(1))
        for layer in stitched:
            torch.testing.assert_close(stitched[layer][..., start : start + 8], tile.resized(layer))


def test_a_window_as_large_as_the_image_changes_nothing() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8), dims=3).eval(), noise(1, 1, 8, 8, 8)
    target, label = BoundaryBand(1, inside="reference"), torch.zeros(1, 8, 8, 8)
    label[:, 2:5, 2:6, 2:6] = 1
    stitched = grad_cam(net, image, "bottleneck", target, label=label, patch_size=(8, 8, 8))
    plain = grad_cam(net, image, "bottleneck", target, label=label)
    torch.testing.assert_close(stitched["bottleneck"], plain["bottleneck"])


def test_wrong_windows() -> None:
    net, image = unet(1, 2, channels=(4, 8)), noise(1, 1, 16, 16)
    with pytest.raises(ConfigError, match="is not a window"):
        grad_cam(net, image, "bottleneck", 1, patch_size=(0, 8))
    with pytest.raises(ConfigError, match="2 sides"):
        grad_cam(net, image, "bottleneck", 1, patch_size=(8, 8, 8))
    with pytest.raises(ConfigError, match="overlap"):
        grad_cam(net, image, "bottleneck", 1, patch_size=(8, 8), overlap=1.0)
    shrinking = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1))
    with pytest.raises(LayerError, match=r"size \(6, 6\) for an image of size \(8, 8\)"):
        grad_cam(shrinking, image, "0", 1, patch_size=(8, 8))


class Doubling(nn.Module):
    """A layer that passes the image on, so that its Grad-CAM is the image times a positive number."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.copy, self.head = convolution(1, 1, 1, bias=False), convolution(1, 2, 1, bias=False)
        nn.init.ones_(self.copy.weight)
        nn.init.constant_(self.head.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.copy(x))


def stored_volume(path: Path) -> Path:
    """A volume with permuted and flipped axes, oblique in the world."""
    affine = np.array([[0, 0, -2.5, 30], [1.1, 0.2, 0, -20], [-0.2, 1.1, 0, 5], [0, 0, 0, 1.0]])
    data = np.random.default_rng(0).normal(size=(9, 7, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_lie_on_the_image(tmp_path: Path, dims: int) -> None:
    source = stored_volume(tmp_path / "scan.nii.gz")
    result = grad_cam(Doubling(dims), source, ["copy", "head:input"], ClassSum(1))
    files = result.save_nifti(tmp_path / "maps")
    assert [path.name for path in files["copy"]] == ["scan_copy.nii.gz"]
    assert [path.name for path in files["head:input"]] == ["scan_head_input.nii.gz"]
    image, written = nibabel.load(source), nibabel.load(files["copy"][0])
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-6)
    assert np.corrcoef(written.get_fdata().ravel(), image.get_fdata().ravel())[0, 1] > 0.98  # clipped outliers
    assert result.save_nifti(tmp_path / "one", ["copy"]).keys() == {"copy"}
    with pytest.raises(LayerError, match="no map"):
        result.save_nifti(tmp_path / "none", ["tail"])


def test_arrays_are_written_with_what_is_known(tmp_path: Path) -> None:
    inputs = {"image": noise(1, 6, 6, 6), "spacing": (1.0, 2.0, 3.0), "id": "a/b"}
    result = grad_cam(Doubling(3), inputs, "copy", 1)
    (path,) = result.save_nifti(tmp_path)["copy"]
    assert path.name == "a_b_copy.nii.gz"
    assert nibabel.load(path).header.get_zooms() == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(nibabel.load(path).get_fdata(), result["copy"][0, 0], rtol=1e-5)
