"""Networks and callers with habits that the usual tests lack: precision, resolution, one channel, inference mode."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from toolkit.errors import ConfigError, DataError, LayerError, ResultError, ToolkitWarning
from toolkit.explain.attribute import attribute
from toolkit.explain.faithfulness import faithfulness
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.masking import mask_latent
from toolkit.explain.sanity import randomised_weights
from toolkit.explain.targets import LesionComponent, Region
from toolkit.inference.extract import extract
from toolkit.inference.layers import layers
from toolkit.results import load_result

IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(2, 16, 16, dtype=torch.long)
LABELS[:, 4:8, 4:8] = 1
SCAN = {"image": IMAGES, "label": LABELS}


class Coarse(nn.Module):
    """Halves the image; gives logits of that size, or brings them back."""

    def __init__(self, back: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.bottleneck = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2) if back else nn.Identity()
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.up(self.bottleneck(self.first(image).relu()).relu()))


class Two(Coarse):
    """Wants two images."""

    def forward(self, image: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image + other)


@pytest.fixture
def net() -> Coarse:
    torch.manual_seed(0)
    return Coarse(back=True).eval()


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
def test_any_precision_gives_the_maps_of_single_precision(net: Coarse, kind: torch.dtype, tolerance: float) -> None:
    other = copy.deepcopy(net).to(kind)
    target = Region(1, inside="reference")
    for one, two in (
        (grad_cam(net, SCAN, "bottleneck", target), grad_cam(other, SCAN, "bottleneck", target)),
        (attribute(net, SCAN, "saliency", target), attribute(other, SCAN, "saliency", target)),
    ):
        for name, values in one.maps.items():
            torch.testing.assert_close(
                two.maps[name], values, rtol=tolerance, atol=tolerance * float(values.abs().max())
            )
    rows = [extract(one, SCAN, "bottleneck").rows("bottleneck") for one in (net, other)]
    torch.testing.assert_close(rows[1], rows[0], rtol=tolerance, atol=tolerance)
    assert list(layers(other, IMAGES)["name"]) == list(layers(net, IMAGES)["name"])
    assert all(parameter.dtype == kind for parameter in other.parameters())


def test_a_coarse_segmentation_is_brought_to_the_images_grid() -> None:
    torch.manual_seed(0)
    network = Coarse().eval()
    result = mask_latent(network, SCAN)
    table = result.table().set_index(["case", "class"])
    assert table.loc[("image0000/000", 1), "reference_voxels"] == 16
    assert result.label is not None
    assert result.label.shape[2:] == result.segmentation[0].shape[1:] == (16, 16)
    with torch.no_grad():  # half the image's size: enlarged as transformers' own post-processing does
        fine = torch.nn.functional.interpolate(network(IMAGES), (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(result.segmentation[0], fine.argmax(1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused_by_every_call(net: Coarse) -> None:
    scripted = torch.jit.trace(net, IMAGES)
    for call in (
        lambda: layers(scripted, IMAGES),
        lambda: extract(scripted, SCAN, "bottleneck"),
        lambda: grad_cam(scripted, SCAN, "bottleneck", 1),
        lambda: attribute(scripted, SCAN, "saliency", 1),
        lambda: mask_latent(scripted, SCAN),
    ):
        with pytest.raises(LayerError, match="original"):
            call()


def test_a_callers_inference_mode_changes_nothing(net: Coarse) -> None:
    outside = mask_latent(net, SCAN)
    before = randomised_weights(net, SCAN, "bottleneck", 1, draws=1).numbers
    with torch.inference_mode():
        inside = mask_latent(net, {"image": IMAGES.clone(), "label": LABELS.clone()})
        after = randomised_weights(net, SCAN, "bottleneck", 1, draws=1).numbers
        made_inside = Coarse(back=True)
    assert torch.equal(inside.segmentation[1], outside.segmentation[1])
    assert torch.equal(inside.mask, outside.mask)
    assert before.equals(after)
    assert len(extract(made_inside, SCAN, "bottleneck").cases) == 4
    with pytest.raises(DataError, match="Inference tensors"):
        grad_cam(made_inside, SCAN, "bottleneck", 1)


def test_a_network_with_two_inputs_is_told_to_be_wrapped() -> None:
    with pytest.raises(DataError, match=r"wrap yours in a module") as error:
        extract(Two(), SCAN, "bottleneck")
    assert "'other'" in error.value.what


def test_nan_logits_are_not_a_negative_map(net: Coarse) -> None:
    with torch.no_grad():
        net.head.weight.fill_(torch.nan)
    for call in (
        lambda: grad_cam(net, SCAN, "bottleneck", 1),
        lambda: attribute(net, SCAN, "saliency", 1),
        lambda: mask_latent(net, SCAN),
    ):
        with pytest.raises(DataError, match="NaN"):
            call()


def test_one_channel_of_probabilities_is_warned_of() -> None:
    class Sigmoid(Coarse):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).sigmoid()

    torch.manual_seed(0)
    with pytest.warns(ToolkitWarning, match="take the sigmoid off"):
        maps = grad_cam(Sigmoid(True, 1), SCAN, "bottleneck", Region(1), activation="sigmoid")
    assert bool(maps.region.all())  # what the warning is about: every voxel counts as foreground
    grad_cam(Coarse(True, 1), SCAN, "bottleneck", 1, activation="sigmoid")  # a logit is not warned of


def test_windows_and_layers_that_are_none(net: Coarse) -> None:
    for call in (
        lambda: grad_cam(net, SCAN, "bottleneck", 1, patch_size=8),  # type: ignore[arg-type]
        lambda: attribute(net, SCAN, "saliency", 1, patch_size=8.0),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match="one positive whole number per spatial axis"):
            call()
    for nothing in (lambda: grad_cam(net, SCAN, [], 1), lambda: extract(net, SCAN, [])):
        with pytest.raises(LayerError, match="No layer was named"):
            nothing()


def test_voxels_to_ignore_take_no_part_in_masking(net: Coarse) -> None:
    marked, padded = LABELS.clone(), LABELS.clone()
    marked[:, 0], padded[:, 0] = -100, -1
    one, two = (mask_latent(net, {"image": IMAGES, "label": label}) for label in (marked, padded))
    assert one.loss is not None
    assert two.loss is not None
    assert torch.equal(one.loss[0], two.loss[0])
    assert torch.equal(one.mask, two.mask)


def test_images_of_one_name_do_not_overwrite_each_other(net: Coarse, tmp_path: Path) -> None:
    twins = [{"image": image, "id": "twin"} for image in IMAGES]
    with pytest.raises(ResultError, match="2 images are called 'twin'"):
        grad_cam(net, twins, "bottleneck", 1).save_nifti(tmp_path)
    (file,) = grad_cam(net, twins[:1], "bottleneck", 1).save_nifti(tmp_path)["bottleneck"]
    assert nibabel.load(file).shape[:2] == (16, 16)


def test_a_loader_that_shuffles_is_read_once(net: Coarse) -> None:
    read = 0

    class Counted(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Tensor:
            nonlocal read
            read += 1
            return IMAGES[index]

    loader = DataLoader(Counted(), batch_size=1, shuffle=True, generator=torch.Generator())
    randomised_weights(net, loader, "bottleneck", 1, draws=3)
    assert read == 2


def test_settings_that_cannot_work_are_named(net: Coarse) -> None:
    maps = grad_cam(net, SCAN, "bottleneck", 1)
    for call, word in (
        (lambda: mask_latent(net, SCAN, fraction=(0.1, 0.2, 0.3)), "(low, high)"),  # type: ignore[arg-type]
        (lambda: mask_latent(net, SCAN, temperature=0), "temperature"),
        (lambda: mask_latent(net, SCAN, mask=torch.full((1, 8, 1, 1), torch.nan)), "NaN"),
        (lambda: attribute(net, SCAN, baseline=None), "baseline=None"),  # type: ignore[arg-type]
        (lambda: attribute(net, SCAN, baseline=float("nan")), "baseline=nan"),
        (lambda: faithfulness(net, maps, 1, steps=0), "steps=0"),
        (lambda: randomised_weights(net, SCAN, "bottleneck", 1, draws=0), "draws=0"),
        (lambda: grad_cam(net, SCAN, "bottleneck", LesionComponent(1, -1)), "component is at least 0"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert word in str(error.value)
    with pytest.raises(LayerError, match="matches 2 layers"):
        mask_latent(net, SCAN, layer="[fh]*")
    one, two = (mask_latent(net, SCAN, fraction=kind(0.5)) for kind in (float, np.float32))
    assert torch.equal(one.mask, two.mask)


def test_results_of_a_half_precision_network_are_saved(net: Coarse, tmp_path: Path) -> None:
    result = mask_latent(net.bfloat16(), SCAN)
    loaded = load_result(result.save(tmp_path / "half.zip"))
    torch.testing.assert_close(loaded.mask, result.mask.float(), rtol=0, atol=0)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_network_that_records_no_gradient_says_so(net: Coarse, guard: type) -> None:
    net.forward = guard()(net.forward)  # type: ignore[method-assign]
    for call in (
        lambda: grad_cam(net, SCAN, "bottleneck", 1),
        lambda: mask_latent(net, SCAN),
        lambda: attribute(net, SCAN, steps=2),
        lambda: attribute(net, SCAN, "layer_conductance", layer="bottleneck", steps=2),
    ):
        with pytest.raises(LayerError, match="No gradient reaches"):
            call()
    assert set(attribute(net, SCAN, "occlusion", 1).table()["status"]) == {"ok"}


def test_an_output_that_is_no_map_of_classes_is_refused(net: Coarse) -> None:
    mean = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for call in (
        lambda: grad_cam(mean, SCAN, "0", 1),
        lambda: mask_latent(mean, SCAN, layer="0.bottleneck"),
        lambda: attribute(mean, SCAN, "saliency", 1),
    ):
        with pytest.raises(LayerError, match=r"shape \(\d, 3\)"):
            call()


def test_a_network_compiled_in_place_runs_eagerly(net: Coarse) -> None:
    expected = extract(net, SCAN, "bottleneck").rows("bottleneck")
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    net.compile(backend=backend)
    assert torch.equal(extract(net, SCAN, "bottleneck").rows("bottleneck"), expected)
    grad_cam(net, SCAN, "bottleneck", 1)
    mask_latent(net, SCAN)
    assert not compiled
