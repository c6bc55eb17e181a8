"""Pooled rows and moments against plain arithmetic on captured maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from networks import Inplace, Tokens

from toolkit.errors import ConfigError, DataError, LayerError, ResultError
from toolkit.features.capture import capture
from toolkit.features.changed_weights import jittered
from toolkit.features.store import open_features
from toolkit.inference.extract import extract
from toolkit.models.unet import UNet, unet


@pytest.fixture
def net() -> UNet:
    torch.manual_seed(0)
    return unet(1, 3, channels=(4, 8, 16)).eval()


@pytest.fixture
def scans() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(5, 16, 16, dtype=torch.int64)
    label[:3, 2:9, 3:7] = 1
    label[1, 11:13, 11] = 2  # two voxels: nothing is left of it by nearest-neighbour at a quarter of the size
    return {"image": torch.randn(5, 1, 16, 16, generator=generator), "label": label}


def maps_of(net: torch.nn.Module, image: torch.Tensor, layer: str) -> torch.Tensor:
    with torch.no_grad(), capture(net, [layer], detach=True) as tape:
        net(image)
    return tape[layer]


def test_per_class_rows_are_means_over_the_voxels_of_the_class(net: UNet, scans: dict[str, torch.Tensor]) -> None:
    features = extract(net, scans, ["decoder.1", "bottleneck"], batch_size=2)
    assert features.layers == ["bottleneck", "decoder.1"]
    keys = features.cases[["case", "class"]].to_numpy().tolist()
    assert [key[1] for key in keys] == [0, 1, 0, 1, 2, 0, 1, 0, 0]
    for layer in features.layers:
        full = F.interpolate(maps_of(net, scans["image"], layer), size=(16, 16), mode="nearest")
        for row, (case, index) in zip(features.rows(layer), keys, strict=True):
            image = int(case.split("/")[1])
            expected = full[image][:, scans["label"][image] == index].mean(1)
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    counts = features.cases.set_index(["case", "class"])["count"]
    assert counts["image0000/001", 2] == 2
    assert counts["image0000/001", 1] == 28


def test_a_class_far_from_the_others_changes_nothing(net: UNet) -> None:
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(2 * 16 * 16).reshape(2, 16, 16) % 3
    near = extract(net, images, "bottleneck", label=labels)
    far = extract(net, images, "bottleneck", label=torch.where(labels == 2, 255, labels))
    assert torch.equal(near.rows("bottleneck"), far.rows("bottleneck"))
    assert far.cases["class"].tolist() == [0, 1, 255, 0, 1, 255]


def test_global_rows_and_moments(net: UNet, scans: dict[str, torch.Tensor]) -> None:
    features = extract(net, scans["image"], ["encoder.2", "head_input"], pool="global", batch_size=3)
    for layer in ("encoder.2", "head_input"):
        flat = maps_of(net, scans["image"], "head:input" if layer == "head_input" else layer).flatten(2).double()
        torch.testing.assert_close(features.rows(layer).double(), flat.mean(2), rtol=1e-5, atol=1e-6)
        moments = features.moments(layer)
        assert moments is not None
        torch.testing.assert_close(moments.gram.double(), flat @ flat.transpose(1, 2), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(moments.sum.double(), flat.sum(2), rtol=1e-4, atol=1e-3)
        assert moments.count.tolist() == [flat.shape[2]] * 5
    assert list(features.cases["class"]) == [-1] * 5
    assert extract(net, scans["image"], "bottleneck", pool="global", moments=False).moments("bottleneck") is None
    torch.testing.assert_close(features.head_weights, net.head.weight.detach().flatten(1))


def test_voxel_rows_are_the_vectors_at_the_recorded_places(net: UNet, scans: dict[str, torch.Tensor]) -> None:
    features = extract(net, scans, ["decoder.1", "bottleneck"], pool="voxels", samples=6, seed=3)
    table = features.cases
    assert table.groupby(["case", "class"]).size().max() == 6
    assert (table[table["class"] == 2]["index"].tolist()) == [11 * 16 + 11, 12 * 16 + 11]
    for layer, step in (("decoder.1", 1), ("bottleneck", 4)):
        maps = maps_of(net, scans["image"], layer)
        for row, (case, index, flat) in zip(
            features.rows(layer), table[["case", "class", "index"]].to_numpy(), strict=True
        ):
            image, (y, x) = int(case.split("/")[1]), divmod(int(flat), 16)
            assert scans["label"][image, y, x] == index
            torch.testing.assert_close(row, maps[image, :, y // step, x // step])
    other = extract(unet(1, 3, channels=(4, 8)), scans, "decoder.1", pool="voxels", samples=6, seed=3, batch_size=1)
    pd.testing.assert_frame_equal(other.cases, table)
    changed = extract(net, scans, "decoder.1", pool="voxels", samples=6, seed=4)
    assert changed.cases["index"].tolist() != table["index"].tolist()


def test_padding_counts_for_nothing(net: UNet) -> None:
    image = torch.randn(1, 13, 10, generator=torch.Generator().manual_seed(2))
    label = torch.zeros(13, 10, dtype=torch.int64)
    label[3:6, 2:5] = 1
    features = extract(net, {"image": image, "label": label}, ["encoder.1"])
    padded = F.pad(image, (1, 1, 1, 2), value=float(image.min()))[None]  # both ends, to multiples of 4
    maps = maps_of(net, padded, "encoder.1")[0][:, 1:14, 1:11]
    torch.testing.assert_close(features.rows("encoder.1")[0], maps[:, label == 0].mean(1), rtol=1e-4, atol=1e-5)
    moments = features.moments("encoder.1")
    assert moments is not None
    assert moments.count.tolist() == [130]
    torch.testing.assert_close(moments.sum[0], maps.flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    assert features.cases["count"].sum() == 130


def test_an_image_that_fills_half_of_no_position_has_its_fullest_one() -> None:
    """9 of 16 voxels: the positions of the bottleneck hold 5 x 5, 5 x 4, 4 x 5 and 4 x 4 of 8 x 8 voxels."""
    torch.manual_seed(0)
    net = unet(1, 2, channels=(4, 8, 8, 8)).eval()
    image = torch.rand(2, 1, 9, 9)
    features = extract(net, image, "bottleneck", pool="global")
    level = image.amin((2, 3), keepdim=True).expand(-1, -1, 16, 16).clone()
    level[..., 3:12, 3:12] = image
    expected = maps_of(net, level, "bottleneck")[..., 0, 0]
    torch.testing.assert_close(features.rows("bottleneck"), expected)
    moments = features.moments("bottleneck")
    torch.testing.assert_close(moments.gram, torch.einsum("bc,bd->bcd", expected, expected))
    assert moments.count.tolist() == [1, 1]


def test_an_ignored_area_is_no_boundary_of_a_class(net: UNet) -> None:
    label = torch.full((2, 16, 16), -1)
    label[:, :, :7] = 0
    label[1, :, 8:] = 1  # across one ignored column: columns 5, 6 and 8, 9 are at most 3 from the other class
    features = extract(net, {"image": torch.zeros(2, 1, 16, 16), "label": label}, "bottleneck", pool="boundary")
    columns = (features.cases["index"] % 16).groupby(features.cases["case"]).unique()
    assert columns.map(sorted).to_dict() == {"image0000/001": [5, 6, 8, 9]}
    assert len(features.cases) == 16 * 4


def test_in_place_layers_and_tokens(scans: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    net = Inplace().eval()
    rows = extract(net, scans["image"], "norm", pool="global").rows("norm")
    torch.testing.assert_close(rows, net.norm(net.conv(scans["image"])).detach().mean((2, 3)), rtol=1e-4, atol=1e-6)
    tokens = Tokens().eval()
    features = extract(tokens, scans, ["plain", "norm_last"], pool="voxels", samples=3)
    with torch.no_grad(), capture(tokens, "plain", detach=True) as tape:
        tokens(scans["image"])
    first = features.cases.iloc[0]
    y, x = divmod(int(first["index"]), 16)
    torch.testing.assert_close(features.rows("plain")[0], tape["plain"][0, y // 4 * 4 + x // 4])


def test_a_store_gives_the_same_features_back(net: UNet, scans: dict[str, torch.Tensor], tmp_path: Path) -> None:
    memory = extract(net, scans, ["encoder.*", "head_input"], batch_size=2)
    streamed = extract(net, scans, ["encoder.*", "head_input"], batch_size=2, out=tmp_path / "streamed.zarr")
    memory.save(tmp_path / "saved.zarr")
    for features in (streamed, open_features(tmp_path / "saved.zarr"), type(memory).load(tmp_path / "streamed.zarr")):
        assert features.layers == memory.layers
        assert features.provenance == memory.provenance
        pd.testing.assert_frame_equal(features.cases, memory.cases)
        pd.testing.assert_frame_equal(features.images, memory.images)
        torch.testing.assert_close(features.head_weights, memory.head_weights)
        for layer in memory.layers:
            assert torch.equal(features.rows(layer), memory.rows(layer))
            for kind in ("gram", "sum", "count"):
                assert torch.equal(getattr(features.moments(layer), kind), getattr(memory.moments(layer), kind))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.zarr", "streamed.zarr"]
    memory.save(tmp_path / "saved.zarr")  # an existing store is replaced
    table = memory.table()
    assert table.loc[table["layer"] == "encoder.1", "rows"].sum() == len(memory.cases)


def test_a_store_can_be_read_without_the_toolkit(net: UNet, scans: dict[str, torch.Tensor], tmp_path: Path) -> None:
    import zarr

    features = extract(net, scans, "bottleneck", out=tmp_path / "f.zarr")
    group = zarr.open_group(str(tmp_path / "f.zarr"), mode="r")
    assert group.attrs["provenance"]["parameters"]["pool"] == "per-class"
    np.testing.assert_array_equal(group["layer0/rows"][:], features.rows("bottleneck").numpy())
    assert len(pd.read_parquet(tmp_path / "f.zarr" / "cases.parquet")) == len(features.cases)


def test_damaged_and_foreign_stores_are_refused(net: UNet, scans: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        path = tmp_path / name
        extract(net, scans, "bottleneck", out=path)
        return path

    with pytest.raises(ResultError, match="no feature store here"):
        open_features(tmp_path / "nothing.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResultError, match="not a feature store"):
        open_features(tmp_path / "folder")
    with pytest.raises(ResultError, match="not overwritten"):
        extract(net, scans, "bottleneck", out=tmp_path / "folder")

    missing = fresh("missing.zarr")
    next((missing / "layer0" / "rows").rglob("c/0/0")).unlink()
    with pytest.raises(ResultError, match="not what was written"):
        open_features(missing).rows("bottleneck")
    truncated = fresh("truncated.zarr")
    chunk = next((truncated / "layer0" / "gram").rglob("c/0/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ResultError, match="gram of layer 'bottleneck'"):
        open_features(truncated).moments("bottleneck")
    table = fresh("table.zarr")
    (table / "cases.parquet").write_bytes(b"no table")
    with pytest.raises(ResultError, match=r"cases\.parquet"):
        _ = open_features(table).cases
    header = fresh("header.zarr")
    (header / "zarr.json").write_text((header / "zarr.json").read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(ResultError, match="format 9"):
        open_features(header)
    group = fresh("group.zarr")
    for file in (group / "layer0").rglob("zarr.json"):
        file.write_text("{")
    with pytest.raises(ResultError):
        open_features(group).rows("bottleneck")


def test_nothing_is_left_behind_when_extraction_fails(
    net: UNet, scans: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def broken() -> object:
        yield {"image": scans["image"][0], "label": scans["label"][0]}
        raise DataError("the second case is damaged")

    with pytest.raises(DataError, match="second case"):
        extract(net, broken(), "bottleneck", out=tmp_path / "f.zarr", batch_size=1)
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls_say_what_is_wrong(net: UNet, scans: dict[str, torch.Tensor]) -> None:
    image = scans["image"]
    with pytest.raises(ConfigError, match="per-class, per-region, grid, global, voxels, boundary"):
        extract(net, image, "bottleneck", pool="mean")
    with pytest.raises(DataError, match="needs a label"):
        extract(net, image, "bottleneck")
    with pytest.raises(LayerError, match="bottleneck"):
        extract(net, image, "bottlenek", pool="global")
    with pytest.raises(DataError, match="no inputs"):
        extract(net, [], "bottleneck", pool="global")
    with pytest.raises(ConfigError, match="is on cpu"):
        extract(net, image, "bottleneck", pool="global", device="cuda")
    with pytest.raises(LayerError, match="They hold"):
        extract(net, image, "bottleneck", pool="global").rows("encoder.1")


def test_jittered_features_are_those_of_weights_that_moved_by_the_stated_share(
    net: UNet, scans: dict[str, torch.Tensor]
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    own, moved = (extract(net, scans, "bottleneck", jitter=jitter) for jitter in (0.0, 0.01))
    copy = jittered(net, 0.01)
    again = extract(copy, scans, "bottleneck")
    assert torch.equal(moved.rows("bottleneck"), again.rows("bottleneck"))
    assert 0 < (moved.rows("bottleneck") - own.rows("bottleneck")).norm() < 0.5 * own.rows("bottleneck").norm()
    assert moved.provenance["weights"] == again.provenance["weights"] != own.provenance["weights"]
    assert moved.provenance["parameters"]["jitter"] == 0.01
    assert moved.cases.equals(own.cases)
    other = extract(net, scans, "bottleneck", jitter=0.01, jitter_seed=1)
    assert not torch.equal(other.rows("bottleneck"), moved.rows("bottleneck"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    weight, changed = net.bottleneck.state_dict(), copy.bottleneck.state_dict()
    name = max(weight, key=lambda key: weight[key].numel())
    assert (changed[name] - weight[name]).norm() / weight[name].norm() == pytest.approx(0.01, rel=0.1)
    with pytest.raises(ConfigError, match="jitter is at least 0"):
        extract(net, scans, "bottleneck", jitter=-0.1)


def test_images_of_several_odd_sizes_give_the_rows_of_each_alone() -> None:
    """Whether the network takes a size is tried in a pass whose features are not kept."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Conv2d(3, 2, 1))
    images = [torch.randn(1, side, side) for side in (9, 10, 11)]
    together = extract(model, images, ["0"], pool="global")
    alone = [extract(model, image, ["0"], pool="global").rows("0") for image in images]
    assert torch.equal(together.rows("0"), torch.cat(alone))
