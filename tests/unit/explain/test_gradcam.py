"""Grad-CAM against captum, the reference numbers, hand computation and the formulas of the variants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import nibabel
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from golden_cases import golden_case
from networks import Checkpointed, Inplace, Outputs, Reused, Tokens
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError, ResultError, ToolkitWarning
from toolkit.explain.cam_maps import displayed, normalised_sum, raw_map, stretched
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import ClassSum, NormalisedClassSum, Region, Target
from toolkit.features.logits import find_logits
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.med_disseg import med_disseg
from toolkit.methods.selfreg.swin_unet import swin_unet
from toolkit.methods.selfreg.unet import self_reg_unet
from toolkit.models.unet import unet


def captum_map(net: nn.Module, layer: str, image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    cam = LayerGradCam(lambda x: score(find_logits(net(x))), net.get_submodule(layer))
    return cam.attribute(image).detach()


def monai_network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    from monai.networks import nets

    if name == "monai_unet":
        return nets.UNet(2, 1, 3, (4, 8, 16), (2, 2), num_res_units=1), (16, 16)
    if name == "monai_dynunet_3d":
        kernels, strides = [3, 3, 3], [1, 2, 2]
        return nets.DynUNet(3, 1, 3, kernels, strides, strides[1:], filters=[4, 8, 8], deep_supervision=True), (16,) * 3
    if name == "monai_swinunetr":
        return nets.SwinUNETR(1, 3, feature_size=12, spatial_dims=2, depths=(1,) * 4, num_heads=(1,) * 4), (64, 64)
    if name == "monai_unet_3d":
        return nets.UNet(3, 1, 3, (4, 8), (2,)), (8, 8, 8)
    return nets.SegResNet(2, init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 1), blocks_up=(1,)), (
        16,
        16,
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "unet_2d": (lambda: unet(1, 4, channels=(4, 8, 16)), (16, 24), ["encoder.*", "bottleneck", "decoder.*"]),
    "unet_2d_batch": (lambda: unet(1, 3, channels=(4, 8), norm="batch"), (16, 16), ["encoder.*", "bottleneck", "head"]),
    "unet_3d": (lambda: unet(1, 3, channels=(4, 8), dims=3), (8, 8, 16), ["encoder.*", "bottleneck", "decoder.*"]),
    "inplace_2d": (lambda: Inplace(), (12, 12), ["conv", "norm", "second"]),
    "inplace_3d": (lambda: Inplace(3), (6, 6, 8), ["conv", "norm", "second"]),
    "list_output": (lambda: Outputs("list"), (16, 16), ["pair.fine", "pair.coarse", "up"]),
    "dict_output": (lambda: Outputs("dict"), (16, 16), ["pair.fine", "up"]),
    "checkpointed": (lambda: Checkpointed(reentrant=False), (10, 10), ["stem", "block"]),
    "monai_unet": (lambda: monai_network("monai_unet")[0], (16, 16), ["model.0", "model.1"]),
    "monai_dynunet_3d": (
        lambda: monai_network("monai_dynunet_3d")[0],
        (16,) * 3,
        ["input_block", "bottleneck", "upsamples.*"],
    ),
    "monai_unet_3d": (lambda: monai_network("monai_unet_3d")[0], (8, 8, 8), ["model.0", "model.1"]),
    "monai_swinunetr": (lambda: monai_network("monai_swinunetr")[0], (64, 64), ["encoder1", "encoder4", "decoder1"]),
    "swin_unet": (
        lambda: swin_unet(1, 3, width=12, depths=(1,) * 4, heads=(1,) * 4, window=2),
        (64, 64),
        ["encoder.*", "bottleneck", "decoder.*"],
    ),
    "fast_slow": (
        lambda: fast_slow_network(1, 3, width=4),
        (16, 16),
        ["image_encoder.down2", "decoupler", "segmentation_decoder.up2"],
    ),
    "med_disseg": (
        lambda: med_disseg(in_channels=1, width=16, encoder_width=4),
        (32, 32),
        ["layer0", "layer2", "layer3"],
    ),
    "self_reg_unet": (lambda: self_reg_unet(1, 3, width=2), (16, 16), ["encoder.*", "bottleneck", "decoder.*"]),
    "monai_segresnet": (lambda: monai_network("monai_segresnet")[0], (16, 16), ["convInit", "up_layers.0"]),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n.startswith(("monai", "swin", "med", "fast")) else ())
        for n in NETWORKS
    ],
)
def test_maps_equal_captums_at_every_layer(name: str) -> None:
    torch.manual_seed(0)
    build, size, layers = NETWORKS[name]
    net = build().eval()
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        prediction = find_logits(net(image)).argmax(1)
    chosen = int(prediction.flatten().mode().values)
    targets: list[tuple[Target, Callable[[Tensor], Tensor]]] = [
        (ClassSum(1), lambda logits: logits[:, 1].flatten(1).sum(1)),
        (Region(chosen), lambda logits: (logits[:, chosen] * (prediction == chosen)).flatten(1).sum(1)),
    ]
    for target, score in targets:
        cam = grad_cam(net, image, layers, target)
        assert len(cam) >= 2
        for layer, found in cam.items():
            if name.startswith("inplace") and layer != "conv":
                continue  # captum sees the tensor after the in-place change; tested below by hand
            expected = captum_map(net, layer, image, score)
            assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
            assert float(expected.abs().max()) > 0


def test_in_place_layers_use_the_value_before_the_activation() -> None:
    torch.manual_seed(1)
    net, image = Inplace().eval(), torch.randn(1, 1, 6, 6)
    cam = grad_cam(net, image, ["norm", "second"], 2)
    at_norm = net.norm(net.conv(image)).detach().clone().requires_grad_()
    after = F.leaky_relu(at_norm, 0.1)
    at_second = net.second(after)
    logits = net.head(F.relu(at_second + after))
    for name, activation in (("norm", at_norm), ("second", at_second)):
        (gradient,) = torch.autograd.grad(logits[:, 2].sum(), activation, retain_graph=True)
        expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
        torch.testing.assert_close(cam[name], expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_case_computed_by_hand() -> None:
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 1, bias=False)
            self.head = nn.Conv2d(2, 2, 1, bias=False)
            with torch.no_grad():
                self.layer.weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
                self.head.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.5]]).reshape(2, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x))

    image = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    cam = grad_cam(Hand(), image[None], "layer", 1)
    # activations are x and -2x, gradients 3 and 0.5 everywhere: map = 3 x - x = 2 x
    torch.testing.assert_close(cam["layer"][0, 0], 2 * image)
    assert float(cam.score[0]) == pytest.approx(float(2 * image.sum()))
    region = torch.tensor([[0, 1], [0, 0]])
    cam = grad_cam(Hand(), {"image": image[None], "label": region}, "layer", Region(1, inside="reference"))
    # the gradient is now at one voxel of four: weights 3/4 and 0.5/4, map = 0.75 x - 0.25 x = 0.5 x
    torch.testing.assert_close(cam["layer"][0, 0], 0.5 * image)
    assert float(cam.score[0]) == pytest.approx(4.0)
    row = cam.table().iloc[0]
    assert (row["min"], row["max"], row["region_voxels"], row["status"]) == (-2.0, 1.5, 1, "ok")


def test_the_reference_numbers() -> None:
    arrays = golden_case("selfreg", "grad_cam").tensors()
    found = {k.removeprefix("grad_cam__"): v for k, v in arrays.items() if k.startswith("grad_cam__")}
    raw = raw_map(found["activation"].double(), found["gradient"].double())
    torch.testing.assert_close(raw.relu()[0, 0], found["cam_raw"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(stretched(raw.relu())[0, 0], found["cam_normalised"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(displayed(raw, (28, 28))[0, 0], found["cam_resized"], rtol=1e-4, atol=1e-6)


def test_the_variants_by_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    a, g = torch.randn(1, 3, 4, 5, generator=generator), torch.randn(1, 3, 4, 5, generator=generator)
    g[0, 1, 2, 2] = 0
    hires, layer, plus = torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, 5)
    for k in range(3):
        weight, total = 0.0, float(a[0, k].sum())
        for y in range(4):
            for x in range(5):
                slope = float(g[0, k, y, x])
                if slope:
                    weight += slope**2 / (2 * slope**2 + total * slope**3) * max(slope, 0)
                hires[y, x] += slope * a[0, k, y, x]
                layer[y, x] += max(slope, 0) * a[0, k, y, x]
        plus += weight * a[0, k]
    for method, expected in (("hires_cam", hires), ("layer_cam", layer), ("grad_cam++", plus)):
        torch.testing.assert_close(raw_map(a, g, method)[0, 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="grad_cam"):
        grad_cam(unet(1, 2, channels=(4, 8)), torch.zeros(1, 8, 8), "bottleneck", 1, method="best")


def test_the_sum_of_normalised_classes_as_selfreg_draws_it() -> None:
    torch.manual_seed(2)
    net, image = unet(1, 4, channels=(4, 8)).eval(), torch.randn(1, 1, 16, 16)
    label = torch.zeros(16, 16, dtype=torch.int64)
    label[2:5, 2:5], label[8:14, 8:14] = 1, 3
    inputs = {"image": image, "label": label[None]}
    cam = grad_cam(net, inputs, ["bottleneck", "decoder.1"], NormalisedClassSum())
    for layer in cam:
        total = torch.zeros(16, 16)
        for index in (1, 3):
            one = grad_cam(net, inputs, layer, Region(index, inside="reference"))[layer]
            one = F.relu(one)
            one = (one - one.min()) / (1e-7 + (one - one.min()).max())
            one = F.interpolate(one, (16, 16), mode="bilinear", align_corners=False).clamp_min(0)[0, 0]
            total += (one - one.min()) / (1e-7 + (one - one.min()).max())
        torch.testing.assert_close(cam[layer][0, 0], total / total.max(), rtol=1e-4, atol=1e-5)
    assert torch.equal(normalised_sum([torch.zeros(1, 1, 4, 4)], (8, 8)), torch.zeros(1, 1, 8, 8))


def test_batches_frozen_parameters_and_outer_no_grad_change_nothing() -> None:
    torch.manual_seed(0)
    net, images = unet(1, 3, channels=(4, 8), norm="batch"), torch.randn(3, 1, 8, 8)
    together = grad_cam(net, images, ["encoder.1", "decoder.1"], 1)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        alone = [grad_cam(net, image, ["encoder.1", "decoder.1"], 1, batch_size=1) for image in images]
    for layer in together:
        torch.testing.assert_close(together[layer], torch.cat([cam[layer] for cam in alone]), rtol=1e-4, atol=1e-6)
    split = grad_cam(net, images, "decoder.1", 1, batch_size=2)
    torch.testing.assert_close(split["decoder.1"], together["decoder.1"], rtol=1e-4, atol=1e-6)
    assert len(split.cases) == 3


def test_token_layers_equal_the_map_of_the_same_tokens() -> None:
    torch.manual_seed(0)
    net, image = Tokens().eval(), torch.randn(2, 1, 16, 24)
    cam = grad_cam(net, image, ["embed", "norm_last", "block", "plain"], 1)
    assert {tuple(found.shape) for found in cam.values()} == {(2, 1, 4, 6)}
    weight = net.head.weight[1, :, 0, 0]
    # the score is 16 times the sum over tokens of the head's response, so the gradient at `plain` is constant
    with torch.no_grad():
        tokens = net.plain(net.block(_tokens_before(net, image))[:, 1:])
    expected = (tokens * weight * 16).sum(-1).reshape(2, 1, 4, 6)
    torch.testing.assert_close(cam["plain"], expected.detach(), rtol=1e-4, atol=1e-4)


def _tokens_before(net: Tokens, image: Tensor) -> Tensor:
    x = net.norm_last(net.embed(image).movedim(1, -1)).movedim(-1, 1)
    return torch.cat((net.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)


def test_reused_modules_have_a_map_per_call() -> None:
    torch.manual_seed(0)
    net, image = Reused().eval(), torch.randn(1, 1, 8, 8)
    cam = grad_cam(net, image, ["shared", "shared#2"], 1)
    first = net.shared(F.relu(net.first(image)))
    second = net.shared(first)
    score = net.head(F.relu(second))[:, 1].sum()
    for name, activation in (("shared", first), ("shared#2", second)):
        (gradient,) = torch.autograd.grad(score, activation, retain_graph=True)
        expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
        torch.testing.assert_close(cam[name], expected.detach(), rtol=1e-5, atol=1e-6)


def test_states_of_a_map_are_reported() -> None:
    net = unet(1, 3, channels=(4, 8)).eval()
    image = torch.randn(2, 1, 8, 8)
    label = torch.zeros(2, 8, 8, dtype=torch.int64)
    label[0, 2:4, 2:4] = 1
    inputs = {"image": image, "label": label}
    cam = grad_cam(net, inputs, ["bottleneck"], Region(1, inside="reference"))
    assert cam.status["bottleneck"][1] == "empty region"
    assert float(cam["bottleneck"][1].abs().max()) == 0
    with torch.no_grad():
        net.head.weight.zero_()
    assert grad_cam(net, image, "bottleneck", 1).status["bottleneck"] == ["zero", "zero"]
    deep = Outputs("list")
    cam = grad_cam(deep, image, ["low", "up"], 1)  # `low` makes the output that is not explained
    assert cam.status["low"] == ["not connected"] * 2
    assert cam.status["up"] != ["not connected"] * 2


def test_wrong_calls_say_what_is_wrong() -> None:
    net, image = unet(1, 3, channels=(4, 8)), torch.randn(1, 8, 8)
    with pytest.raises(LayerError, match=r"decoder\.1"):
        grad_cam(net, image, "decoder.9", 1)
    with pytest.raises(ConfigError, match=r"no class 3.*\n.*\n.*0: unnamed, 1: unnamed, 2: unnamed"):
        grad_cam(net, image, "bottleneck", 3)
    with pytest.raises(ConfigError, match="arrays have indices only"):
        grad_cam(net, image, "bottleneck", "LV")
    with pytest.raises(DataError, match="needs a reference label"):
        grad_cam(net, image, "bottleneck", Region(1, inside="reference"))
    empty = {"image": image, "label": torch.zeros(8, 8)}
    with pytest.raises(DataError, match="empty in every image"):
        grad_cam(net, empty, "bottleneck", Region(1, inside="reference"))
    with pytest.raises(LayerError, match="use_reentrant"):
        grad_cam(Checkpointed(reentrant=True), image, "block.0", 1)
    with pytest.raises(DataError, match="several sizes"):
        grad_cam(net, [image, torch.randn(1, 16, 16)], "bottleneck", 1)
    with pytest.raises(DataError, match="no inputs"):
        grad_cam(net, [], "bottleneck", 1)


def test_a_result_reads_like_a_mapping_and_survives_saving(tmp_path: Path) -> None:
    net = unet(1, 3, channels=(4, 8))
    inputs = {
        "image": torch.randn(1, 7, 8),
        "label": torch.ones(7, 8),
        "spacing": (1.0, 2.0),
        "classes": {0: "b", 1: "LV"},
    }
    cam = grad_cam(net, inputs, ["encoder.*", "bottleneck"], Region("LV", inside="reference"))
    assert list(cam) == cam.layers == ["encoder.1", "bottleneck"]
    assert "bottleneck" in cam
    assert int(cam.region.sum()) == 56
    assert cam.padding == [(0, 1), (0, 0)]
    assert cam["bottleneck"].shape == (1, 1, 4, 4)
    assert cam.resized("bottleneck").shape == cam.image.shape == (1, 1, 7, 8)
    whole = F.interpolate(cam["bottleneck"], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cam.resized("bottleneck"), whole[:, :, :7])
    again = GradCamResult.load(cam.save(tmp_path / "cam.zip"))
    assert all(torch.equal(again[layer], cam[layer]) for layer in cam)
    assert again.table().equals(cam.table())
    assert again.classes == {0: "b", 1: "LV"}
    assert again.provenance["parameters"]["target"] == "Region(index='LV', inside='reference')"
    assert again.provenance == cam.provenance
    with pytest.raises(LayerError, match="maps of encoder"):
        cam["head"]


class _Normed(nn.Module):
    """A 1x1 convolution, then an instance norm without padding in sight: the mean gradient before it is exactly 0."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.before, self.mix, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), norm
        self.after, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.norm(self.mix(self.before(x)))).relu())


