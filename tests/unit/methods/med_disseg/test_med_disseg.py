"""The Med-DisSeg networks: the acceptance list 9.2, weights from files, stage transfer, and use by the toolkit."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import golden_case
from networks import save_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.capture import capture
from toolkit.inference.layers import layers
from toolkit.methods.med_disseg import MedDisSeg, MedDisSegStageOne, med_disseg, med_disseg_stage_one, transfer_encoder
from toolkit.methods.med_disseg.blocks import (
    AttentiveHead,
    ChannelAttention,
    ContrastDrivenAggregation,
    ConvolutionalAttention,
    ConvolutionUnit,
    LesionAttention,
    SpatialAttention,
    telu,
    upsample,
)
from toolkit.methods.med_disseg.objective import MedDisSegObjective, MedDisSegStageOneObjective
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.training.step import TrainingStep

STRUCTURE = golden_case("med_disseg", "structure").document()
ENCODER = ("layer0.", "layer1.", "layer2.", "layer3.")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@pytest.fixture
def small() -> MedDisSeg:
    torch.manual_seed(0)
    return med_disseg(width=16, encoder_width=4)


@pytest.fixture
def small_one() -> MedDisSegStageOne:
    torch.manual_seed(1)
    return med_disseg_stage_one(encoder_width=4)


@pytest.mark.parametrize(("build", "stage"), [(med_disseg_stage_one, "stage1"), (med_disseg, "stage2")])
def test_9_2_structure(build: type, stage: str) -> None:
    expected = STRUCTURE[stage]
    with torch.device("meta"):
        network = build()
    assert count(network) == expected["total_parameters"]
    assert {name: count(module) for name, module in network.named_children()} == expected["per_module"]
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == expected["state_tensors"]


def billions(forward: Callable[..., object], *inputs: Tensor) -> float:
    """Multiply-adds of a call, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        forward(*inputs)
    return counter.get_total_flops() / 2e9


@pytest.mark.slow
def test_cost() -> None:
    with torch.device("meta"):
        one, two, image = med_disseg_stage_one(), med_disseg(), torch.empty(1, 3, 256, 256)
        training = billions(two.forward_with_auxiliaries, image)
        assert training == pytest.approx(100.6, abs=0.6)
        assert training - billions(two, image) == pytest.approx(16.5, abs=0.1)  # the auxiliary heads
        # published: 12.5, of which the head 8.3, because it enlarges before its 1x1 convolutions
        encoder = billions(one.blocks, image)
        assert encoder == pytest.approx(12.5 - 8.3, abs=0.1)
        assert billions(one, image) - encoder < 0.7


def test_9_2_elat_has_the_stated_number_of_parameters() -> None:
    assert count(LesionAttention(64)) == 64**2 // 4 + 3 * (9 * 64 + 1) + 4 == 2759


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (64, 80)])
@pytest.mark.parametrize("classes", [2, 4])
def test_9_2_outputs_keep_the_size(size: tuple[int, int], classes: int) -> None:
    torch.manual_seed(0)
    for network in (
        med_disseg(3, classes, width=16, encoder_width=4, encoder_attention=True),
        med_disseg_stage_one(3, classes, encoder_width=4),
    ):
        network.eval()
        with torch.no_grad():
            logits = network(random(2, 3, *size))
            assert logits.shape == (2, classes, *size)
            probability = logits.softmax(dim=1)
            assert probability.min() > 0
            assert probability.max() < 1
            if isinstance(network, MedDisSeg):
                output = network.forward_with_auxiliaries(random(2, 3, *size))
                assert torch.equal(output.logits, logits)
                for auxiliary in output[1:]:
                    assert auxiliary.shape == (2, 1, *size)
                    assert 0 < auxiliary.sigmoid().min() <= auxiliary.sigmoid().max() < 1


