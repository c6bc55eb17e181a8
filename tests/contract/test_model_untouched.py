"""Every analysis call gives the network back as it was: hooks, gradients, mode, buffers and random state."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import Awkward, Checkpointed, Dropping, Inplace, Outputs, Reused, SelfHooking, Tokens
from torch import nn

from toolkit.data.table import task_from_arrays
from toolkit.errors import LayerError, ToolkitError
from toolkit.explain.attribute import attribute
from toolkit.explain.faithfulness import faithfulness
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.masking import mask_latent
from toolkit.explain.sanity import randomised_weights
from toolkit.explain.targets import ClassSum, NormalisedClassSum, Region
from toolkit.features.capture import Recorder, capture
from toolkit.features.names import resolve
from toolkit.features.untouched import untouched
from toolkit.inference.extract import extract
from toolkit.inference.layers import layers
from toolkit.inference.predict import predict
from toolkit.measure.evaluate import evaluate
from toolkit.measure.similarity import channel_similarity
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.med_disseg import med_disseg
from toolkit.methods.selfreg.swin_unet import swin_unet
from toolkit.methods.selfreg.unet import self_reg_unet
from toolkit.models.unet import unet

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unet": (lambda: unet(1, 3, channels=(4, 8), norm="batch"), "bottleneck"),
    "in place": (lambda: Inplace(), "norm"),
    "reused": (lambda: Reused(), "shared#2"),
    "list output": (lambda: Outputs("list"), "pair.coarse"),
    "dict output": (lambda: Outputs("dict"), "pair.coarse"),
    "tokens": (lambda: Tokens(), "plain"),
    "checkpointed": (lambda: Checkpointed(reentrant=False), "block.0"),
    "dropout": (lambda: Dropping(), "down"),
    "every awkward habit": (lambda: Awkward(), "shared#2"),
    "awkward tokens": (lambda: Awkward(), "attention"),
    "fast/slow": (lambda: fast_slow_network(1, 3, width=4), "bottleneck"),
}
LARGER: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unet 3D": (lambda: unet(1, 3, channels=(4, 8), dims=3), "bottleneck"),
    "SelfReg-UNet's U-Net": (lambda: self_reg_unet(1, 3, width=2), "bottleneck"),
    "Swin-Unet": (lambda: swin_unet(1, 3, width=12, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=2), "bottleneck"),
    "Med-DisSeg": (lambda: med_disseg(in_channels=1, width=16, encoder_width=4), "bottleneck"),
    "MONAI UNet": (lambda: monai_nets().UNet(2, 1, 3, (4, 8), (2,), dropout=0.1), "bottleneck"),
    "MONAI DynUNet": (
        lambda: monai_nets().DynUNet(
            2, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[4, 4, 8, 8], deep_supervision=True, deep_supr_num=2
        ),
        "bottleneck",
    ),
    "MONAI SwinUNETR": (
        lambda: monai_nets().SwinUNETR(1, 3, feature_size=12, spatial_dims=2, depths=(1,) * 4, num_heads=(1,) * 4),
        "bottleneck",
    ),
    "MONAI SegResNet": (lambda: monai_nets().SegResNet(2, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)), "bottleneck"),
}
SIDES = {"Swin-Unet": 64, "Med-DisSeg": 32, "MONAI SwinUNETR": 64}


def monai_nets() -> Any:
    from monai.networks import nets

    return nets


def inputs_for(network: str) -> dict[str, Any]:
    """Two images of the network's size, with labels."""
    spatial = [8] * 3 if "3D" in network else [SIDES.get(network, 16)] * 2
    random_numbers = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(2, 1, *spatial, generator=random_numbers),
        "label": torch.randint(0, 2, (2, *spatial), generator=random_numbers),
    }


