"""A regularizer in a loop of one's own has the gradients that it has in the toolkit's loop."""

from __future__ import annotations

import warnings
from typing import Any

import every_regularizer as every
import pytest
import torch
from networks import Checkpointed
from torch import Tensor, nn

import toolkit as tk
from toolkit.errors import ConfigError, ProtocolError, RegularizerWarning
from toolkit.methods.continual.strategies import ElasticWeights
from toolkit.training.protocol import Regularizer, StepContext, keyed_generator
from toolkit.training.step import TrainingStep

STEPS = 2


def gradients(model: nn.Module) -> Tensor:
    parts = [
        p.grad.flatten().double() if p.grad is not None else torch.zeros(p.numel()).double() for p in model.parameters()
    ]
    model.zero_grad()
    return torch.cat(parts)


def batches() -> list[dict[str, Tensor]]:
    first = every.batch()
    return [first, {"image": first["image"].flip(-1), "label": first["label"].flip(-1)}]


def in_our_loop(regularizer: Regularizer) -> list[Tensor]:
    model = every.network_for(regularizer)
    step = TrainingStep(model, every.objective_for(regularizer), [regularizer])
    made = []
    for index, batch in enumerate(batches()):
        for part in range(step.parts(index)):
            step(batch, part=part, step=index).total.backward()
        made.append(gradients(model))
    return made


def in_a_loop_of_ones_own(regularizer: Regularizer, apart: bool = False) -> list[Tensor]:
    model, objective = every.network_for(regularizer), every.objective_for(regularizer)
    reg = tk.attach(regularizer, model)
    made = []
    for index, batch in enumerate(batches()):
        outputs = objective.forward_pass(model, batch, keyed_generator(0, index, objective.name))
        loss = torch.stack(list(objective(outputs, batch).values())).sum()
        if apart:
            loss.backward()
            reg.backward(batch, outputs=outputs)
        else:
            (loss + reg.loss(batch, outputs=outputs)).backward()
        made.append(gradients(model))
        model.eval()
        with torch.no_grad():  # a validation in between
            objective.forward_pass(model, batch, keyed_generator(9))
        model.train()
    reg.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return made


@pytest.mark.parametrize("name", every.NAMES)
def test_the_gradients_are_those_of_train(name: str) -> None:
    ours, theirs = in_our_loop(every.made(name)), in_a_loop_of_ones_own(every.made(name))
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-6
    if every.made(name).deferred:
        for one, other in zip(ours, in_a_loop_of_ones_own(every.made(name), apart=True), strict=True):
            assert float((one - other).norm() / one.norm()) < 1e-6


def model_and(regularizer: Any, **options: Any) -> tuple[nn.Module, Any]:
    model = every.network_for(None)
    return model, tk.attach(regularizer, model, **options)


def test_draws_differ_from_step_to_step_and_repeat_under_a_seed() -> None:
    batch = every.batch()
    values = []
    for seed in (0, 0, 1):
        model, reg = model_and(tk.SegReg(samples=64, directions=4), seed=seed)
        row = []
        for _ in range(3):
            model(batch["image"])
            row.append(reg.loss(batch).item())
        assert reg.step == 3
        assert set(reg.terms) == {"segreg/epps_pulley"}
        values.append(row)
    assert values[0] == values[1]
    assert len({*values[0], *values[2]}) == 6
    model(batch["image"])
    assert reg.loss(batch, step=0).item() == values[2][0]
    assert reg.state_dict()["step"] == 1


def test_several_passes_before_one_backward_are_the_sum() -> None:
    first, second = batches()
    model, reg = model_and(tk.SegReg(weight=1.0, samples=200))
    apart = []
    for batch in (first, second):
        (model(batch["image"]).mean() + reg.loss(batch)).backward()
        apart.append(gradients(model))
    reg.load_state_dict({"step": 0, "regularizers": {}})
    total = torch.zeros(())
    for batch in (first, second):
        total = total + model(batch["image"]).mean() + reg.loss(batch)
    total.backward()
    torch.testing.assert_close(gradients(model), apart[0] + apart[1], rtol=1e-5, atol=1e-7)