@pytest.mark.parametrize("patch_size", [None, (12, 12)])
def test_a_map_whose_gradient_cancels_says_so(patch_size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    image, layers = torch.randn(2, 1, 16, 16), ["before", "after"]
    states = {}
    for name, norm in {"instance": nn.InstanceNorm2d(4), "batch": nn.BatchNorm2d(4)}.items():
        net = _Normed(norm).eval()
        found = grad_cam(net, image, layers, ClassSum(1), method=["grad_cam", "hires_cam"], patch_size=patch_size)
        states[name] = found.status
        hires = grad_cam(net, image, layers, ClassSum(1), method="hires_cam", patch_size=patch_size)
        other = found.by_method("hires_cam")
        assert other.status == hires.status == {"before": ["ok"] * 2, "after": ["ok"] * 2}
        assert all(torch.equal(other[layer], hires[layer]) for layer in hires)
        assert other.by_method("grad_cam").status == found.status
        with pytest.raises(ResultError, match="grad_cam, hires_cam"):
            found.by_method("layer_cam")
    assert states["instance"] == {"before": ["cancelled"] * 2, "after": ["ok"] * 2}
    assert states["batch"] == {"before": ["ok"] * 2, "after": ["ok"] * 2}


def test_a_saved_map_carries_its_status(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, image = _Normed(nn.InstanceNorm2d(4)).eval(), torch.randn(2, 1, 16, 16)
    found = grad_cam(net, image, ["before", "after"], ClassSum(1))
    with pytest.warns(ToolkitWarning, match="'before' that is saved for .* is not one to read .*cancelled") as seen:
        files = found.save_nifti(tmp_path)
    assert len(seen) == 2
    words = {layer: [bytes(nibabel.load(f).header["descrip"]).rstrip(b"\0") for f in files[layer]] for layer in files}
    assert words == {"before": [b"grad_cam: cancelled"] * 2, "after": [b"grad_cam: ok"] * 2}
    found.positions, found.volumes = [0, 1], ["p", "p"]  # a stack
    found.status["before"][0] = "ok"
    with pytest.warns(ToolkitWarning, match="1 ok, 1 cancelled"):
        (file,) = found.save_nifti(tmp_path / "stack", ["before"])["before"]
    assert bytes(nibabel.load(file).header["descrip"]).startswith(b"grad_cam: 1 ok, 1 cancelled")


def test_the_share_that_the_mean_keeps_is_that_of_the_gradient() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8)).eval(), torch.randn(1, 1, 16, 16)
    tape: dict[str, Tensor] = {}
    handle = net.encoder["1"].register_forward_hook(lambda _, __, output: tape.update(found=output))
    score = net(image)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, tape["found"])
    expected = sum(abs(float(g.mean())) for g in gradient[0]) / sum(float(g.abs().mean()) for g in gradient[0])
    found = grad_cam(net, image, "encoder.1", ClassSum(1))
    assert found.net_gradient["encoder.1"] == [pytest.approx(expected, rel=1e-4)]
    assert found.table()["net_gradient"].tolist() == found.net_gradient["encoder.1"]


def test_a_map_of_one_value_is_constant_and_a_dead_layers_is_zero(tmp_path: Path) -> None:
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 1), b=nn.ReLU(), c=nn.Conv2d(2, 3, 1)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    found = grad_cam(net, torch.ones(1, 1, 8, 8), ["a", "b"], ClassSum(1))
    assert found.status == {"a": ["constant"], "b": ["constant"]}
    with torch.no_grad():
        net.a.weight.fill_(-1.0)
        net.a.bias.fill_(-1.0)
    dead = grad_cam(net, torch.ones(1, 1, 8, 8), ["b"], ClassSum(1))
    assert dead.status == {"b": ["zero"]}
    assert not dead.telling("b")
    assert GradCamResult.load(found.save(tmp_path / "cam")).status == found.status
