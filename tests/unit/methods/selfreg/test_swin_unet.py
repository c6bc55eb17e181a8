"""Swin-Unet: size, the shapes the papers list, the attention against other code and brute force, weights from files."""

import json
import math

import pytest
import torch
from torch import Tensor

from toolkit import registry
from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.capture import capture
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.swin_unet import (
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    SwinUnet,
    WindowAttention,
    channels_first,
    channels_last,
    load_swin,
    swin_unet,
)
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def small() -> SwinUnet:
    torch.manual_seed(0)
    return swin_unet(1, 3, width=12, window=3)


def test_parameters_by_hand() -> None:
    def block(channels: int, heads: int) -> int:
        attention = 3 * channels**2 + 3 * channels + channels**2 + channels + 13 * 13 * heads
        return attention + 8 * channels**2 + 5 * channels + 4 * channels

    widths, heads = (96, 192, 384, 768), (3, 6, 12, 24)
    encoder = sum(2 * block(c, h) for c, h in zip(widths, heads, strict=True))
    merging = sum(8 * c**2 + 8 * c for c in widths[:3])
    expanding = sum(2 * c**2 + c for c in widths[1:])
    decoder = sum(2 * block(c, h) + 2 * c**2 + c for c, h in zip(widths[:3], heads[:3], strict=True))
    ends = (3 * 16 * 96 + 96 + 2 * 96) + 2 * 768 + 2 * 96 + (96 * 16 * 96 + 2 * 96) + 9 * 96
    with torch.device("meta"):
        network = swin_unet()
    total = sum(p.numel() for p in network.parameters())
    assert total == encoder + merging + expanding + decoder + ends
    assert total / 1e6 == pytest.approx(27.17, abs=0.005)


def test_stages_blocks_and_figure_layers_have_the_stated_shapes() -> None:
    with torch.device("meta"):
        network = swin_unet().eval()
    (last, first), figure = network.selfreg_groups, list(network.attention_layers)
    names = [name for group in (last, first) for part in group.values() for name in part]
    with capture(network, [*names, *figure, "head_input"]) as tape:
        logits = network(torch.empty(1, 1, 224, 224, device="meta"))
    assert logits.shape == (1, 9, 224, 224)
    assert tape["head_input"].shape == (1, 96, 224, 224)

    def shapes(names: list[str]) -> list[tuple[int, int]]:
        assert all(tape[name].ndim == 4 and tape[name].shape[2] == tape[name].shape[3] for name in names)
        return [(tape[name].shape[1], tape[name].shape[3]) for name in names]

    for group in (last, first):
        assert shapes(group["encoder"]) == [(96, 56), (192, 28), (384, 14), (768, 7)]
        assert shapes(group["decoder"]) == [(384, 14), (192, 28), (96, 56)]
    assert last["encoder"][0] == "encoder.1.blocks.1"
    assert first["decoder"][0] == "decoder.3.blocks.0"
    assert shapes(figure) == [
        (96, 56),
        (192, 28),
        (384, 14),
        (768, 7),
        (384, 14),
        (384, 14),
        (192, 28),
        (96, 56),
        (96, 224),
    ]


@pytest.mark.parametrize(("side", "shift"), [(14, 0), (14, 3), (7, 3)])
def test_a_block_equals_monais(side: int, shift: int) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

    ours = SwinBlock(12, 3, 7, shift, 0.0)
    theirs = SwinTransformerBlock(12, 3, (7, 7), (shift, shift))
    state = ours.state_dict()
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == ["attn.relative_position_index"]
    x = random(2, 12, side, side)
    mask = compute_mask((side, side), (7, 7), (shift, shift), "cpu") if shift and side > 7 else None
    with torch.no_grad():
        torch.testing.assert_close(channels_last(ours(x)), theirs(channels_last(x), mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "shift"), [(5, 7, 1), (6, 3, 1), (4, 2, 0), (2, 2, 1)])
