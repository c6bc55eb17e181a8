"""Frozen batch norm: batch statistics, no side effects, no gradient to weight and bias, undone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit.methods.latent_augmentation.regularizer import frozen_batch_norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), nn.BatchNorm2d(3))
    nn.init.normal_(layers[1][0].weight)
    return layers


def image() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_same_output_no_update_no_affine_gradient() -> None:
    plain, frozen = network(), network()
    x, y = image().requires_grad_(), image().requires_grad_()
    state = {n: b.clone() for n, b in frozen.named_buffers()}
    with frozen_batch_norm(frozen):
        out = frozen(y)
    torch.testing.assert_close(out, plain(x))
    out.square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(frozen[0].weight.grad, plain[0].weight.grad)
    assert plain[2].weight.grad is not None
    assert frozen[1][0].weight.grad is frozen[2].bias.grad is None
    assert all(torch.equal(b, state[n]) for n, b in frozen.named_buffers())
    frozen(y)
    assert not torch.equal(frozen[2].running_mean, state["2.running_mean"])


def test_evaluation_mode_uses_running_statistics() -> None:
    frozen = network()
    frozen(image())
    frozen.eval()
    expected = frozen(image())
    with frozen_batch_norm([frozen[1], frozen[2]]):
        assert torch.equal(frozen(image()), expected)


def test_undone_after_an_exception_and_when_nested() -> None:
    frozen = network()
    with pytest.raises(RuntimeError, match="stop"), frozen_batch_norm(frozen):
        raise RuntimeError("stop")
    assert "forward" not in vars(frozen[2])
    with frozen_batch_norm(frozen):
        with frozen_batch_norm(frozen[2]):
            pass
        before = frozen[2].running_mean.clone()
        frozen(image())
        assert torch.equal(frozen[2].running_mean, before)
    assert "forward" not in vars(frozen[2])


def test_hooks_still_see_the_layer() -> None:
    frozen, seen = network(), []
    handle = frozen[2].register_forward_hook(lambda *_: seen.append(1))
    with frozen_batch_norm(frozen):
        frozen(image())
    handle.remove()
    assert seen == [1]
