"""Masked latents against passes written out by hand."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from golden_cases import golden_case
from networks import Dropping, Outputs, Tokens
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError
from toolkit.explain.mask_result import MaskedLatent
from toolkit.explain.masking import entropy_map, mask_latent
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.models.unet import UNet, unet


@pytest.fixture
def net() -> UNet:
    torch.manual_seed(0)
    return unet(1, 3, channels=(4, 8, 16)).eval()


@pytest.fixture
def scan() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 1, 16, 16, generator=generator),
        "label": torch.randint(0, 3, (2, 16, 16), generator=generator),
    }


def parts(net: UNet, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = net.encoder["1"](image)
    second = net.encoder["2"](first)
    return first, second, net.bottleneck(second)


def decode(net: UNet, first: Tensor, second: Tensor, code: Tensor) -> Tensor:
    return net.head(net.decoder["1"](net.decoder["2"](code, second), first))


@pytest.mark.parametrize("scheme", ["channel", "spatial", "dropout"])
@pytest.mark.parametrize("skips", ["keep", "zero"])
def test_the_output_is_that_of_the_masked_code(net: UNet, scan: dict[str, Tensor], scheme: str, skips: str) -> None:
    result = mask_latent(net, scan, scheme=scheme, fraction=0.5, skips=skips)
    with torch.no_grad():
        first, second, code = parts(net, scan["image"])
        clean = decode(net, first, second, code)
        keep = float(skips == "keep")
        masked = decode(net, first * keep, second * keep, code * result.mask)
    assert torch.equal(result.segmentation[0], clean.argmax(1))
    assert torch.equal(result.segmentation[1], masked.argmax(1))
    for entropy, logits in zip(result.entropy, (clean, masked), strict=True):
        q = logits.softmax(1)
        torch.testing.assert_close(entropy, -(q * torch.log2(q + 1e-7)).sum(1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(result.entropy[0], result.entropy[1])
    shape = {"channel": (2, 16, 1, 1), "dropout": (2, 16, 1, 1), "spatial": (2, 1, 4, 4)}[scheme]
    assert result.mask.shape == shape
    if scheme == "dropout":
        assert set(result.mask.unique().tolist()) == {0.0, 2.0}
    else:
        assert (result.mask != 1).flatten(1).sum(1).tolist() == [8, 8]
        assert float(result.mask[result.mask != 1].max()) < 0.5


@pytest.mark.parametrize("with_label", [True, False])
def test_targeted_masks_take_the_largest_gradients_of_the_loss(
    net: UNet, scan: dict[str, Tensor], with_label: bool
) -> None:
    inputs = scan if with_label else scan["image"]
    result = mask_latent(net, inputs, scheme="channel", fraction=0.25, soft=False)
    first, second, code = parts(net, scan["image"])
    code = code.detach().requires_grad_()
    logits = decode(net, first, second, code)
    wanted = scan["label"] if with_label else logits.argmax(1)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, wanted), code)
    for mask, score in zip(result.mask.flatten(1), gradient.mean((2, 3)), strict=True):
        assert set((mask == 0).nonzero().flatten().tolist()) == set(score.topk(4).indices.tolist())
    assert result.against == ("reference" if with_label else "prediction")


def test_masked_skips_get_masks_of_their_own(net: UNet, scan: dict[str, Tensor]) -> None:
    outputs = {
        skips: mask_latent(net, scan, scheme="channel", fraction=0.5, soft=False, skips=skips).entropy[1]
        for skips in ("keep", "mask", "zero")
    }
    assert not torch.equal(outputs["keep"], outputs["mask"])
    assert not torch.equal(outputs["mask"], outputs["zero"])
    first, second, code = parts(net, scan["image"])
    leaves = [tensor.detach().requires_grad_() for tensor in (first, second, code)]
    # the gradient at `first` flows through the skip and through the second encoder block's skip, not the bottleneck
    again = net.encoder["2"](leaves[0])
    logits = decode(net, leaves[0], again, leaves[2])
    loss = F.cross_entropy(logits, scan["label"])
    slopes = torch.autograd.grad(loss, [leaves[0], again, leaves[2]])
    masked = []
    for tensor, slope in zip((first, second, code), slopes, strict=True):
        score = slope.mean((2, 3))
        half = score.shape[1] // 2
        keep = torch.ones_like(score).scatter(1, score.topk(half).indices, 0.0)
        masked.append(tensor * keep[:, :, None, None])
    with torch.no_grad():
        q = decode(net, *masked).softmax(1)
    torch.testing.assert_close(outputs["mask"], -(q * torch.log2(q + 1e-7)).sum(1), rtol=1e-4, atol=1e-5)


def test_nothing_masked_changes_nothing_and_seeds_repeat(net: UNet, scan: dict[str, Tensor]) -> None:
    for scheme in ("channel", "dropout"):
        none = mask_latent(net, scan, scheme=scheme, fraction=0.0)
        assert torch.equal(none.segmentation[0], none.segmentation[1])
        assert torch.equal(none.entropy[0], none.entropy[1])
    one, two, other = (mask_latent(net, scan, fraction=0.5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.mask == 1, other.mask == 1)  # same support, other shares
    assert not torch.equal(one.mask, other.mask)
    drawn = mask_latent(net, scan, fraction=(0.1, 0.4), seed=5).fraction
    assert 0.1 <= drawn <= 0.4
    assert drawn == mask_latent(net, scan, fraction=(0.1, 0.4), seed=5).fraction


def test_any_layer_of_any_network(scan: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    image = scan["image"]
    deep = Outputs("list").eval()
    result = mask_latent(deep, image, layer="pair.coarse", fraction=0.5, skips="zero")
    with torch.no_grad():
        fine, coarse = deep.pair(image)
        raw = deep.pair.coarse(fine) * result.mask
        masked = deep.high(torch.cat((torch.zeros_like(fine), deep.up(raw.relu())), 1))
    assert coarse.shape == raw.shape
    assert torch.equal(result.segmentation[1], masked.argmax(1))
    tokens = Tokens().eval()
    result = mask_latent(tokens, image, layer="plain", scheme="spatial", fraction=0.25)
    assert result.mask.shape == (2, 16, 1)
    assert (result.mask != 1).sum(1).flatten().tolist() == [4, 4]
    assert mask_latent(tokens, image, layer="plain", fraction=0.25).mask.shape == (2, 1, 8)
    at_input = mask_latent(deep, image, layer="head_input", fraction=0.5, aliases={"head_input": "high:input"})
    assert at_input.mask.shape == (2, 8, 1, 1)
    assert mask_latent(deep, image, fraction=0.5).layer == "pair.coarse"  # found by the rule for `bottleneck`
    volume = unet(1, 2, channels=(4, 8), dims=3)
    assert mask_latent(volume, torch.randn(1, 8, 8, 8), scheme="spatial").mask.shape == (1, 1, 4, 4, 4)


class TwoCodes(nn.Module):
    """The structural protocol of a fast/slow network, small."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.filter = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.image = nn.ConvTranspose2d(8, 1, 4, stride=4)
        self.shape = nn.ConvTranspose2d(8, 3, 4, stride=4)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decouple(self, code: Tensor) -> Tensor:
        return self.filter(code)

    def decode_image(self, code: Tensor) -> Tensor:
        return self.image(code).sigmoid()

    def decode_segmentation(self, code: Tensor) -> Tensor:
        return self.shape(code)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode_segmentation(self.decouple(self.encode(x)))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_network_with_two_codes_has_two_masks(scan: dict[str, Tensor], mode: str) -> None:
    torch.manual_seed(0)
    net = TwoCodes()
    result = mask_latent(net, scan, scheme="channel", fraction=0.5, soft=False, mode=mode)
    assert (result.skips, result.temperature, result.bn_mode) == ("none", 2.0, mode)
    net.train(mode == "train")
    image_code = net.encode(scan["image"]).detach().requires_grad_()
    shape_code = net.decouple(image_code).detach().requires_grad_()
    decoded, logits = net.decode_image(image_code), net.decode_segmentation(shape_code)
    (at_image,) = torch.autograd.grad(F.mse_loss(decoded, scan["image"]), image_code)
    (at_shape,) = torch.autograd.grad(F.cross_entropy(logits, scan["label"]), shape_code)
    assert result.image is not None
    assert result.image_mask is not None
    for mask, slope in ((result.image_mask, at_image), (result.mask, at_shape)):
        for one, score in zip(mask.flatten(1), slope.mean((2, 3)), strict=True):
            assert set((one == 0).nonzero().flatten().tolist()) == set(score.topk(4).indices.tolist())
    torch.testing.assert_close(result.image[0], decoded.detach())
    torch.testing.assert_close(result.image[1], net.decode_image(image_code * result.image_mask).detach())
    q = (net.decode_segmentation(shape_code * result.mask) / 2).softmax(1).detach()
    torch.testing.assert_close(result.entropy[1], -(q * torch.log2(q + 1e-7)).sum(1), rtol=1e-4, atol=1e-5)


