"""Every analysis call gives the network back as it was: hooks, gradients, mode, buffers and random state."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import Checkpointed, Dropping, Inplace, Outputs, Reused, Tokens
from torch import nn

from toolkit.errors import ToolkitError
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.masking import mask_latent
from toolkit.explain.targets import NormalisedClassSum, Region
from toolkit.features.capture import capture
from toolkit.features.extract import extract
from toolkit.features.names import layers, resolve
from toolkit.features.replace import replaced
from toolkit.features.untouched import untouched
from toolkit.models.fast_slow import fast_slow_network
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
    "fast/slow": (lambda: fast_slow_network(1, 3, width=4), "bottleneck"),
}
IMAGE = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
INPUTS = {
    "image": IMAGE,
    "label": torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(1)),
}


def failing(call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(ToolkitError):
        call(*arguments)


CALLS: dict[str, Callable[[nn.Module, str], Any]] = {
    "layers": lambda net, _: layers(net, IMAGE),
    "resolve": lambda net, _: resolve(net, ["head_input", "bottleneck"], IMAGE),
    "extract": lambda net, layer: extract(net, INPUTS, layer),
    "extract in training mode": lambda net, layer: extract(net, INPUTS, [layer, "head_input"], pool="voxels", mode="train"),
    "grad_cam": lambda net, layer: grad_cam(net, IMAGE, layer, 1),
    "grad_cam in training mode": lambda net, layer: grad_cam(net, INPUTS, layer, Region(1, "reference"), mode="train"),
    "grad_cam of all classes": lambda net, layer: grad_cam(net, INPUTS, layer, NormalisedClassSum()),
    "mask_latent": lambda net, layer: mask_latent(net, INPUTS, layer=layer, skips="mask"),
    "mask_latent in training mode": lambda net, layer: mask_latent(net, IMAGE, "dropout", layer=layer, mode="train"),
    "a failing call": lambda net, _: failing(extract, net, INPUTS, "no such layer"),
    "a call that fails inside": lambda net, layer: failing(grad_cam, net, IMAGE, layer, 99),
}  # fmt: skip


def snapshot(net: nn.Module) -> dict[str, Any]:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "mode": [module.training for module in net.modules()],
        "hooks": [list(getattr(module, table)) for module in net.modules() for table in tables],
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "objects": [id(value) for value in (*net.parameters(), *net.buffers())],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in net.parameters()],
        "needs": [p.requires_grad for p in net.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


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


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_is_as_it_was(network: str, call: str) -> None:
    build, layer = NETWORKS[network]
    net = prepare(build)
    before = snapshot(net)
    CALLS[call](net, layer)
    after = snapshot(net)
    assert [name for name in before if not same(before[name], after[name])] == []


@pytest.mark.parametrize("network", NETWORKS)
def test_capture_and_replaced_leave_no_hook(network: str) -> None:
    build, layer = NETWORKS[network]
    net = prepare(build).eval()
    before = snapshot(net)
    with torch.no_grad(), capture(net, [layer, "head_input"]):
        net(IMAGE)
    with torch.no_grad(), replaced(net, {layer: lambda tensor: tensor * 2}):
        net(IMAGE)
    assert same(before, snapshot(net))


def test_the_guard_restores_what_a_call_inside_changed() -> None:
    net = prepare(NETWORKS["dropout"][0])
    before = snapshot(net)

    def vandalise() -> None:
        with untouched(net, "train") as inside:
            inside(IMAGE).sum().backward()
            inside.norm.running_mean = torch.zeros(4)
            inside.norm.running_var.fill_(7)
            inside.conv.weight.requires_grad_(True)
            inside.register_forward_pre_hook(lambda *_: None)
            inside.head.eval()
            random.random()
            np.random.rand()  # noqa: NPY002
            raise RuntimeError("after everything was changed")

    with pytest.raises(RuntimeError, match="everything"):
        vandalise()
    assert same(before, snapshot(net))
    with pytest.raises(ValueError, match="'eval', 'train' or 'keep'"), untouched(net, "test"):
        pass
