"""Rows of regions, grid cells and boundary voxels against loops over the voxels and scipy's components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from toolkit.errors import DataError, ResultError
from toolkit.features.capture import capture
from toolkit.features.store import open_features
from toolkit.inference.extract import extract
from toolkit.measure.collapse import collapse
from toolkit.measure.layer_similarity import layer_similarity
from toolkit.models.unet import UNet, unet

LAYERS = ["decoder.1", "bottleneck"]


@pytest.fixture
def net() -> UNet:
    torch.manual_seed(0)
    return unet(1, 3, channels=(4, 8, 16)).eval()


@pytest.fixture
def scans() -> dict[str, Tensor]:
    """Four labels: two components of class 1 that touch class 2 or not, two that touch at a corner, none at all."""
    label = torch.zeros(4, 16, 16, dtype=torch.int64)
    label[0, 1:5, 1:4] = 1
    label[0, 9:14, 9:13] = 1
    label[0, 9:14, 13:15] = 2
    label[1, 3:6, 3:6] = 2
    label[1, 6:9, 6:9] = 2
    label[2, 0, 0] = 1
    return {"image": torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)), "label": label}


def enlarged(net: UNet, image: Tensor, layer: str) -> Tensor:
    with torch.no_grad(), capture(net, [layer], detach=True) as tape:
        net(image)
    return F.interpolate(tape[layer], size=image.shape[2:], mode="nearest")


def test_regions_are_the_components_of_every_foreground_class(net: UNet, scans: dict[str, Tensor]) -> None:
    features = extract(net, scans, LAYERS, pool="per-region", batch_size=3)
    expected = []
    for image, label in enumerate(scans["label"].numpy()):
        for index in (1, 2):
            parts, number = ndimage.label(label == index, np.ones((3, 3)))
            expected += [(image, index, parts == part) for part in range(1, number + 1)]
    assert [(image, index) for image, index, _ in expected] == [(0, 1), (0, 1), (0, 2), (1, 2), (2, 1)]
    table = features.cases
    assert table["class"].tolist() == [index for _, index, _ in expected]
    assert table["case"].str[-3:].astype(int).tolist() == [image for image, _, _ in expected]
    assert table["count"].tolist() == [int(region.sum()) for _, _, region in expected]
    assert table["index"].tolist() == [0, 1, 2, 0, 0]
    for layer in LAYERS:
        maps = enlarged(net, scans["image"], layer)
        wanted = torch.stack([maps[image][:, torch.from_numpy(region)].mean(1) for image, _, region in expected])
        torch.testing.assert_close(features.rows(layer), wanted, rtol=1e-4, atol=1e-5)


def test_grid_cells_are_means_over_sixteenths_of_the_image(net: UNet, scans: dict[str, Tensor]) -> None:
    features = extract(net, scans["image"], LAYERS, pool="grid", batch_size=3)  # needs no label
    assert len(features.cases) == 4 * 16
    assert features.cases["index"].tolist() == list(range(16)) * 4
    assert set(features.cases["class"]) == {-1}
    assert set(features.cases["count"]) == {16}
    for layer in LAYERS:
        maps = enlarged(net, scans["image"], layer)
        cells = maps.reshape(4, -1, 4, 4, 4, 4).mean((3, 5)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(features.rows(layer), cells.reshape(64, -1), rtol=1e-4, atol=1e-5)


def test_cells_divide_the_image_and_not_its_padding() -> None:
    torch.manual_seed(0)
    net = unet(1, 2, channels=(2, 4), dims=3).eval()
    image = torch.randn(1, 1, 6, 7, 9)
    features = extract(net, image, "decoder.1", pool="grid")
    assert len(features.cases) == 64
    assert int(features.cases["count"].sum()) == 6 * 7 * 9
    assert bool(torch.isfinite(features.rows("decoder.1")).all())


def test_boundary_voxels_have_another_class_within_three_steps(net: UNet, scans: dict[str, Tensor]) -> None:
    features = extract(net, scans, LAYERS, pool="boundary", samples=1000)
    table, labels = features.cases, scans["label"].numpy()
    found = {(int(c[-3:]), int(k), int(i)) for c, k, i in table[["case", "class", "index"]].to_numpy()}
    expected = set()
    for image, label in enumerate(labels):
        for y in range(16):
            for x in range(16):
                near = label[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
                if (near != label[y, x]).any():
                    expected.add((image, int(label[y, x]), 16 * y + x))
    assert found == expected
    assert 3 not in {image for image, _, _ in found}  # an image without a boundary gives no row
    maps = enlarged(net, scans["image"], "decoder.1")
    for row, (image, _, flat) in zip(features.rows("decoder.1"), sorted(found), strict=True):
        torch.testing.assert_close(row, maps[image, :, flat // 16, flat % 16])


def test_stores_of_areas_are_kept_and_compared_by_their_pool(
    net: UNet, scans: dict[str, Tensor], tmp_path: Path
) -> None:
    stores = {}
    for pool in ("per-region", "grid", "boundary"):
        memory = extract(net, scans, LAYERS, pool=pool)
        disk = extract(net, scans, LAYERS, pool=pool, out=tmp_path / f"{pool}.zarr")
        stores[pool] = open_features(disk.path if hasattr(disk, "path") else tmp_path / f"{pool}.zarr")
        for layer in LAYERS:
            assert torch.equal(torch.as_tensor(stores[pool].rows(layer)), memory.rows(layer))
    separation = collapse(stores["boundary"], "decoder.1").values
    assert -1 <= separation["silhouette"] <= 1
    assert 0 <= separation["linear_probe"] <= 1
    with pytest.raises(ResultError, match="pool"):
        layer_similarity(stores["grid"], stores["boundary"])


@pytest.mark.parametrize("pool", ["per-region", "boundary"])
def test_areas_of_labels_need_labels(net: UNet, scans: dict[str, Tensor], pool: str) -> None:
    with pytest.raises(DataError, match=f"{pool}.* needs a label"):
        extract(net, scans["image"], "bottleneck", pool=pool)


def test_nothing_to_pool_is_no_row_and_no_crash(net: UNet, scans: dict[str, Tensor]) -> None:
    empty = {"image": scans["image"][3:], "label": scans["label"][3:]}
    for pool in ("per-region", "boundary"):
        features = extract(net, empty, LAYERS, pool=pool)
        assert tuple(features.rows("bottleneck").shape) == (0, 16)