def test_9_2_telu() -> None:
    x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    y = telu(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.item() == 0
    assert slope.item() == pytest.approx(math.tanh(1), abs=1e-15)
    grid = torch.linspace(-3, 0, 30_001, dtype=torch.float64)
    lowest = telu(grid).argmin()
    assert telu(grid)[lowest].item() == pytest.approx(-0.35329, abs=5e-6)
    assert grid[lowest].item() == pytest.approx(-1.0789, abs=2e-4)
    assert torch.autograd.gradcheck(telu, (random(20, dtype=torch.float64).requires_grad_(),))
    assert torch.autograd.gradgradcheck(telu, (random(20, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_9_2_telu_gradients_are_finite(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -90.0, -11.5, 4.0, 11.5, 25.0, 89.0, 1e4], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = telu(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y[4:].detach(), x[4:].detach())
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 1], dtype=dtype), rtol=0, atol=2e-4)


def test_9_2_attention_with_zero_weights() -> None:
    x = random(2, 32, 6, 7)
    torch.testing.assert_close(zeroed(LesionAttention(32))(x), x / 4)
    torch.testing.assert_close(zeroed(ChannelAttention(32))(x), x / 2)
    torch.testing.assert_close(zeroed(SpatialAttention())(x), x / 2)
    torch.testing.assert_close(zeroed(ConvolutionalAttention(32))(x), x / 4)


def test_9_2_aggregation_with_zero_attention_is_window_averaging() -> None:
    block = ContrastDrivenAggregation(8, 8, heads=2).double()
    values = random(1, 5, 6, 8, seed=1, dtype=torch.float64)
    with torch.no_grad():
        block.proj.weight.copy_(torch.eye(8))
        block.proj.bias.zero_()
        result = block._attend(values, torch.zeros(1, 5, 6, 2 * 81, dtype=torch.float64))
    # each position hands the mean of its zero-padded 3x3 window to the nine places of that window
    padded = torch.nn.functional.pad(values, (0, 0, 1, 1, 1, 1))
    expected = torch.zeros(1, 7, 8, 8, dtype=torch.float64)
    for i in range(5):
        for j in range(6):
            expected[:, i : i + 3, j : j + 3] += padded[:, i : i + 3, j : j + 3].mean(dim=(1, 2))[:, None, None]
    torch.testing.assert_close(result, expected[:, 1:-1, 1:-1])


@pytest.mark.parametrize("source", ["network", "state", "file"])
def test_9_2_stage_two_takes_exactly_the_encoder(
    source: str, small: MedDisSeg, small_one: MedDisSegStageOne, tmp_path: Path
) -> None:
    small_one(random(2, 3, 32, 32))  # moves the buffers
    given = {
        "network": small_one,
        "state": small_one.state_dict(),
        "file": save_weights(small_one, tmp_path / "one.safetensors"),
    }[source]
    before = {k: v.clone() for k, v in small.state_dict().items()}
    copied = transfer_encoder(given, small)
    taught = small_one.state_dict()
    assert set(copied) == {name for name in before if name.startswith(ENCODER)}
    for name, value in small.state_dict().items():
        assert torch.equal(value, taught[name] if name in copied else before[name])
    assert small.get_buffer("layer3.0.bn1.num_batches_tracked") == 1


def test_the_head_enlarges_after_the_convolution_with_the_same_result() -> None:
    unit = ConvolutionUnit(6, 5, 1).double()
    x = random(3, 6, 4, 5, dtype=torch.float64)
    late, buffers = unit(x, enlarge=4), unit.conv[1].running_var.clone()
    unit.conv[1].reset_running_stats()
    early = unit(upsample(x, 4))
    torch.testing.assert_close(late, early)
    torch.testing.assert_close(buffers, unit.conv[1].running_var)
    assert AttentiveHead((6, 6), 1, (1, 2))(x.float().repeat(1, 1, 2, 2), x.float()).shape == (3, 1, 8, 10)


def test_grey_images_are_repeated(small: MedDisSeg) -> None:
    grey = med_disseg(in_channels=1, width=16, encoder_width=4)
    grey.load_state_dict(small.state_dict())
    x = random(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey.eval()(x), small.eval()(x.repeat(1, 3, 1, 1)))


def test_two_class_logits_are_one_published_map(small: MedDisSeg) -> None:
    with capture(small.eval(), ["output_block"]) as tape, torch.no_grad():
        logits = small(random(1, 3, 32, 32))
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1:], tape["output_block"].sigmoid())


