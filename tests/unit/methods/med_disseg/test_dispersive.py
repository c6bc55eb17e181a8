"""The dispersive regularizer: what it reads from a step, what it reports, and when it says that it is dead."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn

from toolkit import registry
from toolkit.errors import ConfigError, RegularizerWarning
from toolkit.methods.med_disseg.dispersion import dispersive_loss
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.models.unet import unet
from toolkit.training.protocol import StepContext, keyed_generator
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def context(step: int = 0, logging: bool = False, stage: int = 0, **features: Tensor) -> StepContext:
    return StepContext(
        batch={},
        model=nn.Identity(),
        features=features,
        step=step,
        logging=logging,
        stage=stage,
        generator=keyed_generator(0, step, "dispersive"),
    )


def feature_map(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (4, 6, 5, 3), generator=keyed_generator(seed)).requires_grad_()


def test_layouts() -> None:
    features = feature_map()
    expected = {
        "pooled": features.mean(dim=(2, 3)),
        "flatten": features.reshape(4, 90),
        "positions": features.permute(0, 2, 3, 1).reshape(60, 6),
    }
    for layout, rows in expected.items():
        (term,) = Dispersive(layout=layout)(context(bottleneck=features)).values()
        torch.testing.assert_close(term, dispersive_loss(rows))


def test_positions_are_drawn_by_the_step_generator_without_repetition() -> None:
    regularizer = Dispersive(layout="positions", samples=20)
    features = feature_map()
    first = regularizer.representation(features, keyed_generator(1))
    assert torch.equal(first, regularizer.representation(features, keyed_generator(1)))
    assert not torch.equal(first, regularizer.representation(features, keyed_generator(2)))
    everything = {tuple(row) for row in features.detach().permute(0, 2, 3, 1).reshape(60, 6).tolist()}
    drawn = {tuple(row) for row in first.detach().tolist()}
    assert len(drawn) == 20
    assert drawn <= everything


def test_volumes_and_vectors_are_representations_too() -> None:
    volume = feature_map(0, 3, 4, 2, 5, 3)
    (term,) = Dispersive()(context(bottleneck=volume)).values()
    torch.testing.assert_close(term, dispersive_loss(volume.mean(dim=(2, 3, 4))))
    vectors = feature_map(0, 5, 7)
    for layout in ("pooled", "flatten", "positions"):
        (term,) = Dispersive(layout=layout)(context(bottleneck=vectors)).values()
        torch.testing.assert_close(term, dispersive_loss(vectors))


def test_several_taps_are_averaged_or_summed() -> None:
    early, late = feature_map(1), feature_map(2, 4, 12, 2, 2)
    losses = [dispersive_loss(x.mean(dim=(2, 3))) for x in (early, late)]
    mean = Dispersive(tap=["a", "b"])(context(a=early, b=late))["loss"]
    total = Dispersive(tap=("a", "b"), reduction="sum")(context(a=early, b=late))["loss"]
    torch.testing.assert_close(mean, (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(total, losses[0] + losses[1])
    with pytest.raises(ConfigError, match="gave a feature"):
        Dispersive()(context())


def test_weight_schedule() -> None:
    regularizer = Dispersive(weight=0.6, warm_up_steps=3, stop_step=5)
    assert [regularizer.weights(k)["loss"] for k in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.6, 0.0])
    assert regularizer.active(4)
    assert not regularizer.active(5)
    assert not Dispersive(weight=0).active(0)


@pytest.mark.parametrize(
    ("preset", "stage", "weight", "tau", "layout", "variant"),
    [
        ("released", 2, 0.2, 0.5, "flatten", "infonce_l2"),
        ("original", 1, 0.25, 1.0, "flatten", "infonce_l2"),
        ("default", 1, 0.2, 0.5, "pooled", "infonce_l2"),
        ("default", 2, 0.6, 0.5, "pooled", "infonce_l2"),
        ("default-cosine", 2, 0.6, 0.5, "pooled", "infonce_cosine"),
    ],
)
def test_presets_carry_their_sources_settings(
    preset: str, stage: int, weight: float, tau: float, layout: str, variant: str
) -> None:
    regularizer = Dispersive.from_preset(preset, stage)
    assert (regularizer.weight, regularizer.tau, regularizer.layout) == (weight, tau, layout)
    assert (regularizer.preset, regularizer.variant) == (preset, variant)
    assert Dispersive.from_preset(preset, stage, tau=0.8, tap="layer2").tau == 0.8


def test_it_is_rebuilt_from_json() -> None:
    regularizer = Dispersive(weight=0.3, tap=("a", "b#2"), tau="median", bank_size=9, stop_step=4)
    stored = json.loads(json.dumps(registry.describe(regularizer)))
    assert registry.build("regularizer", stored) == regularizer
    assert dataclasses.replace(regularizer, weight=0.0).weight == 0


def test_a_dead_setting_is_reported_with_its_number() -> None:
    features = feature_map(0, 4, 64, 32, 32)
    regularizer = Dispersive.from_preset("released")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            regularizer(context(step=step, logging=True, bottleneck=features))
    messages = [str(warning.message) for warning in caught if warning.category is RegularizerWarning]
    assert len(messages) == 2  # each reason once
    assert "100 % of the pairs at 'bottleneck' are farther apart" in messages[0]
    assert "dead: value -18.4207, gradient norm 0" in messages[1]
    numbers = regularizer.diagnostics()
    assert numbers["bottleneck/gradient_norm"] == 0
    assert numbers["bottleneck/active_pairs"] == 0
    assert numbers["bottleneck/mean_distance"] == pytest.approx(math.sqrt(2 * 65_536), rel=0.01)


def test_a_live_setting_is_quiet_and_measured() -> None:
    features = feature_map(0, 4, 64, 8, 8)
    regularizer = Dispersive(layout="flatten")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = regularizer(context(logging=True, bottleneck=features))["loss"]
    numbers = regularizer.diagnostics()
    (gradient,) = torch.autograd.grad(loss, features)
    assert numbers["bottleneck/gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert numbers["bottleneck/active_pairs"] == 1
    regularizer(context(step=1, bottleneck=features))
    assert regularizer.diagnostics() == {}


def test_a_batch_of_one_is_reported() -> None:
    regularizer = Dispersive()
    with pytest.warns(RegularizerWarning, match="batch of one"):
        loss = regularizer(context(logging=True, bottleneck=feature_map(0, 1, 6, 4, 4)))["loss"]
    assert loss.item() == 0


def test_the_bank_is_a_queue_and_survives_a_checkpoint() -> None:
    regularizer = Dispersive(bank_size=6)
    pooled = []
    for step in range(3):
        features = feature_map(step)
        bank = torch.cat(pooled)[-6:] if pooled else None
        loss = regularizer(context(step=step, bottleneck=features))["loss"]
        torch.testing.assert_close(loss, dispersive_loss(features.mean(dim=(2, 3)), bank=bank))
        pooled.append(features.detach().mean(dim=(2, 3)))
    resumed = Dispersive(bank_size=6)
    resumed.load_state_dict(regularizer.state_dict())
    features = feature_map(9)
    assert torch.equal(
        resumed(context(step=3, bottleneck=features))["loss"], regularizer(context(step=3, bottleneck=features))["loss"]
    )


def test_the_bank_is_cleared_with_the_training_the_stage_and_the_width() -> None:
    regularizer = Dispersive(bank_size=6)
    another = {"step": 0, "bottleneck": feature_map(5)}  # of a second training with the same object
    wider = {"step": 7, "bottleneck": feature_map(5, 4, 9, 2, 2)}
    for changed in ({"step": 7, "stage": 1, "bottleneck": feature_map(5)}, another, wider):
        regularizer(context(6, bottleneck=feature_map(1)))
        loss = regularizer(context(**changed))["loss"]
        torch.testing.assert_close(loss, dispersive_loss(changed["bottleneck"].mean(dim=(2, 3))))


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "l2"},
        {"preset": "paper"},
        {"tau": -1},
        {"layout": "tokens"},
        {"reduction": "max"},
        {"weight": -0.1},
        {"samples": 1},
        {"bank_size": -1},
    ],
)
def test_settings_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ConfigError):
        Dispersive(**settings)
    with pytest.raises(ConfigError):
        Dispersive.from_preset("default", stage=3)


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    inputs = torch.randn(6, 5, dtype=torch.float64)[3 * rank : 3 * rank + 3]
    loss = Dispersive()(context(bottleneck=layer(inputs)))["loss"]
    loss.backward()
    gradient = layer.weight.grad
    distributed.all_reduce(gradient)  # then averaged, as distributed data parallel does
    torch.save((loss.detach(), gradient / 2), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_9_1_13_two_workers_equal_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    loss = Dispersive()(context(bottleneck=layer(torch.randn(6, 5, dtype=torch.float64))))["loss"]
    loss.backward()
    for rank in range(2):
        worker_loss, worker_gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(worker_loss, loss.detach())
        torch.testing.assert_close(worker_gradient, layer.weight.grad)


@pytest.mark.slow
def test_9_3_a_zero_gradient_term_changes_no_weight_by_one_bit() -> None:
    def weights(regularizers: list[Dispersive]) -> list[Tensor]:
        torch.manual_seed(0)
        network = unet(1, 2, (4, 8, 512))
        step = TrainingStep(network, SegmentationObjective(), regularizers)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for k in range(4):
            image = 3 * torch.randn(4, 1, 64, 64, generator=keyed_generator("image", k))
            optimizer.zero_grad()
            step({"image": image, "label": (image > 0).long()}, step=k).total.backward()
            optimizer.step()
        return [p.detach() for p in network.parameters()]

    plain = weights([])
    dead = weights([Dispersive.from_preset("released")])
    alive = weights([Dispersive.from_preset("default", layout="flatten")])
    assert all(torch.equal(a, b) for a, b in zip(plain, dead, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, alive, strict=True))


def test_one_image_with_a_bank_is_measured_where_there_is_something_to_measure() -> None:
    """Two single rows: log((1 + exp(-d^2 / (D tau))) / 2) with the bank, and no distances within a batch of one."""
    first, second = torch.zeros(1, 2), torch.ones(1, 2, requires_grad=True)
    regularizer = Dispersive(bank_size=4)
    regularizer(context(bottleneck=first))
    (loss,) = regularizer(context(1, logging=True, bottleneck=second)).values()
    assert float(loss.detach()) == pytest.approx(math.log((1 + math.exp(-2)) / 2))
    assert set(regularizer.diagnostics()) == {"bottleneck/gradient_norm"}