def cases_of(inputs: dict[str, Any]) -> list[Any]:
    """The same two images as cases of a task."""
    pairs = zip(inputs["image"].numpy(), inputs["label"].numpy().astype("uint8"), strict=True)
    images, labels = zip(*pairs, strict=True)
    task = task_from_arrays(list(images), list(labels), classes={0: "background", 1: "one", 2: "two"})
    return list(task.cases("test") or task.cases("train"))


def failing(call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(ToolkitError):
        call(*arguments)


def perhaps(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Refusing an output in which no logits are found is no failure here, as long as the network is untouched."""
    with contextlib.suppress(ToolkitError):
        call(*arguments, **options)


def checked(net: nn.Module, inputs: dict[str, Any], layer: str) -> None:
    maps = grad_cam(net, inputs, layer, ClassSum(1))
    faithfulness(net, maps, ClassSum(1), steps=2, orders=1)


def conductance(net: nn.Module, inputs: dict[str, Any], layer: str) -> None:
    with contextlib.suppress(LayerError):  # captum cannot explain a module that runs twice: refused, and untouched
        attribute(net, inputs, "layer_conductance", ClassSum(1), layer=layer, steps=2)


CALLS: dict[str, Callable[[nn.Module, dict[str, Any], str], Any]] = {
    "layers": lambda net, x, _: layers(net, x["image"]),
    "resolve": lambda net, x, _: resolve(net, ["head_input", "bottleneck"], x["image"]),
    "extract": lambda net, x, layer: extract(net, x, layer),
    "extract in training mode": lambda net, x, layer: extract(
        net, x, [layer, "head_input"], pool="voxels", mode="train"
    ),
    "grad_cam": lambda net, x, layer: grad_cam(net, x["image"], layer, 1),
    "grad_cam in training mode": lambda net, x, layer: grad_cam(net, x, layer, Region(1, "reference"), mode="train"),
    "grad_cam of all classes": lambda net, x, layer: grad_cam(net, x, layer, NormalisedClassSum()),
    "grad_cam by window": lambda net, x, layer: grad_cam(net, x, layer, 1, patch_size=x["image"].shape[2:]),
    "mask_latent": lambda net, x, layer: mask_latent(net, x, layer=layer, skips="mask"),
    "mask_latent in training mode": lambda net, x, layer: mask_latent(
        net, x["image"], "dropout", layer=layer, mode="train"
    ),
    "attribute by a path": lambda net, x, _: attribute(net, x, "integrated_gradients", Region(1, "reference"), steps=2),
    "attribute by occlusion": lambda net, x, _: attribute(net, x, "occlusion", 1, window=8, stride=8),
    "attribute by classes": lambda net, x, _: attribute(net, x, "feature_ablation", 1, features="grid", window=8),
    "attribute to a layer": conductance,
    "faithfulness": checked,
    "predict": lambda net, x, _: perhaps(predict, net, x["image"][:1]),
    "predict by window": lambda net, x, _: perhaps(predict, net, x["image"][:1], patch_size=x["image"].shape[2:]),
    "evaluate": lambda net, x, _: perhaps(evaluate, net, cases_of(x), metrics=["dice"]),
    "channel_similarity": lambda net, x, layer: channel_similarity(extract(net, x, layer), layer),
    "randomised_weights": lambda net, x, layer: randomised_weights(net, x, layer, 1, draws=1),
    "a failing call": lambda net, x, _: failing(extract, net, x, "no such layer"),
    "a call that fails inside": lambda net, x, layer: failing(grad_cam, net, x["image"], layer, 99),
    "an attribution that fails inside": lambda net, x, _: failing(attribute, net, x["image"], "saliency", 99),
}


def snapshot(net: nn.Module) -> dict[str, Any]:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "mode": [module.training for module in net.modules()],
        "hooks": [list(getattr(module, table)) for module in net.modules() for table in tables],
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "objects": [id(value) for value in (*net.parameters(), *net.buffers())],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in net.parameters()],
        "needs": [p.requires_grad for p in net.parameters()],
        "kept": [kept(value) for module in net.modules() for value in attributes(module)],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """What a forward pass may leave on a module besides buffers: attention maps, outputs of deep supervision."""
    return [(name, value) for name, value in sorted(vars(module).items()) if not name.startswith("_")]


def kept(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    inside = [id(one) for one in value] if isinstance(value, (list, tuple)) else []
    return name, (id(value), inside) if isinstance(value, (torch.Tensor, list, tuple, dict)) else type(value)


def same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    return bool(before == after)


def prepare(build: Callable[[], nn.Module]) -> nn.Module:
    """A network in a mixed state: some modules in eval mode, one frozen parameter, gradients, a hook of the user's."""
    torch.manual_seed(0)
    net = build()
    list(net.modules())[-1].eval()
    next(net.parameters()).requires_grad_(False)
    for parameter in list(net.parameters())[1:]:
        parameter.grad = torch.randn_like(parameter)
    net.register_forward_hook(lambda *_: None)
    return net


def changed_by(build: Callable[[], nn.Module], network: str, layer: str, call: str) -> list[str]:
    """What is not as it was after a call."""
    net, inputs = prepare(build), inputs_for(network)
    before = snapshot(net)
    CALLS[call](net, inputs, layer)
    after = snapshot(net)
    return [name for name in before if not same(before[name], after[name])]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_is_as_it_was(network: str, call: str) -> None:
    build, layer = NETWORKS[network]
    assert changed_by(build, network, layer, call) == []


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", LARGER)
def test_a_published_network_is_as_it_was(network: str, call: str) -> None:
    build, layer = LARGER[network]
    assert changed_by(build, network, layer, call) == []


@pytest.mark.parametrize("network", NETWORKS)
def test_capture_leaves_no_hook(network: str) -> None:
    build, layer = NETWORKS[network]
    net, image = prepare(build).eval(), inputs_for(network)["image"]
    before = snapshot(net)
    with torch.no_grad(), capture(net, [layer, "head_input"]):
        net(image)
    after = snapshot(net)
    after["kept"] = before["kept"]  # the passes are the caller's own: what the network keeps of them is its business
    assert same(before, after)


@pytest.mark.parametrize("call", CALLS)
def test_a_network_that_hooks_itself_at_its_first_pass_still_works(call: str) -> None:
    torch.manual_seed(0)
    net, inputs = SelfHooking().eval(), inputs_for("self-hooking")
    expected = copy.deepcopy(net)(inputs["image"]).logits  # never called before, as the network that is analysed
    CALLS[call](net, inputs, "act")
    after = net(inputs["image"])
    assert torch.equal(after.logits, expected)
    assert len(net.conv._forward_hooks) == len(net.handles) == 1
    assert not net.head._forward_hooks
    assert not net.act._forward_hooks


def test_hooks_of_an_analysis_go_and_those_of_the_network_stay() -> None:
    net = Dropping()
    with untouched(net):
        of_the_network = net.norm.register_forward_hook(lambda *_: None)
        net.conv.register_forward_hook(Recorder._take.__get__(object()), with_kwargs=True)  # one of the toolkit's
    assert list(net.norm._forward_hooks) == [of_the_network.id]
    assert not net.conv._forward_hooks
    assert not net.conv._forward_hooks_with_kwargs


def test_the_guard_restores_what_a_call_inside_changed() -> None:
    net = prepare(NETWORKS["dropout"][0])
    before = snapshot(net)

    def vandalise() -> None:
        with untouched(net, "train") as inside:
            inside(inputs_for("dropout")["image"]).sum().backward()
            inside.norm.running_mean = torch.zeros(4)
            inside.norm.running_var.fill_(7)
            inside.conv.weight.requires_grad_(True)
            inside.head.eval()
            random.random()
            np.random.rand()  # noqa: NPY002
            raise RuntimeError("after everything was changed")

    with pytest.raises(RuntimeError, match="everything"):
        vandalise()
    assert same(before, snapshot(net))
    with pytest.raises(ValueError, match="eval, train, keep"), untouched(net, "test"):
        pass