def test_the_fast_slow_network_decodes_both_masked_codes(scan: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    net = fast_slow_network(1, 3, width=4).eval()
    result = mask_latent(
        net, {"image": scan["image"].sigmoid(), "label": scan["label"]}, scheme="dropout", fraction=0.5
    )
    assert result.image is not None
    assert result.image_mask is not None
    with torch.no_grad():
        image_code = net.encode(scan["image"].sigmoid())
        decoded = net.decode_image(image_code * result.image_mask)
        logits = net.decode_segmentation(net.decouple(image_code) * result.mask)
    torch.testing.assert_close(result.image[1], decoded)
    assert torch.equal(result.segmentation[1], logits.argmax(1))
    assert result.mask.shape == result.image_mask.shape == (2, 32, 1, 1)
    assert not torch.equal(result.mask, result.image_mask)  # drawn independently


def test_the_table_counts_over_and_under_segmentation() -> None:
    clean, masked, label = torch.zeros(3, 1, 4, 4, dtype=torch.int64)
    label[0, :2, :2] = 1  # 4 voxels
    clean[0, :2, :2] = 1
    masked[0, :3, :1], masked[0, 3, 3] = 1, 2  # 3 of class 1, one of them outside; 1 of class 2
    entropy = torch.full((1, 4, 4), 0.5)
    result = MaskedLatent(
        input=torch.zeros(1, 1, 4, 4),
        image=None,
        segmentation=(clean, masked),
        entropy=(entropy, 2 * entropy),
        mask=torch.ones(1, 2, 1, 1),
        image_mask=None,
        label=label[:, None],
        cases=["a"],
        classes={0: "b", 1: "LV", 2: "RV"},
        scheme="channel",
        fraction=0.5,
        soft=True,
        skips="keep",
        layer="bottleneck",
        bn_mode="eval",
        temperature=1.0,
        against="reference",
    )
    table = result.table().set_index("class_name")
    assert table.loc["LV", ["reference_voxels", "clean_voxels", "masked_voxels"]].tolist() == [4, 4, 3]
    assert table.loc["LV", ["ratio", "over", "under"]].tolist() == [0.75, 0.25, 0.5]
    assert table.loc["RV", ["ratio", "over"]].isna().all()
    assert table.loc["foreground", ["ratio", "over", "under"]].tolist() == [1.0, 0.5, 0.5]
    assert table.loc["LV", "changed"] == pytest.approx(4 / 16)
    assert table.loc["LV", "entropy_masked"] == 1.0


def test_wrong_calls_say_what_is_wrong(net: UNet, scan: dict[str, Tensor]) -> None:
    image = scan["image"]
    for keywords, message in (
        ({"scheme": "rows"}, "channel, spatial, dropout"),
        ({"skips": "drop"}, "keep, mask, zero"),
        ({"fraction": 1.5}, "from 0 to 1"),
        ({"scheme": "dropout", "fraction": 1.0}, "below 1"),
        ({"score": "best"}, "signed"),
    ):
        with pytest.raises(ConfigError, match=message):
            mask_latent(net, image, **keywords)
    with pytest.raises(LayerError, match="bottleneck"):
        mask_latent(net, image, layer="bottlenek")
    with pytest.raises(LayerError, match="tuple"):
        mask_latent(Outputs("list"), image, layer="pair")
    with pytest.raises(LayerError, match="does not depend"):
        mask_latent(Outputs("list"), image, layer="low")
    with pytest.raises(DataError, match="several sizes"):
        mask_latent(net, [image[0], torch.randn(1, 8, 8)])
    with pytest.raises(DataError, match="class 7"):
        mask_latent(net, image, label=torch.full((2, 16, 16), 7))


def test_random_layers_run_the_same_way_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, image = Dropping(), torch.randn(2, 1, 8, 8)
    result = mask_latent(net, image, layer="down", fraction=0.0, mode="train")
    assert torch.equal(result.entropy[0], result.entropy[1])  # the dropout before the layer is not drawn again
    again = MaskedLatent.load(result.save(tmp_path / "mask.zip"))
    assert torch.equal(again.mask, result.mask)
    assert again.table().equals(result.table())
    assert repr(again) == repr(result)


def test_entropy_map_of_the_reference() -> None:
    numbers = golden_case("latent_augmentation", "entropy_map").tensors()
    torch.testing.assert_close(entropy_map(numbers["probabilities"]), numbers["entropy"], rtol=0, atol=1e-5)


def test_the_padding_is_not_part_of_the_result(net: UNet) -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(1, 1, 14, 11, generator=generator)  # the network needs multiples of 4
    label = torch.randint(0, 3, (1, 14, 11), generator=generator)
    result = mask_latent(net, {"image": image[0], "label": label[0]}, fraction=0.5)
    assert torch.equal(result.input, image)
    assert result.label is not None
    assert torch.equal(result.label[:, 0].long(), label)
    assert {tuple(t.shape) for t in (*result.segmentation, *result.entropy)} == {(1, 14, 11)}


def test_a_mask_by_hand_and_the_loss(net: UNet, scan: dict[str, Tensor]) -> None:
    mask = torch.ones(1, 16, 1, 1)
    mask[:, [2, 5]] = torch.tensor([0.0, 0.25]).reshape(1, 2, 1, 1)
    result = mask_latent(net, scan, mask=mask)
    with torch.no_grad():
        first, second, code = parts(net, scan["image"])
        pair = decode(net, first, second, code), decode(net, first, second, code * mask)
    assert torch.equal(result.mask, mask)
    assert result.loss is not None
    for logits, segmentation, loss in zip(pair, result.segmentation, result.loss, strict=True):
        assert torch.equal(segmentation, logits.argmax(1))
        wanted = [F.cross_entropy(one[None], label[None]) for one, label in zip(logits, scan["label"], strict=True)]
        torch.testing.assert_close(loss, torch.stack(wanted))
    assert result.scheme == "by hand"
    assert result.fraction == pytest.approx(2 / 16)


def test_both_codes_get_the_mask_by_hand() -> None:
    network = fast_slow_network(1, 3, width=2).eval()
    mask = torch.ones(1, 16, 1, 1)
    mask[:, 3] = 0
    result = mask_latent(network, torch.rand(1, 1, 32, 32), mask=mask)
    assert torch.equal(result.mask, mask)
    assert result.image_mask is not None
    assert torch.equal(result.image_mask, mask)


def test_a_mask_that_does_not_fit_is_refused(net: UNet, scan: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        mask_latent(net, scan, mask=torch.ones(1, 7, 1, 1))
    with pytest.raises(ConfigError, match="does not fit"):
        mask_latent(net, scan, mask=torch.ones(16))


def test_the_loss_leaves_padding_out() -> None:
    torch.manual_seed(0)
    network = unet(1, 3, channels=(4, 8, 16)).eval()
    image, label = torch.randn(1, 1, 14, 14), torch.randint(0, 3, (1, 14, 14))
    result = mask_latent(network, {"image": image, "label": label}, fraction=0.0)
    with torch.no_grad():
        logits = network(F.pad(image, (1, 1, 1, 1), value=float(image.min())))[..., 1:15, 1:15]
    assert result.loss is not None
    torch.testing.assert_close(result.loss[0], F.cross_entropy(logits, label)[None])


class _Record(OrderedDict[str, torch.Tensor]):
    """Keys are attributes as well, like an output of Hugging Face's networks."""

    def __setitem__(self, key: str, value: torch.Tensor) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class _Pair(NamedTuple):
    fine: torch.Tensor
    count: int


class _Typed(nn.Module):
    """Two blocks, the first returning a structure that the second needs by its type."""

    class First(nn.Module):
        def __init__(self, kind: type) -> None:
            super().__init__()
            self.conv, self.kind = nn.Conv2d(1, 4, 3, padding=1), kind

        def forward(self, x: torch.Tensor) -> Any:
            return _Record(fine=self.conv(x)) if self.kind is _Record else _Pair(self.conv(x), 1)

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.first, self.code, self.head = self.First(kind), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.first(x)
        return self.head(self.code(found.fine) + found.fine)


@pytest.mark.parametrize("kind", [_Record, _Pair])
@pytest.mark.parametrize("skips", ["keep", "zero"])
def test_structures_that_blocks_hand_on_keep_their_type(kind: type, skips: str) -> None:
    torch.manual_seed(0)
    net, image = _Typed(kind).eval(), torch.randn(1, 1, 8, 8)
    result = mask_latent(net, image, layer="code", mask=torch.zeros(1, 1, 1, 1), skips=skips)
    with torch.no_grad():
        around = 0 if skips == "zero" else net.first.conv(image)
        expected = net.head(torch.zeros(1, 4, 8, 8) + around).argmax(1)
    assert torch.equal(result.segmentation[1], expected)