def test_a_loss_without_a_pass_of_its_own_is_refused() -> None:
    batch = every.batch()
    model, reg = model_and(tk.SegReg())
    with pytest.raises(ProtocolError, match="no training pass"):
        reg.loss(batch)
    model(batch["image"])
    reg.loss(batch)
    with torch.no_grad():
        model(batch["image"])
    with pytest.raises(ProtocolError, match="no training pass"):
        reg.loss(batch)
    reg.remove()
    with pytest.raises(ProtocolError, match="was removed"):
        reg.loss(batch)


def one_gradient(model: nn.Module, called: Any, reg: Any, batch: dict[str, Tensor], dtype: Any = None) -> Tensor:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = called(batch["image"]).float().mean() + reg.loss(batch, step=0)
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("way", ["channels_last", "bf16", "compiled", "weight 0"])
def test_other_ways_to_run_a_network_give_the_same_gradients(way: str) -> None:
    batch = every.batch()
    weight = 0.0 if way == "weight 0" else 1.0
    model, reg = model_and([tk.SegReg(weight=weight, samples=500), tk.SelfReg(scr=weight, ifd=weight)])
    plain = one_gradient(model, model, reg, batch)
    if way == "channels_last":
        batch = {**batch, "image": batch["image"].to(memory_format=torch.channels_last)}
        other = one_gradient(model, model.to(memory_format=torch.channels_last), reg, batch)
    elif way == "bf16":
        other = one_gradient(model, model, reg, batch, torch.bfloat16)
    elif way == "compiled":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = one_gradient(model, torch.compile(model, backend="eager"), reg, batch)
    else:
        model(batch["image"]).mean().backward()
        other = gradients(model)
    # bfloat16 keeps three digits, which may change the order of two channels in SelfReg
    tolerance = {"bf16": 0.2, "weight 0": 0.0}.get(way, 1e-5)
    assert float((plain - other).norm() / plain.norm()) <= tolerance


def test_what_cannot_work_is_refused() -> None:
    compiled = torch.compile(every.network_for(None), backend="eager")
    with pytest.raises(ConfigError, match="Attach first, then compile"):
        tk.attach(tk.SegReg(), compiled)
    with pytest.raises(ConfigError, match="DistributedDataParallel"):
        tk.attach(tk.SegReg(), nn.DataParallel(every.network_for(None)))
    batch = every.batch()
    model, reg = model_and(tk.SegReg())
    model(batch["image"]).mean().backward()
    with pytest.raises(ProtocolError, match="segreg share the graph"):
        reg.backward(batch)


def test_a_layer_that_can_have_no_gradient_is_refused_and_one_of_two_is_said() -> None:
    batch = every.batch()
    model = Checkpointed(reentrant=True)
    reg = tk.attach(tk.SegReg(tap="block.0"), model)
    model(batch["image"])
    with pytest.raises(ProtocolError, match="reentrant checkpoint"):
        reg.loss(batch)
    model = Checkpointed(reentrant=False)
    reg = tk.attach(tk.SegReg(tap="block.0"), model)
    (model(batch["image"]).mean() + reg.loss(batch)).backward()
    assert model.stem.weight.grad is not None
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    reg = tk.attach(tk.SegReg(tap=("stem", "block.0")), model)
    model(batch["image"])
    with pytest.warns(RegularizerWarning, match="layers without gradient: stem"):
        reg.loss(batch)


def test_a_constant_loss_is_said_in_the_first_step_of_a_training() -> None:
    step = TrainingStep(every.network_for(None), every.objective_for(tk.SegReg()), [tk.Dispersive()])
    one = {key: value[:1] for key, value in every.batch().items()}
    with pytest.warns(RegularizerWarning, match="adds no gradient in its first step"):
        step(one)


def test_health_reports_the_ratio_of_the_two_gradients() -> None:
    batch = every.batch()
    model, reg = model_and(tk.SegReg(weight=2.0))
    outputs = model(batch["image"])
    own = nn.functional.cross_entropy(outputs, batch["label"][:, 0])
    total = own + reg.loss(batch)
    row = reg.health(own)["segreg"]
    with tk.capture(model, "head_input") as tape:
        outputs = model(batch["image"])
    own_gradient = torch.autograd.grad(nn.functional.cross_entropy(outputs, batch["label"][:, 0]), tape["head_input"])
    assert row["gradient"] / row["ratio"] == pytest.approx(float(own_gradient[0].norm()), rel=1e-5)
    assert row["status"] in ("ok", "dominant")
    total.backward()


