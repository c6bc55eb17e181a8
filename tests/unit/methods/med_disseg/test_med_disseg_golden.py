"""Reference numbers of the Med-DisSeg blocks: outputs, gradients and batch-norm buffers, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden_cases import golden_file
from torch import Tensor, nn

from toolkit.methods.med_disseg.blocks import (
    AttentiveHead,
    CalibratedDecoder,
    ChannelAttention,
    ContrastDrivenAggregation,
    ConvolutionalAttention,
    ConvolutionUnit,
    DilatedEnhancement,
    GuideUpsampler,
    LesionAttention,
    OutputBlock,
    SpatialAttention,
    telu,
)

FILE = golden_file("med_disseg", "blocks.npz")
MANIFEST = {name: case.entry for name, case in FILE.items()}
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "cbt_act": lambda: ConvolutionUnit(4, 6),
    "cbt_noact_dil6": lambda: ConvolutionUnit(4, 6, dilation=6, activation=False),
    "elat16": lambda: LesionAttention(16),
    "elat64": lambda: LesionAttention(64),
    "adjust": lambda: nn.Sequential(AttentiveHead((4, 6, 8, 10), 1, (1, 1, 1, 1)), nn.Sigmoid()),
    "channel_attention32": lambda: ChannelAttention(32),
    "spatial_attention7": lambda: SpatialAttention(),
    "cbam32": lambda: ConvolutionalAttention(32),
    "cbat_decoder": lambda: CalibratedDecoder(16, 32, 32),
    "dilated_conv": lambda: DilatedEnhancement(8, 16),
    "cdfa": lambda: ContrastDrivenAggregation(20, 16),
    "cdfa_preprocess_x4": lambda: GuideUpsampler(6, 5, 2),
    "output_block": lambda: nn.Sequential(OutputBlock(8, 1), nn.Sigmoid()),
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return next(iter(FILE.values())).numbers()


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


def run(block: nn.Module, inputs: list[Tensor]) -> Tensor:
    if type(block) is nn.Sequential:  # a block of several inputs, followed by the released sigmoid
        return block[1](block[0](*inputs))
    return block(*inputs)


def build(name: str, arrays: dict[str, np.ndarray]) -> tuple[nn.Module, nn.Module]:
    block = BLOCKS[name]().double()
    owner = block[0] if type(block) is nn.Sequential else block
    missing, unexpected = owner.load_state_dict(under(arrays, f"{name}/param/"), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return block, owner


def test_every_case_of_the_file_is_listed() -> None:
    listed = {name for name, case in MANIFEST.items() if case["file"] == "blocks.npz"}
    assert listed == {*BLOCKS, "telu"}


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, arrays: dict[str, np.ndarray]) -> None:
    case, tolerance = MANIFEST[name], MANIFEST[name]["tolerance"]
    block, owner = build(name, arrays)
    inputs = [torch.from_numpy(arrays[key]).double().requires_grad_() for key in case["inputs"].values()]
    block.eval()
    output = run(block, inputs)
    np.testing.assert_allclose(output.detach(), arrays[f"{name}/out_eval"], **tolerance)
    (output * torch.from_numpy(arrays[f"{name}/cotangent"])).sum().backward()
    for k, x in enumerate(inputs):
        np.testing.assert_allclose(x.grad, arrays[f"{name}/grad_in{k}"], **tolerance)
    parameters = dict(owner.named_parameters())
    expected = under(arrays, f"{name}/grad_param/")
    assert bool(expected) == ("grad_param" in case["expected"])
    for key, gradient in expected.items():
        np.testing.assert_allclose(parameters[key].grad, gradient, **tolerance)


@pytest.mark.parametrize("name", ["cbt_act", "cbat_decoder"])
def test_training_pass_and_buffers(name: str, arrays: dict[str, np.ndarray]) -> None:
    tolerance = MANIFEST[name]["tolerance"]
    block, _ = build(name, arrays)
    inputs = [torch.from_numpy(arrays[key]).double() for key in MANIFEST[name]["inputs"].values()]
    block.train()
    with torch.no_grad():
        np.testing.assert_allclose(run(block, inputs), arrays[f"{name}/out_train"], **tolerance)
    state = block.state_dict()
    for key, value in under(arrays, f"{name}/after_train/").items():
        np.testing.assert_allclose(state[key], value, **tolerance)


def test_telu(arrays: dict[str, np.ndarray]) -> None:
    tolerance = MANIFEST["telu"]["tolerance"]
    for dtype, expected in ((torch.float32, "telu_f32/y"), (torch.float64, "telu_f64/y")):
        x = torch.from_numpy(arrays["telu_f32/x"]).to(dtype).requires_grad_()
        y = telu(x)
        np.testing.assert_allclose(y.detach(), arrays[expected], **tolerance)
        y.sum().backward()
        # the float64 column is the target for both: the naive float32 gradient is NaN where exp overflows
        np.testing.assert_allclose(x.grad, arrays["telu_f64/dy_dx"], **tolerance)
    assert np.isnan(arrays["telu_f32/dy_dx_reference"][19:22]).all()
