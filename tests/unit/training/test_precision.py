"""Networks whose own weights are bfloat16, float16 or float64: trained in that type, as a plain loop in torch would."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import toolkit as tk

KINDS = (torch.float64, torch.bfloat16, torch.float16)


def warned(kind: torch.dtype) -> Any:
    if kind == torch.float64:
        return contextlib.nullcontext()
    return pytest.warns(tk.ToolkitWarning, match="steps smaller than their rounding are lost")


def net(kind: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tk.unet(1, 2, channels=(4, 8)).to(kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_training_is_a_plain_loop_in_the_networks_own_type(kind: torch.dtype, discs: tk.Task, tmp_path: Path) -> None:
    config = tk.TrainConfig(
        steps=3, batch_size=4, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.1, schedule="constant",
        select="last", augmentation="none", workers=0,
    )  # fmt: skip
    loop, loader = net(kind), discs.loader(batch_size=4, augmentation="none")
    optimizer = torch.optim.SGD(loop.parameters(), lr=0.1)
    for step in range(3):
        batch = loader.batch(step)
        logits = loop(batch["image"].to(kind)).to(torch.promote_types(kind, torch.float32))
        optimizer.zero_grad()
        cross_entropy(logits, batch["label"][:, 0]).backward()
        optimizer.step()
    with warned(kind):
        run = tk.train(
            net(kind), discs, tk.SegmentationObjective(dice=0), config=config, out=tmp_path / "run", progress=False
        )
    for one, other in zip(loop.parameters(), run.model.parameters(), strict=True):
        assert one.dtype == other.dtype == kind
        assert torch.equal(one, other)
    assert run.evaluate("test", metrics=("dice",))["value"].notna().all()


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_a_regularized_training_resumes_exactly(kind: torch.dtype, discs: tk.Task, tmp_path: Path) -> None:
    config = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "validate_every": 0, "workers": 0}
    regularizer = tk.SegReg(samples=32, directions=8)
    with warned(kind):
        run = tk.train(net(kind), discs, None, regularizer, config, out=tmp_path / "run", progress=False)
    whole = [value.clone() for value in run.model.state_dict().values()]
    shutil.rmtree(run.path / "checkpoints" / "00000004")
    again = tk.resume(run.path, net(kind), discs, progress=False)
    assert all(map(torch.equal, whole, again.model.state_dict().values()))


def test_float16_is_refused_where_it_cannot_work(discs: tk.Task, tmp_path: Path) -> None:
    with pytest.raises(tk.ConfigError, match="Adam's epsilon is 0 in float16"):
        tk.train(net(torch.float16), discs, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