def test_health_of_regularizers_that_read_no_layer_or_make_passes_of_their_own() -> None:
    """EWC is compared at the parameters, the latent augmentation at the codes; the loop records the same ratio."""
    batch = every.batch()
    for regularizer in (ElasticWeights(weight=2.0), tk.LatentAugmentation()):
        network = every.network_for(regularizer if regularizer.requires else None)
        if isinstance(regularizer, ElasticWeights):
            regularizer.remember(network, {name: torch.ones_like(p) for name, p in network.named_parameters()})
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.01)
        step = TrainingStep(network, tk.SegmentationObjective(), [regularizer])
        result = step(batch, logging=True)
        if regularizer.deferred:
            result.gradients |= step(batch, part=1).gradients
        owner = regularizer.name
        expected = result.gradients[owner].sqrt() / result.gradients[f"segmentation@{owner}"].sqrt()
        reg = tk.attach(regularizer, network)
        own = sum(tk.SegmentationObjective()(network(batch["image"]), batch).values())
        reg.loss(batch)
        row = reg.health(own)[owner]
        assert 0 < row["ratio"] < 1e3
        assert row["ratio"] == pytest.approx(float(expected), rel=1e-4)
        reg.remove()


def test_the_recorded_ratio_counts_the_factor_of_a_convex_combination() -> None:
    """With weight w the objective is multiplied by 1 - w, so at w = 3/4 the ratio is four times that of the plain sum."""
    ratios = []
    for convex in (False, True):
        regularizer = tk.SegReg(weight=0.75, convex=convex)
        step = TrainingStep(every.network_for(None), every.objective_for(regularizer), [regularizer])
        result = step(every.batch(), logging=True)
        squares = result.gradients["segreg"] / result.gradients["segmentation@segreg"]
        ratios.append(float(squares.sqrt()))
    assert ratios[1] == pytest.approx(4 * ratios[0], rel=1e-5)
    _, reg = model_and(tk.SegReg(weight=0.75, convex=True))
    assert reg.objective_weight == 0.25


def test_without_a_generator_every_context_draws_something_else() -> None:
    feature = {"head_input": torch.randn(2, 4, 16, 16)}
    batch = every.batch()
    values = {
        float(tk.SegReg(samples=64, directions=4)(StepContext(batch, nn.Identity(), features=feature))["epps_pulley"])
        for _ in range(3)
    }
    assert len(values) == 3


def test_the_first_pass_counts_on_a_network_whose_layers_are_found_by_running_it() -> None:
    """MONAI's U-Net has no `head`: the alias is looked up during the first pass, which is recorded all the same."""
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    model = BasicUNet(spatial_dims=2, in_channels=1, out_channels=2, features=(4, 4, 8, 8, 8, 4))
    reg = tk.attach(tk.SegReg(weight=1.0), model)
    x = torch.randn(2, 1, 32, 32)
    batch = {"image": x, "label": torch.ones(2, 1, 32, 32).long()}
    model(x)
    first = reg.loss(batch, step=3)
    model(x)
    torch.testing.assert_close(reg.loss(batch, step=3), first)
    assert first.requires_grad


def test_regularizers_of_one_backward_share_its_step_and_idle_steps_count() -> None:
    class Noted(tk.Regularizer):
        deferred, requires = True, ()

        def __init__(self, name: str, steps: list[int]) -> None:
            self.name, self.steps = name, steps  # type: ignore[misc]

        def weights(self, step: int) -> dict[str, float]:
            return {"zero": float(step > 0)}

        def __call__(self, context: tk.StepContext) -> dict[str, Tensor]:
            self.steps.append(context.step)
            return {"zero": next(context.model.parameters()).sum() * 0}

    seen: dict[str, list[int]] = {"one": [], "other": []}
    model, reg = model_and([Noted(name, steps) for name, steps in seen.items()])
    for _ in range(3):
        model(every.batch()["image"]).mean().backward()
        reg.backward(every.batch())
    assert seen == {"one": [1, 2], "other": [1, 2]}
    assert reg.step == 3
