"""EWC's quadratic by hand, LwF against the reference and torch, and the memory of both."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import golden_case
from torch import nn

from toolkit.data.table import task_from_arrays
from toolkit.errors import CheckpointError, ConfigError, LayerError
from toolkit.inference.memory import remember
from toolkit.methods.continual.strategies import (
    ElasticWeightConsolidation,
    ElasticWeights,
    LearningWithoutForgetting,
    distillation,
    fisher_information,
    last_batch_fisher,
)
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import StepContext
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.train import train


def context(network: nn.Module, image: torch.Tensor) -> StepContext:
    return StepContext(batch={"image": image}, model=network, outputs=network(image))


def networks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)) for _ in range(count)]


def test_distillation_of_the_reference() -> None:
    case = golden_case("segreg", "cl_losses")
    numbers, limits = case.tensors(), case.entry["tolerance"]
    logits = numbers["logits"].requires_grad_()
    loss = distillation(logits, numbers["teacher"], case.entry["hyperparameters"]["lwf_temperature"], "batchmean")
    torch.testing.assert_close(loss.detach(), numbers["lwf_kl_T2_batchmean"], **limits)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, numbers["lwf_kl_T2_batchmean__grad"], **limits)
    mean = distillation(numbers["logits"].detach(), numbers["teacher"])
    torch.testing.assert_close(mean * 36, loss.detach(), rtol=1e-5, atol=0)


def test_penalty_is_the_sum_of_the_tasks_quadratics() -> None:
    first, second, now = networks(3)
    regularizer = ElasticWeights(weight=3.0)
    assert not regularizer.active(0)
    fishers = []
    for seed, network in enumerate((first, second)):
        generator = torch.Generator().manual_seed(seed)
        fishers.append({n: torch.rand(p.shape, generator=generator) for n, p in network.named_parameters()})
        fishers[-1]["2.bias"] = torch.zeros(2)  # a parameter that no task depends on
        regularizer.remember(network, fishers[-1])
    assert regularizer.weights(0) == {"penalty": 3.0}
    stated = sum(
        (fisher[name] * (p - dict(network.named_parameters())[name]).square()).sum() / 2
        for fisher, network in zip(fishers, (first, second), strict=True)
        for name, p in now.named_parameters()
    )
    found = regularizer(context(now, torch.zeros(2, 1, 4, 4)))["penalty"]
    torch.testing.assert_close(found, stated, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(found, list(now.parameters()), allow_unused=True),
        torch.autograd.grad(stated, list(now.parameters()), allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_penalty_where_the_only_task_ended() -> None:
    network = networks(1)[0]
    regularizer = ElasticWeights()
    regularizer.remember(network, {n: torch.ones_like(p) for n, p in network.named_parameters()})
    assert regularizer(context(network, torch.zeros(2, 1, 4, 4)))["penalty"].item() == 0.0


def test_lwf_sums_over_the_earlier_networks_and_does_not_change_them() -> None:
    first, second, now = networks(3)
    image = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    regularizer = LearningWithoutForgetting(weight=0.5, temperature=3.0)
    assert not regularizer.active(0)
    for network in (first, second):
        regularizer.remember(network)
    kept = copy.deepcopy(regularizer.state_dict())
    now.train()
    made = context(now, image)
    term = regularizer(made)["distillation"]
    kl = nn.KLDivLoss(reduction="none", log_target=True)
    stated = sum(
        kl((made.outputs / 3).log_softmax(1), (teacher.eval()(image) / 3).log_softmax(1)).sum(1).mean()
        for teacher in (first, second)
    )
    torch.testing.assert_close(term, stated)
    assert torch.autograd.grad(term, now[0].weight)[0].abs().sum() > 0
    assert all(torch.equal(v, kept[k]) for k, v in regularizer.state_dict().items())


@pytest.mark.parametrize("kind", ["elastic_weights", "learning_without_forgetting"])
def test_memory_comes_back_from_its_state(kind: str) -> None:
    first, second, now = networks(3)
    image = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    ours = ElasticWeights() if kind == "elastic_weights" else LearningWithoutForgetting()
    theirs = type(ours)()
    for network in (first, second):
        if isinstance(ours, ElasticWeights):
            ours.remember(network, {n: p.detach().square() for n, p in network.named_parameters()})
        else:
            ours.remember(network)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    name = next(iter(ours.weights(0)))
    values = [r(context(copy.deepcopy(now), image))[name].item() for r in (ours, theirs)]
    assert values[0] == values[1] > 0
    theirs.load_state_dict({})
    assert not theirs.active(0)


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError):
        ElasticWeights(weight=-1)
    for settings in ({"temperature": 0.0}, {"reduction": "sum"}, {"weight": -1.0}):
        with pytest.raises(ConfigError):
            LearningWithoutForgetting(**settings)
    with pytest.raises(ConfigError, match="one shape"):
        distillation(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))
    with pytest.raises(CheckpointError, match="not one of"):
        LearningWithoutForgetting().load_state_dict({"weights": torch.zeros(1)})
    network = networks(1)[0]
    regularizer = LearningWithoutForgetting()
    regularizer.remember(network)
    strange = StepContext(batch={"image": torch.zeros(1, 1, 4, 4)}, model=network, outputs="logits")
    with pytest.raises(LayerError, match="without a floating-point tensor"):
        regularizer(strange)


def test_scaled_fisher_information_has_mean_one_and_the_last_batch_is_squared_by_hand(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
    task = task_from_arrays(images, (images > 0.5).astype(np.uint8), classes=["background", "bright"], splits="train")
    config = TrainConfig(steps=3, batch_size=2, validate_every=0, select="last", augmentation="none", seed=5)
    run = train(nn.Conv2d(1, 2, 3, padding=1), task, config=config, out=tmp_path / "run", progress=False)
    batch = task.loader("train", batch_size=2, seed=5).batch(2)
    loss = sum(SegmentationObjective()(run.model(batch["image"]), batch).values())
    expected = {
        name: g**2
        for (name, _), g in zip(
            run.model.named_parameters(), torch.autograd.grad(loss, list(run.model.parameters())), strict=True
        )
    }
    mean = sum(float(f.sum()) for f in expected.values()) / sum(f.numel() for f in expected.values())
    for scaled in (False, True):
        strategy = ElasticWeightConsolidation(fisher="last_batch", scaled=scaled)
        (memory,) = strategy.regularizers()
        strategy.remember([memory], run)
        for name, value in expected.items():
            torch.testing.assert_close(memory.state_dict()[f"curvature/{name}"], value / (mean if scaled else 1))
    with pytest.raises(ConfigError, match="no Fisher information called 'mean'"):
        ElasticWeightConsolidation(fisher="mean")


@pytest.mark.parametrize("outputs", [1, 3])
def test_lwf_of_outputs_that_are_a_yes_or_no_of_their_own(outputs: int) -> None:
    """The divergence of two Bernoulli variables by its formula; a softmax of one output would be 1 and the term 0."""
    torch.manual_seed(0)
    teacher, network = nn.Conv2d(1, outputs, 1), nn.Conv2d(1, outputs, 1)
    if outputs > 1:
        remember(network, regions={f"region {k}": (k + 1,) for k in range(outputs)})
    regularizer = LearningWithoutForgetting()
    regularizer.remember(teacher)
    image = torch.randn(2, 1, 5, 5)
    p, q = (torch.sigmoid(each(image).detach().double() / 2) for each in (teacher, network))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(expected) > 1e-3
    value = regularizer(context(network, image))["distillation"].detach()
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["regions", "ignored", "float64"])
def test_fisher_information_is_that_of_the_likelihood_that_was_trained(kind: str) -> None:
    values = np.random.default_rng(0)
    images, labels = values.random((4, 8, 8)).astype(np.float32), values.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    regions = {"any": (1, 2), "one": (1,), "two": (2,)} if kind == "regions" else None
    task = task_from_arrays(images, labels, classes=["background", "one", "two"], splits="train", regions=regions)
    torch.manual_seed(0)
    network, objective = nn.Conv2d(1, 3, 1), SegmentationObjective(ignore_label=2 if kind == "ignored" else None)
    network = network.double() if kind == "float64" else network
    if regions is not None:
        remember(network, regions=regions)
    loader, expected = task.loader("train", batch_size=1), torch.zeros(3)
    for step in range(4):
        batch = loader.batch(step)
        logits, label = network(batch["image"].to(network.weight.dtype)), batch["label"]
        if regions is not None:
            truth = torch.cat([label > 0, label == 1, label == 2], 1).float()
            loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        else:
            ignored = 2 if kind == "ignored" else -100
            loss = nn.functional.cross_entropy(logits, label[:, 0].long(), ignore_index=ignored)
        expected += torch.autograd.grad(loss, network.bias)[0].float() ** 2 / 4
    torch.testing.assert_close(fisher_information(network, task, objective)["bias"], expected)


def test_the_last_batch_is_the_one_that_the_run_saw_last(tmp_path: Path) -> None:
    """With the run's own patches and augmentation, not the loader's defaults."""
    images = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
    task = task_from_arrays(images, (images > 0.9).astype(np.uint8), classes=["background", "bright"], splits="train")
    settings = {"batch_size": 2, "patch_size": (4, 4), "augmentation": "standard", "seed": 5, "foreground": 1.0}
    config = TrainConfig(steps=2, validate_every=0, select="last", **settings)
    run = train(nn.Conv2d(1, 2, 3, padding=1), task, config=config, out=tmp_path / "run", progress=False)
    batch = task.loader("train", **settings).batch(1)
    loss = sum(SegmentationObjective()(run.model(batch["image"]), batch).values())
    (gradient,) = torch.autograd.grad(loss, run.model.bias)
    torch.testing.assert_close(last_batch_fisher(run)["bias"], gradient**2)