def test_padded_and_shifted_windows_by_brute_force(height: int, width: int, shift: int) -> None:
    torch.manual_seed(0)
    layer, side = WindowAttention(4, 2, 3, shift).double(), 3
    x = random(1, 4, height, width, dtype=torch.float64)
    with torch.no_grad():
        result = layer(x)
        qkv = layer.qkv(x[0].permute(1, 2, 0)).reshape(height, width, 3, 2, 2)

        def cell(position: int, length: int) -> tuple[int, int]:
            """Window along one axis, and whether the position got there by wrapping around."""
            s, padded = (shift if length > side else 0), math.ceil(length / side) * side
            moved = (position - s) % padded
            return moved // side, int(position < s)

        expected = torch.zeros(height, width, 4, dtype=torch.float64)
        places = [(i, j) for i in range(height) for j in range(width)]
        for i, j in places:
            mine = (cell(i, height), cell(j, width))
            near = [(k, m) for k, m in places if (cell(k, height), cell(m, width)) == mine]
            for head in range(2):
                scores = torch.stack(
                    [
                        qkv[i, j, 0, head] @ qkv[k, m, 1, head] / math.sqrt(2)
                        + layer.relative_position_bias_table[(i - k + 2) * 5 + (j - m + 2), head]
                        for k, m in near
                    ]
                )
                values = torch.stack([qkv[k, m, 2, head] for k, m in near])
                expected[i, j, 2 * head : 2 * head + 2] = scores.softmax(0) @ values
        torch.testing.assert_close(result[0].permute(1, 2, 0), layer.proj(expected))


def test_merging_equals_monais() -> None:
    from monai.networks.nets.swin_unetr import PatchMergingV2

    ours, theirs = PatchMerging(6), PatchMergingV2(6, spatial_dims=2)
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 6, 8, 4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), channels_first(theirs(channels_last(x))))


