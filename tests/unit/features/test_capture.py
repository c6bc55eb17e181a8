"""Capture gives the tensor that the layer returned, and leaves nothing behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Checkpointed, Inplace, Outputs, Reused
from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.capture import Tape, capture, observe
from toolkit.models.unet import unet


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_in_place_activation_does_not_overwrite_what_was_captured() -> None:
    torch.manual_seed(0)
    net, x = Inplace().eval(), torch.randn(2, 1, 8, 8)
    expected = F.batch_norm(
        F.conv2d(x, net.conv.weight, net.conv.bias, padding=1),
        net.norm.running_mean,
        net.norm.running_var,
        net.norm.weight,
        net.norm.bias,
        eps=net.norm.eps,
    )
    assert (expected < -0.05).any()
    for options in ({}, {"detach": True}):
        with capture(net, ["norm", "second"], **options) as tape:
            output = net(x)
        torch.testing.assert_close(tape["norm"], expected, rtol=1e-5, atol=1e-6)
        after = F.leaky_relu(expected, 0.1)
        second = F.conv2d(after, net.second.weight, net.second.bias, padding=1)
        torch.testing.assert_close(tape["second"], second, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output, net(x))


def test_gradients_at_the_captured_tensor_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    net, x = Inplace().eval(), torch.randn(1, 1, 6, 6)
    with capture(net, "norm") as tape:
        output = net(x)
    (gradient,) = torch.autograd.grad(output.sum(), tape["norm"])
    leaf = tape["norm"].detach().requires_grad_()
    after = F.leaky_relu(leaf, 0.1)
    again = net.head(F.relu(net.second(after) + after))
    (expected,) = torch.autograd.grad(again.sum(), leaf)
    torch.testing.assert_close(gradient, expected)


def test_a_loss_on_the_tape_trains_the_layers_before_it() -> None:
    net = unet(1, 2, channels=(4, 8))
    with capture(net, ["bottleneck"]) as tape:
        net(torch.randn(1, 1, 8, 8))
    tape["bottleneck"].square().mean().backward()
    assert net.encoder["1"].conv1.weight.grad is not None
    assert net.head.weight.grad is None


def test_calls_of_a_reused_module_are_told_apart() -> None:
    torch.manual_seed(0)
    net, x = Reused(), torch.randn(1, 1, 5, 5)
    with capture(net, ["act", "act#2", "shared", "shared#2", "shared#2:input", "head:input"]) as tape:
        net(x)
    a = F.relu(net.first(x))
    s1 = net.shared(a)
    s2 = net.shared(s1)
    expected = {
        "act": a,
        "act#2": F.relu(s2),
        "shared": s1,
        "shared#2": s2,
        "shared#2:input": s1,
        "head:input": F.relu(s2),
    }
    for name, value in expected.items():
        torch.testing.assert_close(tape[name], value)


def test_a_new_call_starts_a_new_recording() -> None:
    net = unet(1, 2, channels=(4, 8))
    first, second = torch.randn(2, 2, 1, 8, 8)
    with capture(net, "bottleneck") as tape:
        net(first)
        net(second)
    with capture(net, "bottleneck") as other:
        net(second)
    assert torch.equal(tape["bottleneck"], other["bottleneck"])


@pytest.mark.parametrize("name", ["unused", "act#3", "head#2:input"])
def test_a_layer_that_never_ran_is_an_error_with_the_closest_names(name: str) -> None:
    net = Reused()
    with pytest.raises(LayerError, match="was not captured") as caught, capture(net, [name]):
        net(torch.randn(1, 1, 5, 5))
    assert "Closest names" in str(caught.value)
    assert hooks_of(net) == 0


def test_unknown_names_offer_the_closest_ones() -> None:
    net = unet(1, 2, channels=(4, 8))
    with pytest.raises(LayerError, match=r"decoder\.1"), capture(net, ["decodr.1"]):
        pass
    with pytest.raises(LayerError, match="container"), capture(net, ["decoder"]):
        pass
    with pytest.raises(LayerError, match="not a layer name"), capture(net, ["head:output"]):
        pass


def test_a_layer_that_returns_a_tuple_is_refused_with_what_is_inside() -> None:
    net = Outputs("list")
    with pytest.raises(LayerError, match=r"tuple.*\n.*\n.*pair\.fine"), capture(net, ["pair"]):
        net(torch.randn(1, 1, 8, 8))
    with capture(net, ["pair.*"]) as tape:
        net(torch.randn(1, 1, 8, 8))
    assert list(tape) == ["pair.fine", "pair.coarse"]


def test_globs_stay_within_a_segment_and_skip_what_does_not_run() -> None:
    net = unet(1, 2, channels=(4, 8, 16))
    with capture(net, ["encoder.*", "**.norm2", "decoder_*"]) as tape:
        net(torch.randn(1, 1, 8, 8))
    assert set(tape.matching("encoder.*")) == {"encoder.1", "encoder.2"}
    assert set(tape.matching("**.norm2")) == {
        "encoder.1.norm2",
        "encoder.2.norm2",
        "bottleneck.norm2",
        "decoder.2.conv.norm2",
        "decoder.1.conv.norm2",
    }
    assert set(tape.matching("decoder_*")) == {"decoder_1", "decoder_2"}
    with capture(Reused(), []) as empty:
        pass
    assert len(empty) == 0


def test_a_tape_says_what_it_holds() -> None:
    tape = Tape({"a": torch.ones(1, requires_grad=True)}, {"a": "a"})
    with pytest.raises(LayerError, match="It holds: a"):
        tape["b"]
    assert not tape.detached()["a"].requires_grad
    assert "b" not in tape


@pytest.mark.slow
def test_compiled_networks_are_captured_eagerly() -> None:
    net = unet(1, 2, channels=(4, 8))
    x = torch.randn(1, 1, 8, 8)
    compiled = torch.compile(net, backend="eager")
    output = compiled(x)
    with capture(compiled, ["bottleneck", "head:input"]) as tape:
        again = compiled(x)
    torch.testing.assert_close(again, output)
    with capture(net, ["bottleneck"]) as expected:
        net(x)
    torch.testing.assert_close(tape["bottleneck"], expected["bottleneck"])
    torch._dynamo.reset()


def test_script_modules_are_refused() -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.randn(1, 1, 4, 4))
    with pytest.raises(LayerError, match="TorchScript"), capture(scripted, ["0"]):
        pass


def test_wrappers_are_taken_off() -> None:
    net = nn.DataParallel(unet(1, 2, channels=(4, 8)))
    with capture(net, ["bottleneck"]) as tape:
        net.module(torch.randn(1, 1, 8, 8))
    assert "bottleneck" in tape


def test_checkpointed_blocks_are_captured() -> None:
    net = Checkpointed(reentrant=False)
    x = torch.randn(2, 1, 6, 6)
    with capture(net, ["block.1"]) as tape:
        output = net(x)
        (gradient,) = torch.autograd.grad(output.sum(), tape["block.1"])
    assert gradient.shape == tape["block.1"].shape
    assert gradient.abs().sum() > 0


def test_hooks_go_also_after_an_exception_and_errors_are_not_masked() -> None:
    net = unet(1, 2, channels=(4, 8))
    with pytest.raises(RuntimeError, match="user"), capture(net, ["bottleneck"]):
        raise RuntimeError("user")
    assert hooks_of(net) == 0


def test_memory_and_hooks_stay_flat_over_repeated_capture() -> None:
    net, x = unet(1, 2, channels=(4, 8)), torch.randn(1, 1, 16, 16)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    with capture(net, ["**"], detach=True) as tape:
        net(x)
    del tape
    before = tensors()
    for _ in range(20):
        with capture(net, ["**"]) as tape:
            net(x)
        del tape
    assert tensors() <= before
    assert hooks_of(net) == 0


def test_observe_hands_over_every_activation_and_keeps_none() -> None:
    net, x = unet(1, 2, channels=(4, 8)), torch.randn(1, 1, 16, 16)
    seen: dict[str, Tensor] = {}
    with observe(net, ["encoder.1", "head_input"], lambda name, t: seen.update({name: t.clone()})):
        net(x)
    with capture(net, ["encoder.1", "head_input"], detach=True) as tape:
        net(x)
    assert all(torch.equal(seen[name], tape[name]) for name in tape)
    assert not any(t.requires_grad for t in seen.values())


def test_capture_costs_no_trace_for_exact_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass was traced")

    monkeypatch.setattr("toolkit.features.capture.trace_calls", never)
    net = unet(1, 2, channels=(4, 8))
    with capture(net, ["head_input", "pre_activation", "encoder.*", "decoder_1"]) as tape:
        net(torch.randn(1, 1, 8, 8))
    assert len(tape) == 4
