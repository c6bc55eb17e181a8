"""The table of layers, aliases and their rule."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from networks import Inplace, Outputs, Reused, Tokens
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError
from toolkit.features.capture import capture
from toolkit.features.layout import to_maps
from toolkit.features.modules import glob_match, parse
from toolkit.features.names import resolve
from toolkit.inference.layers import layers
from toolkit.models.unet import unet


@pytest.mark.parametrize(("dims", "norm"), [(2, "instance"), (3, "batch"), (2, "group")])
def test_the_rule_finds_what_the_unet_states(dims: int, norm: str) -> None:
    net = unet(1, 3, channels=(4, 8, 16), dims=dims, norm=norm)
    stated = dict(net.toolkit_taps)
    del net.toolkit_taps
    table = layers(net, torch.zeros(1, 1, *[16] * dims))
    found = {alias: row["name"] for _, row in table.iterrows() for alias in row["aliases"].split(", ") if alias}
    assert {alias: name.removesuffix(":input") for alias, name in stated.items()} == found
    assert resolve(net, list(stated)) == list(stated.values())


def test_the_table_lists_called_modules_with_their_size() -> None:
    net = unet(1, 2, channels=(4, 8))
    table = layers(net).set_index("name")
    assert "encoder" not in table.index
    assert table.loc["bottleneck", "shape"] == (1, 8, 32, 32)
    assert table.loc["bottleneck", "mb"] == pytest.approx(8 * 32 * 32 * 4 / 1e6)
    assert list(layers(Reused(), torch.zeros(1, 1, 8, 8))["name"]) == [
        "first",
        "act",
        "shared",
        "shared#2",
        "act#2",
        "head",
    ]
    assert "pair" not in set(layers(Outputs("dict"), torch.zeros(1, 1, 8, 8))["name"])


def test_aliases_on_a_foreign_network_cost_one_trace_and_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Inplace(), torch.randn(2, 1, 8, 8)
    traced = []
    import toolkit.features.capture as module

    original = module.trace_calls
    monkeypatch.setattr(module, "trace_calls", lambda *a, **k: traced.append(1) or original(*a, **k))
    for _ in range(3):
        with capture(net, ["head_input", "pre_activation"]) as tape:
            net(x)
    assert len(traced) == 1
    assert tape["head_input"].shape == (2, 6, 8, 8)
    torch.testing.assert_close(net.head(tape["head_input"]), net(x), rtol=1e-4, atol=1e-5)
    net.head = nn.Conv2d(6, 5, 1)  # a changed network is observed again
    with capture(net, ["head_input"]):
        net(x)
    assert len(traced) == 2


def test_taps_override_and_unknown_aliases_say_what_there_is() -> None:
    net, x = Inplace(), torch.randn(1, 1, 8, 8)
    with capture(net, ["head_input"], aliases={"head_input": "second:input"}) as tape:
        net(x)
    assert tape["head_input"].shape == (1, 6, 8, 8)
    with pytest.raises(LayerError, match="decoder_7"), capture(net, ["decoder_7"]):
        net(x)
    with pytest.raises(LayerError, match="never called"), capture(Inplace(), ["head_input"]):
        pass
    with pytest.raises(LayerError, match="nowhere"):
        resolve(net, ["head_input"], x, aliases={"head_input": "nowhere"})
    assert resolve(net, ["head_input"], x) == ["head:input"]


def test_resolve_gives_full_names_without_repeats() -> None:
    net = unet(1, 2, channels=(4, 8))
    assert resolve(net, ["head_input", "head:input", "encoder.*", "bottleneck"]) == [
        "head:input",
        "encoder.1",
        "bottleneck",
    ]


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("decoder.1", "decoder.*", True),
        ("decoder.1.conv", "decoder.*", False),
        ("decoder.1.conv", "decoder.**", True),
        ("a.b.c.norm", "**.norm", True),
        ("norm", "**.norm", True),
        ("encoder.12", "encoder.?", False),
        ("layer3", "layer[1-3]", True),
    ],
)
def test_globs(name: str, pattern: str, expected: bool) -> None:
    assert glob_match(name, pattern) is expected


def test_names_are_parsed_and_written_back() -> None:
    for name in ("a.b", "a.b:input", "a#2", "a#3:input"):
        assert str(parse(name)) == name
    assert str(parse("a#1")) == "a"


def test_tokens_and_channel_last_become_maps() -> None:
    torch.manual_seed(0)
    net, x = Tokens().eval(), torch.randn(1, 1, 16, 24)
    with capture(net, ["embed", "norm_last", "block", "plain"]) as tape:
        net(x)
    embedded = tape["embed"]
    torch.testing.assert_close(to_maps(tape["norm_last"], (16, 24)), tape["norm_last"].permute(0, 3, 1, 2))
    tokens = to_maps(tape["plain"], (16, 24), "plain")
    assert tokens.shape == embedded.shape == (1, 8, 4, 6)
    assert torch.equal(tokens[0, :, 1, 2], tape["plain"][0, 1 * 6 + 2])
    with_class_token = to_maps(tape["block"], (16, 24))
    assert torch.equal(with_class_token[0, :, 0, 1], tape["block"][0, 2])
    with pytest.raises(LayerError, match="no map"):
        to_maps(torch.zeros(1, 8, 3), (16, 24), "odd")


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (49, (224, 224), (7, 7)),
        (24, (16, 24), (4, 6)),
        (64, (32, 32, 32), (4, 4, 4)),
        (50, (224, 224), (7, 7)),
        (9, (16, 24), (3, 3)),
    ],
)
def test_token_grids(tokens: int, size: tuple[int, ...], grid: tuple[int, ...]) -> None:
    assert to_maps(torch.zeros(1, tokens, 2), size).shape == (1, 2, *grid)


def test_a_network_without_convolution_needs_an_example() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.movedim(1, -1)).movedim(-1, 1)

    with pytest.raises(DataError, match="example"):
        layers(Plain())
    assert list(layers(Plain(), torch.zeros(1, 3, 4, 4))["name"]) == ["linear"]


def test_a_module_called_like_an_alias_is_meant_in_any_company() -> None:
    net = nn.Sequential(
        OrderedDict(down=nn.Conv2d(1, 4, 2, 2), bottleneck=nn.Conv2d(4, 4, 2, 2), post=nn.Conv2d(4, 4, 1))
        | OrderedDict(up=nn.ConvTranspose2d(4, 4, 4, 4), head=nn.Conv2d(4, 2, 1))
    )
    image = torch.zeros(1, 1, 16, 16)
    assert resolve(net, ["bottleneck"], image) == ["bottleneck"]
    assert resolve(net, ["head_input", "bottleneck"], image) == ["head:input", "bottleneck"]
    assert resolve(net, "bottleneck", image, {"bottleneck": "post"}) == ["post"]
    assert layers(net, image).set_index("name")["aliases"].to_dict()["post"] == ""


def test_groups_of_a_norm_divide_its_channels() -> None:
    """At most 8 channels' groups: 12 channels have 6, which torch's own rule takes; 4 and 16 keep 4 and 8."""
    network = unet(1, 2, channels=(4, 12, 16), norm="group")
    norms = [module.num_groups for name, module in network.named_modules() if name.endswith("norm1")]
    assert norms == [4, 6, 8, 6, 4]
