"""What one training does to the network, the machine and the disk."""

from __future__ import annotations

import json
import random
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import layered, weights_of
from torch import Tensor, nn

from toolkit.data.task import Task
from toolkit.errors import ConfigError, LayerError, ProtocolError, RegularizerWarning, ToolkitError, ToolkitWarning
from toolkit.models.unet import UNet, unet
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import Objective, Regularizer, StepContext
from toolkit.training.run import Run
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.train import resume, train

Trainer = Callable[..., Run]


class Pull(Regularizer):
    """Mean square of the head's input."""

    name = "pull"

    def __init__(self, weight: float = 0.1, deferred: bool = False) -> None:
        self.weight, self.calls = weight, 0
        self.deferred = deferred  # type: ignore[misc]

    @property
    def taps(self) -> tuple[str, ...]:
        return ("head_input",)

    def weights(self, step: int) -> dict[str, float]:
        return {"square": self.weight}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        self.calls += 1
        if self.deferred:
            return {"square": context.model(context.batch["image"]).square().mean()}
        return {"square": context.features["head_input"].square().mean()}


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_loop_takes_the_steps_that_a_hand_written_loop_takes(discs: Task, network: UNet, trained: Trainer) -> None:
    by_hand = unet(1, 2, channels=(4, 8, 8))
    by_hand.load_state_dict(network.state_dict())
    trained(select="last", optimizer="adamw", schedule="cosine", learning_rate=1e-2, clip_norm=0.5)
    loader = discs.loader("train", batch_size=4, seed=0, augmentation="standard")
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for step in range(6):
        batch = loader.batch(step)
        loss = sum(SegmentationObjective()(by_hand(batch["image"]), batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
    for ours, theirs in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_learning(trained: Trainer, optimizer: str, precision: str) -> None:
    rate = 0.1 if optimizer == "sgd" else 1e-2
    run = trained(
        optimizer=optimizer,
        precision=precision,
        steps=40,
        learning_rate=rate,
        checkpoint_every=20,
        validate_every=20,
        schedule="polynomial",
    )
    losses = run.history.query("event == 'train'")["total"]
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
    assert run.history["validation/dice"].max() > 0.6


def test_deferred_parts_give_the_gradient_of_the_sum(discs: Task, trained: Trainer, network: UNet) -> None:
    """Two backward passes, one optimizer step: as if the losses had been added."""
    start = weights_of(network)
    trained(
        "split",
        regularizer=Pull(0.5, deferred=True),
        steps=1,
        select="last",
        optimizer="sgd",
        momentum=0.0,
        schedule="constant",
        learning_rate=1.0,
        weight_decay=0.0,
    )
    by_hand = unet(1, 2, channels=(4, 8, 8))
    by_hand.load_state_dict(dict(zip(network.state_dict(), start, strict=True)))
    batch = discs.loader("train", batch_size=4, seed=0, augmentation="standard").batch(0)
    logits = by_hand(batch["image"])
    (sum(SegmentationObjective()(logits, batch).values()) + 0.5 * logits.square().mean()).backward()
    for ours, theirs in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - theirs.grad, rtol=1e-4, atol=1e-6)


def test_history_names_every_term_and_the_gradient_ratio_is_right(trained: Trainer, network: UNet, discs: Task) -> None:
    start = {name: value.clone() for name, value in network.state_dict().items()}
    history = trained(regularizer=Pull(0.2)).history
    assert list(history.query("event == 'train'")["step"]) == [1, 2, 4, 6]
    assert list(history.query("event == 'validation'")["step"]) == [3, 6]
    first = history.iloc[0]
    network.load_state_dict(start)
    batch = discs.loader("train", batch_size=4, seed=0, augmentation="standard").batch(0)
    seen: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = SegmentationObjective()(network(batch["image"]), batch)
    gradients = [
        torch.autograd.grad(loss, seen[0], retain_graph=True)[0].norm()
        for loss in (0.2 * seen[0].square().mean(), sum(terms.values()))
    ]
    assert first["segmentation/dice"] == pytest.approx(terms["dice"].item(), rel=1e-5)
    assert first["segmentation/cross_entropy"] == pytest.approx(terms["cross_entropy"].item(), rel=1e-5)
    assert first["pull/square"] == pytest.approx(seen[0].square().mean().item(), rel=1e-5)
    assert first["pull/square/weight"] == 0.2
    assert first["pull/gradient_ratio"] == pytest.approx((gradients[0] / gradients[1]).item(), rel=1e-4)
    assert first["pull/gradient_status"] == "ok"
    assert first["total"] == pytest.approx(
        terms["dice"].item() + terms["cross_entropy"].item() + 0.2 * first["pull/square"], rel=1e-5
    )
    assert first["learning_rate"] == pytest.approx(2e-3 / 25)
    assert first["seconds/step"] > 0


@pytest.mark.parametrize(("weight", "status"), [(1e4, "dominant"), (1e-12, "dead")])
def test_a_regularizer_that_is_off_is_reported(trained: Trainer, weight: float, status: str) -> None:
    with pytest.warns(RegularizerWarning, match=f"'pull' is {status} at step 3"):
        run = trained(regularizer=Pull(weight), log_every=1)
    assert set(run.history.query("event == 'train'")["pull/gradient_status"]) == {status}


def test_logging_validation_and_checkpoints_do_not_change_the_weights(trained: Trainer, network: UNet) -> None:
    start = network.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    ends = []
    for name, options in {
        "seldom": {"log_every": 100, "validate_every": 0, "checkpoint_every": 0},
        "often": {"log_every": 1, "validate_every": 1, "checkpoint_every": 1, "select": "last"},
    }.items():
        network.load_state_dict(start)
        trained(name, regularizer=Pull(), **options)
        ends.append(weights_of(network))
    assert same(*ends)


def test_more_steps_follow_the_schedule_of_the_longer_run_and_are_recorded(trained: Trainer, discs: Task) -> None:
    run = trained("short", schedule="polynomial")
    with pytest.raises(ConfigError, match="taken 6 steps already"):
        resume(run.path, task=discs, steps=5)
    longer = resume(run.path, task=discs, steps=9, progress=False)
    assert (longer.finished, longer.step, longer.config.steps) == (True, 9, 9)
    record = longer.directory.record()
    assert record["config"]["steps"] == 9
    assert record["schedules"] == [{"first_step": 0, "steps": 6}, {"first_step": 6, "steps": 9}]
    rows = longer.history[longer.history["event"] == "train"].set_index("step")
    highest = run.config.learning_rate
    assert rows.loc[6, "learning_rate"] == pytest.approx(highest * (1 - 5 / 6) ** 0.9)
    assert rows.loc[8, "learning_rate"] == pytest.approx(highest * (1 - 7 / 9) ** 0.9)
    again = resume(run.path, task=discs, progress=False)
    assert (again.config.steps, again.step) == (9, 9)


def test_the_share_of_foreground_reaches_the_loader(trained: Trainer, balls: Task, monkeypatch: Any) -> None:
    shares = []
    real = balls.loader

    def loader(*arguments: Any, **options: Any) -> Any:
        shares.append(options.get("foreground"))
        return real(*arguments, **options)

    monkeypatch.setattr(balls, "loader", loader)
    model = unet(1, 2, channels=(4, 8), dims=3)
    trained(
        "balls", model=model, task=balls, steps=1, batch_size=2, patch_size=(8, 8, 8), foreground=0.9, select="last"
    )
    assert set(shares) == {0.9}


def test_the_best_weights_are_the_ones_at_the_end(trained: Trainer) -> None:
    run = trained(steps=12, validate_every=1, learning_rate=0.3, schedule="constant")
    scores = run.history.query("event == 'validation'").set_index("step")["validation/dice"]
    assert run.selected_step == scores.idxmax()
    table = run.evaluate("val", metrics=("dice",))
    assert table.groupby("case")["value"].mean().mean() == pytest.approx(scores.max(), abs=1e-12)
    record = json.loads((run.path / "run.json").read_text())
    assert record["selection"]["rule"] == "best"
    assert "test never used" in record["selection"]["description"]


def test_the_test_split_is_never_asked_for(discs: Task, network: UNet, tmp_path: Path, short: TrainConfig) -> None:
    asked: list[str] = []

    class Watched:
        name, patch_size, classes, channels = discs.name, discs.patch_size, discs.classes, discs.channels

        def loader(self, split: str, **options: Any) -> Any:
            asked.append(split)
            return discs.loader(split, **options)

        def cases(self, split: str, site: Any = None) -> Any:
            asked.append(split)
            return discs.cases(split, site)

    train(network, Watched(), config=short, out=tmp_path / "run", progress=False)
    assert set(asked) == {"train", "val"}


def test_without_a_val_split_the_last_weights_are_selected_and_that_is_said(
    network: UNet, tmp_path: Path, discs: Task
) -> None:
    from toolkit.data.table import task_from_arrays

    images = [case.image for case in discs.cases("train")]
    labels = [case.label for case in discs.cases("train")]
    task = task_from_arrays(images, labels, classes=discs.classes, splits=["train"] * len(images))
    with pytest.warns(ToolkitWarning, match="no val split"):
        run = train(network, task, config={"steps": 2, "batch_size": 2}, out=tmp_path / "run", progress=False)
    assert run.selected_step == 2
    assert json.loads((run.path / "run.json").read_text())["selection"]["rule"] == "last"


def test_mode_random_state_gradients_threads_and_warnings_are_as_before(trained: Trainer, network: UNet) -> None:
    network.train()
    network.bottleneck.eval()
    modes = [module.training for module in network.modules()]
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    threads = torch.get_num_threads()
    trained(regularizer=Pull(), threads=threads + 1, steps=1, validate_every=0)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.get_num_threads() == threads


def test_dropout_depends_on_the_seed_and_not_on_what_was_drawn_before(trained: Trainer) -> None:
    ends = []
    for name, drawn, seed in (("a", 0, 0), ("b", 5, 0), ("c", 0, 1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(4, 2, 1))
        torch.rand(drawn)
        trained(name, model=model, seed=seed, augmentation="none", select="last")
        ends.append(weights_of(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


class Exploding(Objective):
    """Not a number in the third step."""

    name = "exploding"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        self.calls += 1
        return {"loss": outputs.mean() * (float("nan") if self.calls == 3 else 1.0)}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    trained: Trainer, tmp_path: Path
) -> None:
    with pytest.raises(ToolkitError, match="loss became nan at step 3"):
        trained(objective=Exploding(), log_every=1, checkpoint_every=2, validate_every=0)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["state"] == "failed"
    assert "nan" in state["error"]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000000", "00000002"]


def test_weights_that_are_not_finite_are_never_saved(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no longer finite after step 4"):
        trained(objective=Exploding(), log_every=100, checkpoint_every=2, validate_every=0)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000000", "00000002"]


class WrongTap(Pull):
    @property
    def taps(self) -> tuple[str, ...]:
        return ("decoder.7",)


def test_a_training_that_fails_in_its_first_step_leaves_nothing_behind(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"decoder\.7"):
        trained(regularizer=WrongTap())
    assert not (tmp_path / "run").exists()


def test_what_cannot_work_is_refused_before_anything_is_written(
    trained: Trainer, tmp_path: Path, network: UNet
) -> None:
    class Needy(Pull):
        requires = ("decode_image",)

    lock = threading.Lock()
    with pytest.raises(ProtocolError, match="decode_image"):
        trained(regularizer=Needy())
    with pytest.raises(ConfigError, match="no site"):
        trained(site="nowhere")
    with pytest.raises(ConfigError, match="share a name"):
        trained(regularizer=[Pull(), Pull()])
    with pytest.raises(ConfigError, match="cannot be handed to a child process"):
        trained(background=True, objective=lambda logits, label: logits.mean() * lock.locked())
    with pytest.raises(ConfigError, match="CUDA devices"):
        trained(device=f"cuda:{torch.cuda.device_count()}")
    network.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter"):
        trained()
    assert not (tmp_path / "run").exists()


def test_one_backward_of_the_sum_gives_the_gradients_of_two(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of plain SGD: the change of a weight is the rate times its gradient."""
    options: dict[str, Any] = {
        "steps": 1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "select": "last",
    }
    calls: list[int] = []
    backward = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda *args, **kw: (calls.append(1), backward(*args, **kw))[1])
    start, moved = weights_of(layered()), []
    for split in (True, False):
        model = layered()
        before = len(calls)
        regularizer = Pull(weight=0.5, deferred=True)
        run = trained(
            model=model,
            regularizer=regularizer,
            aliases={"head_input": "4:input"},
            split_backward=split,
            name=f"split-{split}",
            **options,
        )
        assert len(calls) - before == 1 + split
        assert run.config.split_backward is split
        moved.append([after - old for after, old in zip(weights_of(model), start, strict=True)])
    for apart, together in zip(*moved, strict=True):
        assert float(apart.abs().max()) > 0
        torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match="single device"):
        TrainConfig(split_backward=False, devices=2)


class Learning(nn.Module, Objective):
    """An objective with a parameter of its own."""

    name = "learning"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def __call__(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"loss": (outputs[:, 0] * self.scale - batch["label"][:, 0]).square().mean()}


def test_an_objective_may_learn_and_is_restored(trained: Trainer) -> None:
    from toolkit.training.load import load_run

    run = trained(objective=Learning(), select="last")
    learnt = run.objective.scale.item()
    assert learnt != 1.0
    again = load_run(run.path, model=run.model, task=run.task, objective=Learning())
    assert again.objective.scale.item() == learnt


def test_no_output_without_a_progress_bar(trained: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_three_dimensions_with_patches(trained: Trainer, balls: Task) -> None:
    model = unet(1, 2, channels=(4, 8), dims=3)
    run = trained(model=model, task=balls, patch_size=(16, 16, 16), batch_size=2, steps=4, validate_every=4)
    table = run.evaluate("test")
    assert set(table["unit"]) == {"", "mm"}
    assert (run.history["validation/dice"].dropna() >= 0).all()


def test_bf16_gradients_of_3d_convolutions_on_the_cpu_are_numbers() -> None:
    """oneDNN leaves the weight's gradient unwritten where sides are 2; the closed form: sums of shifted products."""
    from toolkit.training.engine import _mixed_precision

    torch.manual_seed(0)
    layer, image, weights = (
        torch.nn.Conv3d(16, 16, 3, padding=1),
        torch.randn(2, 16, 2, 2, 2),
        torch.randn(2, 16, 2, 2, 2),
    )
    padded = torch.nn.functional.pad(image, (1,) * 6).unfold(2, 2, 1).unfold(3, 2, 1).unfold(4, 2, 1)
    expected = torch.einsum("bixyzuvw,bouvw->oixyz", padded, weights)
    precision = _mixed_precision("bf16-mixed", "cpu")
    for _ in range(3):
        layer.zero_grad()
        with precision.forward_context():
            output = layer(image)
        precision.backward((output.float() * weights).sum(), layer)
        assert layer.weight.grad is not None
        assert float((layer.weight.grad - expected).norm() / expected.norm()) < 0.02
    assert torch.backends.mkldnn.enabled


def test_a_printed_run_is_one_line_without_its_network(trained: Trainer) -> None:
    text = repr(trained())
    assert "\n" not in text
    assert "Conv2d" not in text
    assert re.fullmatch(r"Run\('.*': plain on .*, finished, step \d+ of \d+\)", text)
