"""The fast/slow network: blocks against reference numbers, layers, parameter counts, taps, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.capture import capture
from toolkit.methods.latent_augmentation.network import ResidualBlock, fast_slow_network, hard_shape, soft_shape
from toolkit.methods.latent_augmentation.objective import FastSlowObjective

from .golden_fast_slow import buffers, read_case, weights


def check_block(case: dict[str, Tensor], block: nn.Module, run: object, mode: str) -> None:
    block.train(mode == "train")
    x = case["x"].clone().requires_grad_()
    outputs = run(x)  # type: ignore[operator]
    for k, output in enumerate(outputs):
        torch.testing.assert_close(output, case[f"{mode}/out{k}"], rtol=1e-4, atol=1e-5)
    objective = torch.stack([output.square().mean() for output in outputs]).sum()
    torch.testing.assert_close(objective, case[f"{mode}/objective"], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(objective, x)
    torch.testing.assert_close(gradient, case[f"{mode}/grad_input"], rtol=1e-3, atol=1e-7)
    if mode == "train":
        state = dict(block.named_buffers())
        expected = buffers(case, "train/buffers/")
        assert expected
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("block_residual_down", (3, 5, "down")),
        ("block_residual_up_nearest", (5, 3, "nearest")),
        ("block_residual_up_transposed", (5, 3, "transposed")),
    ],
)
def test_residual_blocks(name: str, arguments: tuple[int, int, str], mode: str) -> None:
    case = read_case(name)
    block = ResidualBlock(*arguments, dims=2)
    block.load_state_dict(weights(case))
    check_block(case, block, lambda x: [block(x)], mode)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_encoder_with_decoupler(mode: str) -> None:
    case = read_case("encoder_with_decoupler")
    network = fast_slow_network(1, 4, width=2)
    prefix = ("stem", "down", "code")
    state = {f"image_encoder.{k}" if k.startswith(prefix) else k: v for k, v in weights(case).items()}
    assert network.load_state_dict(state, strict=False).unexpected_keys == []
    fast = nn.ModuleDict({"image_encoder": network.image_encoder, "decoupler": network.decoupler})
    expected = {k: v for k, v in case.items() if not k.startswith("train/buffers/general_encoder")}
    for key in case.keys() - expected.keys():
        expected[key.replace("buffers/general_encoder", "buffers/image_encoder/general_encoder")] = case[key]

    def run(x: Tensor) -> list[Tensor]:
        code = network.encode(x)
        return [code, network.decouple(code)]

    check_block(expected, fast, run, mode)


def test_16_what_the_slow_network_reads() -> None:
    case = read_case("stn_input")
    logits = case["logits"].clone().requires_grad_()
    probabilities = soft_shape(logits)
    torch.testing.assert_close(probabilities, case["probabilities"], rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(probabilities, logits, case["cotangent"])
    torch.testing.assert_close(gradient, case["grad_logits"], rtol=1e-5, atol=1e-7)
    assert torch.equal(hard_shape(case["labels"].unsqueeze(1), 4), case["one_hot"].float())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 4, 4))


def test_elementary_losses() -> None:
    from toolkit.methods.latent_augmentation.objective import FastSlowOutputs

    ce, mse = read_case("loss_cross_entropy"), read_case("loss_reconstruction")
    logits = ce["logits"].clone().requires_grad_()
    outputs = FastSlowOutputs(logits, logits.detach(), None, torch.zeros(2, 1, 5, 6))
    terms = FastSlowObjective()(outputs, {"image": torch.zeros(2, 1, 5, 6), "label": ce["labels"].unsqueeze(1)})
    torch.testing.assert_close(terms["segmentation"], ce["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(terms["segmentation"], logits)
    torch.testing.assert_close(gradient, ce["grad"], rtol=1e-5, atol=1e-8)
    made = mse["reconstruction"].clone().requires_grad_()
    some = torch.zeros(2, 2, 6, 6)
    label = torch.zeros(2, 1, 6, 6, dtype=torch.long)
    terms = FastSlowObjective()(FastSlowOutputs(some, some, None, made), {"image": mse["target"], "label": label})
    torch.testing.assert_close(terms["reconstruction"], mse["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(terms["reconstruction"], made)
    torch.testing.assert_close(gradient, mse["grad"], rtol=1e-5, atol=1e-9)


def test_17_parameter_counts_and_code_shapes() -> None:
    network = fast_slow_network(1, 4)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in network.named_children()}
    assert counts == {
        "image_encoder": 830_208,
        "decoupler": 295_680,
        "image_decoder": 248_961,
        "image_activation": 0,
        "segmentation_decoder": 161_732,
        "shape_encoder": 830_640,
        "shape_decoder": 161_732,
    }
    assert sum(counts.values()) == 2_528_953
    with torch.no_grad():
        image_code = network.encode(torch.rand(1, 1, 64, 96))
        assert image_code.shape == network.decouple(image_code).shape == (1, 128, 4, 6)
        assert network.decode_image(image_code).shape == (1, 1, 64, 96)
        assert network.decode_segmentation(image_code).shape == (1, 4, 64, 96)
    assert float(image_code.min()) >= 0


def test_forward_gives_fast_or_refined_logits() -> None:
    torch.manual_seed(0)
    network = fast_slow_network(1, 3, width=2).eval()
    x = torch.rand(1, 1, 32, 32)
    fast = network(x)
    torch.testing.assert_close(fast, network.decode_segmentation(network.decouple(network.encode(x))))
    network.refined = True
    torch.testing.assert_close(network(x), network.correct_shape((fast / 2).softmax(1)))


def test_three_dimensions_and_description() -> None:
    network = fast_slow_network(2, 3, width=1, dims=3, image_activation="none", decoupler_bias=False)
    assert network(torch.rand(1, 2, 16, 32, 16)).shape == (1, 3, 16, 32, 16)
    rebuilt = registry.build("model", registry.describe(network))
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


def test_taps_name_the_codes() -> None:
    torch.manual_seed(0)
    network = fast_slow_network(1, 3, width=2).eval()
    x = torch.rand(1, 1, 32, 32)
    with capture(network, ["image_code", "shape_code", "head_input", "decoder_1", "pre_activation"]) as tape:
        logits = network(x)
    torch.testing.assert_close(tape["image_code"], network.encode(x))
    torch.testing.assert_close(tape["shape_code"], network.decouple(tape["image_code"]))
    torch.testing.assert_close(network.segmentation_decoder.head(tape["head_input"]), logits)
    assert torch.equal(tape["decoder_1"], tape["head_input"])
    assert tape["pre_activation"].shape == tape["head_input"].shape


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = fast_slow_network(1, 4)
    weight = network.shape_encoder.down4.pair.conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(weight.mean().abs()) < 1e-3
    assert all(
        float(d.head.bias.detach().abs().max()) == 0 for d in (network.image_decoder, network.segmentation_decoder)
    )
    scales = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(scales.mean()) == pytest.approx(1.0, abs=0.003)
    assert float(scales.std()) == pytest.approx(0.02, rel=0.1)


def test_bad_inputs_are_refused() -> None:
    network = fast_slow_network(1, 3, width=1)
    with pytest.raises(ConfigError, match="multiple of 16"):
        network(torch.rand(1, 1, 40, 32))
    with pytest.raises(ConfigError, match="takes"):
        network(torch.rand(1, 2, 32, 32))
    for options in ({"dims": 4}, {"image_activation": "tanh"}, {"width": 0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            fast_slow_network(1, 3, **options)