@pytest.mark.parametrize("name", ["med_disseg", "med_disseg_stage_one"])
def test_it_is_rebuilt_from_its_description(name: str) -> None:
    network = {"med_disseg": med_disseg, "med_disseg_stage_one": med_disseg_stage_one}[name](1, 3, encoder_width=4)
    stored = json.loads(json.dumps(registry.describe(network)))
    twin = registry.build("model", stored)
    twin.load_state_dict(network.state_dict())
    x = random(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), network.eval()(x))


def test_taps_name_layers_that_run(small: MedDisSeg, small_one: MedDisSegStageOne) -> None:
    for network in (small.eval(), small_one.eval()):
        with capture(network, list(network.toolkit_taps)) as tape, torch.no_grad():
            network(random(1, 3, 32, 48))
        assert tape["bottleneck"].shape == (1, 64, 2, 3)
        assert tape["encoder_1"].shape == (1, 4, 16, 24)
        assert tape["head_input"].shape == (1, 64 if network is small else 256, 32, 48)
        assert tape["pre_activation"].shape == (1, 64, 32, 48)
    table = layers(small, random(1, 3, 32, 48))
    assert "bottleneck" in table.loc[table["name"] == "layer3", "aliases"].item()


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 1, 32, 32), "takes"), ((3, 32, 32), "takes"), ((1, 3, 32, 40), "multiple of 16")]
)
def test_images_that_do_not_fit(small: MedDisSeg, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(torch.zeros(shape))


@pytest.mark.parametrize("settings", [{"out_channels": 1}, {"width": 24}, {"in_channels": 0}, {"encoder_width": 2}])
def test_settings_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ConfigError):
        med_disseg(**settings)


def batch_of(classes: int = 2) -> dict[str, Tensor]:
    label = torch.randint(0, classes, (4, 1, 32, 32), generator=torch.Generator().manual_seed(5))
    return {"image": random(4, 3, 32, 32) + label, "label": label}


def trained(step: TrainingStep, batch: dict[str, Tensor], steps: int) -> list[float]:
    optimizer = torch.optim.Adam(step.parameters(), lr=2e-3)
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        result = step(batch, step=k, logging=k == 0)
        result.total.backward()
        optimizer.step()
        losses.append(result.total.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_both_stages_train_under_the_dispersive_loss(classes: int) -> None:
    torch.manual_seed(0)
    one = med_disseg_stage_one(3, classes, encoder_width=4)
    both_views = Dispersive(tap=("layer3", "layer3#2"), reduction="sum")
    step = TrainingStep(one, MedDisSegStageOneObjective(), [both_views])
    losses = trained(step, batch_of(classes), 5)
    assert losses[-1] < losses[0]
    two = med_disseg(3, classes, width=16, encoder_width=4)
    transfer_encoder(one, two)
    losses = trained(TrainingStep(two, MedDisSegObjective(), [Dispersive(weight=0.6)]), batch_of(classes), 5)
    assert losses[-1] < losses[0]
    assert all(np.isfinite(losses))
    assert all(p.grad is not None for p in two.parameters())


def test_the_two_views_are_dispersed_apart_from_each_other(small_one: MedDisSegStageOne) -> None:
    regularizer = Dispersive(tap=("layer3", "layer3#2"), reduction="sum", layout="flatten")
    batch = batch_of()
    result = TrainingStep(small_one, MedDisSegStageOneObjective(), [regularizer])(batch)
    seen: list[Tensor] = []
    handle = small_one.layer3.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    TrainingStep(small_one, MedDisSegStageOneObjective())(batch)
    handle.remove()
    # mean squared difference of all ordered pairs, self-pairs included, one view at a time
    expected = 0.0
    for view in seen:
        rows = view.flatten(1).double()
        expected += ((torch.cdist(rows, rows).square() / rows.shape[1]) / -0.5).exp().mean().log().item()
    assert len(seen) == 2
    assert result.terms["dispersive/loss"].item() == pytest.approx(expected, rel=1e-4)
