"""`mask_explorer` without a browser: schemes are `mask_latent`'s, clicks change exactly the entries clicked."""

from __future__ import annotations

import pytest
import torch
from canvases import area_of, centre_of

import toolkit as tk
from toolkit.errors import ConfigError, LayerError
from toolkit.show.widgets.mask import MaskExplorer


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return tk.unet(1, 3, channels=(4, 8, 16)).eval()


@pytest.fixture
def explorer(net: torch.nn.Module) -> MaskExplorer:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 32, 32, generator=generator)
    label = torch.randint(0, 3, (32, 32), generator=generator)
    return tk.widgets.mask_explorer(net, {"image": image, "label": label, "id": "one"})


def test_the_scheme_is_that_of_mask_latent(net: torch.nn.Module, explorer: MaskExplorer) -> None:
    item = next(iter(explorer.images.items.values()))
    for settings in (
        {"scheme": "spatial", "fraction": 0.5},
        {"scheme": "channel", "soft": False, "seed": 3, "skips": "zero"},
    ):
        explorer.set(**settings)
        values = explorer.state
        arguments = {name: values[name] for name in ("scheme", "fraction", "soft", "seed", "skips", "mode")}
        expected = tk.mask_latent(net, item, **arguments)
        assert torch.equal(explorer.result().mask, expected.mask)
        assert torch.equal(explorer.result().segmentation[1], expected.segmentation[1])


def test_toggling_changes_exactly_those_entries_and_back(explorer: MaskExplorer) -> None:
    explorer.set(soft=False, fraction=0.25)
    before = explorer.mask().flatten()
    kept, masked = int((before == 1).nonzero()[0]), int((before == 0).nonzero()[0])
    explorer.toggle(kept, masked)
    after = explorer.result().mask.flatten()
    assert after[kept] == 0
    assert after[masked] == 1
    assert ((after != before).nonzero()[:, 0].tolist()) == sorted((kept, masked))
    explorer.toggle(kept, masked)
    assert torch.equal(explorer.result().mask.flatten(), before)
    with pytest.raises(IndexError):
        explorer.toggle(16)


def test_masking_everything_by_hand_changes_the_picture(explorer: MaskExplorer) -> None:
    explorer.set(fraction=0.0, skips="zero")
    clean = explorer.compose().encode()
    explorer.toggle(*range(16))
    result = explorer.result()
    assert float(result.mask.abs().max()) == 0
    assert explorer.compose().encode() != clean


def test_a_click_and_the_keyboard_reach_the_same_entry(explorer: MaskExplorer) -> None:
    explorer.set(fraction=0.0)
    area = area_of(explorer.compose(), "code")
    assert (area.rows, area.columns) == (4, 4)
    explorer.click(*centre_of(area, 1, 2))
    assert explorer.by_hand == {6: 0.0}
    explorer.key("ArrowRight").key("ArrowDown").key("Enter")
    assert explorer.by_hand == {6: 0.0, 11: 0.0}
    explorer.key("ArrowDown").key("ArrowDown").key("ArrowDown")
    assert explorer.cursor == 15


def test_another_scheme_forgets_what_was_clicked(explorer: MaskExplorer) -> None:
    explorer.set(fraction=0.0).toggle(1)
    explorer.set(filled=True)
    assert explorer.by_hand
    explorer.set(scheme="spatial")
    assert not explorer.by_hand
    area = area_of(explorer.compose(), "code")
    assert (area.rows, area.columns) == (8, 8)  # the bottleneck's own plane


def test_dropout_cannot_drop_everything(explorer: MaskExplorer) -> None:
    explorer.set(fraction=1.0).set(scheme="dropout")
    assert explorer.state["fraction"] == 0.95
    explorer.compose()


def test_a_network_with_codes_of_its_own() -> None:
    explorer = tk.widgets.mask_explorer(tk.fast_slow_network(1, 3, width=2), torch.rand(1, 1, 32, 32))
    assert "skips" not in explorer.state
    explorer.toggle(0)
    assert explorer.result().image is not None
    assert explorer.compose().size[0] > 900  # a fourth column for the decoded image


def test_a_wrong_layer_is_reported_at_once(net: torch.nn.Module) -> None:
    with pytest.raises(LayerError):
        tk.widgets.mask_explorer(net, torch.rand(1, 1, 32, 32), layer="bottelneck")


def test_what_was_clicked_stays_on_every_slice_of_a_volume() -> None:
    """One code is that of all slices; another volume has another."""
    net = tk.unet(1, 2, channels=(4, 8), dims=3)
    explorer = tk.widgets.mask_explorer(net, torch.rand(2, 1, 8, 16, 16)).set(fraction=0.0)
    explorer.toggle(1)
    explorer.set(slice=2)
    assert explorer.by_hand == {1: 0.0}
    explorer.set(case=list(explorer.images.stacks)[1])
    assert not explorer.by_hand


def test_a_code_of_several_windows_cannot_be_clicked_and_that_is_said(net: torch.nn.Module) -> None:
    image = torch.rand(1, 1, 32, 32)
    explorer = tk.widgets.mask_explorer(net, image, patch_size=(16, 16))
    before = explorer.compose()
    with pytest.raises(ConfigError, match="9 windows"):
        explorer.toggle(0)
    assert not explorer.by_hand
    assert explorer.compose() is before
    assert tk.widgets.mask_explorer(net, image, patch_size="whole").toggle(0).by_hand


@pytest.mark.parametrize(
    ("side", "dims", "layer"), [(96, 2, "encoder.1"), (256, 2, "encoder.1"), (32, 3, "bottleneck")]
)
def test_a_code_of_any_size_fits_its_tile_and_can_be_clicked(side: int, dims: int, layer: str) -> None:
    net = tk.unet(1, 2, channels=(2, 4), dims=dims)
    explorer = tk.widgets.mask_explorer(net, torch.rand(1, 1, *[side] * dims), layer=layer)
    explorer.set(scheme="spatial", fraction=0.0)
    area = area_of(explorer.compose(), "code")
    assert max(area.width, area.height) <= 215
    assert area.rows * area.columns == (side // (1 if layer == "encoder.1" else 2)) ** dims
    explorer.click(*centre_of(area, 3, 5))
    assert explorer.by_hand == {3 * area.columns + 5: 0.0}
    explorer.compose()