@pytest.mark.parametrize("factor", [2, 4])
def test_expanding_spreads_each_position_over_its_own_square(factor: int) -> None:
    layer = PatchExpanding(8, factor)
    x = random(1, 8, 3, 2)
    with torch.no_grad():
        grid = layer(x)
        outputs = grid.shape[1]
        for i in range(3 * factor):
            for j in range(2 * factor):
                spread = layer.expand(x[0, :, i // factor, j // factor])
                start = ((i % factor) * factor + j % factor) * outputs
                expected = torch.nn.functional.layer_norm(spread[start : start + outputs], (outputs,))
                torch.testing.assert_close(grid[0, :, i, j], expected)
    assert outputs == (4 if factor == 2 else 8)


def test_skips_are_the_inputs_of_the_encoder_stages(small: SwinUnet) -> None:
    wanted = [
        "embed",
        "merge.1",
        "merge.2",
        "decoder.3.reduce:input",
        "decoder.2.reduce:input",
        "decoder.1.reduce:input",
    ]
    with capture(small.eval(), wanted) as tape, torch.no_grad():
        small(random(1, 1, 64, 64))
    for stage, skip in (("3", "merge.2"), ("2", "merge.1"), ("1", "embed")):
        joined = channels_first(tape[f"decoder.{stage}.reduce:input"])
        torch.testing.assert_close(joined[:, joined.shape[1] // 2 :], tape[skip])


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (64, 160)])
def test_sizes_that_do_not_divide_into_windows(small: SwinUnet, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = small.eval()(random(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_gradients_reach_every_parameter_and_repeat_to_the_bit(small: SwinUnet) -> None:
    gradients = []
    for _ in range(2):
        small.zero_grad()
        small.eval()(random(2, 1, 64, 64)).square().mean().backward()
        gradients.append([p.grad.clone() for p in small.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(g.abs().max() > 0 for g in gradients[0])


def test_selfreg_teaches_first_and_last_blocks(small: SwinUnet) -> None:
    regularizer = SelfReg(groups=small.selfreg_groups)
    batch = {"image": random(2, 1, 64, 64), "label": torch.randint(0, 3, (2, 1, 64, 64))}
    result = TrainingStep(small, SegmentationObjective(), [regularizer])(batch)
    assert result.terms["selfreg/scr"] > 0
    assert len(regularizer.taps) == 15
    plain = TrainingStep(small, SegmentationObjective(), [SelfReg()])(batch)  # found by name, as in a U-Net
    assert plain.terms["selfreg/ifd"] > 0


def test_autocast(small: SwinUnet) -> None:
    x = random(1, 1, 64, 64)
    with torch.no_grad():
        exact = small.eval()(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = small(x)
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_it_is_rebuilt_from_its_description(small: SwinUnet) -> None:
    twin = registry.build("model", json.loads(json.dumps(registry.describe(small))))
    twin.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(random(1, 1, 32, 32)), small.eval()(random(1, 1, 32, 32)))


def test_taps_name_layers_that_run(small: SwinUnet) -> None:
    with capture(small.eval(), list(small.toolkit_taps)) as tape, torch.no_grad():
        small(random(1, 1, 96, 64))
    sides = {name: tuple(tensor.shape[1:]) for name, tensor in tape.items()}
    assert sides == {
        "head_input": (12, 96, 64),
        "pre_activation": (12, 96, 64),
        "bottleneck": (96, 3, 2),
        "decoder_1": (12, 96, 64),
        "decoder_2": (12, 24, 16),
        "decoder_3": (24, 12, 8),
        "decoder_4": (48, 6, 4),
    }


def official(width: int = 12, depths: tuple[int, ...] = (2, 2, 6, 2), window: int = 3) -> dict[str, Tensor]:
    """A state dictionary with the names and shapes of the official Swin release."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "patch_embed.norm.weight": (width,),
        "patch_embed.norm.bias": (width,),
        "norm.weight": (8 * width,),
        "norm.bias": (8 * width,),
        "head.weight": (1000, 8 * width),
    }
    for stage, depth in enumerate(depths):
        c, heads = width * 2**stage, 3 * 2**stage
        for block in range(depth):
            own = {
                "norm1.weight": (c,),
                "norm1.bias": (c,),
                "norm2.weight": (c,),
                "norm2.bias": (c,),
                "attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
                "attn.qkv.weight": (3 * c, c),
                "attn.qkv.bias": (3 * c,),
                "attn.proj.weight": (c, c),
                "attn.proj.bias": (c,),
                "mlp.fc1.weight": (4 * c, c),
                "mlp.fc1.bias": (4 * c,),
                "mlp.fc2.weight": (c, 4 * c),
                "mlp.fc2.bias": (c,),
            }
            shapes |= {f"layers.{stage}.blocks.{block}.{name}": shape for name, shape in own.items()}
        if stage < 3:
            prefix = f"layers.{stage}.downsample"
            shapes |= {
                f"{prefix}.reduction.weight": (2 * c, 4 * c),
                f"{prefix}.norm.weight": (4 * c,),
                f"{prefix}.norm.bias": (4 * c,),
            }
    return {name: random(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}


def test_a_swin_file_fills_encoder_and_decoder(small: SwinUnet) -> None:
    state = official()
    before = {k: v.clone() for k, v in small.state_dict().items()}
    filled = load_swin(small, state)
    own = small.state_dict()
    assert torch.equal(own["encoder.3.blocks.1.attn.qkv.weight"], state["layers.2.blocks.1.attn.qkv.weight"])
    assert torch.equal(own["decoder.3.blocks.0.mlp.linear1.bias"], state["layers.2.blocks.0.mlp.fc1.bias"])
    assert torch.equal(own["decoder.1.blocks.1.norm2.weight"], state["layers.0.blocks.1.norm2.weight"])
    assert torch.equal(own["merge.2.reduction.weight"], state["layers.1.downsample.reduction.weight"])
    assert torch.equal(own["bottleneck.blocks.0.attn.proj.bias"], state["layers.3.blocks.0.attn.proj.bias"])
    kept = [name for name in own if name not in filled]
    assert all(torch.equal(own[name], before[name]) for name in kept)
    assert {name.split(".")[0] for name in kept} == {"expand", "decoder", "norm_up", "final", "head"}
    assert all(".reduce." in name for name in kept if name.startswith("decoder"))


def test_wrong_swin_files_change_nothing(small: SwinUnet) -> None:
    before = {k: v.clone() for k, v in small.state_dict().items()}
    for state in (official(width=24), {k: v for k, v in official().items() if "layers.1.blocks.0" not in k}):
        with pytest.raises(CheckpointError, match="missing or have another shape"):
            load_swin(small, state)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{"out_channels": 1}, {"depths": (2, 2)}, {"heads": (5, 6, 12, 24)}, {"window": 1}, {"drop_path": 1.0}]
)
def test_settings_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ConfigError):
        swin_unet(**settings)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 32, 32), (1, 1, 48, 32)])
def test_images_that_do_not_fit(small: SwinUnet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"takes|multiple of 32"):
        small(torch.zeros(shape))
