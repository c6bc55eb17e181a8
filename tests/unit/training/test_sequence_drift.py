"""P20: over two drawn domains, one after the other, the regularised features stay nearer to the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.inference.extract import extract
from toolkit.measure.gaussianity import gaussianity
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.sequence import train_sequence


def two_domains() -> Task:
    """Bright discs on a dark ground, then dark ones on a bright ground with more noise."""
    drawn, images, labels, sites, splits = np.random.default_rng(5), [], [], [], []
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"))
    for index in range(48):
        second = index >= 24
        centre, radius = drawn.uniform(10, 22, 2), drawn.uniform(5, 8)
        inside = ((grid - centre.reshape(2, 1, 1)) ** 2).sum(0) < radius**2
        noise = (0.5 if second else 0.2) * drawn.standard_normal((32, 32))
        images.append(((-1.0 if second else 1.0) * inside + noise).astype(np.float32))
        labels.append(inside.astype(np.uint8))
        sites.append("dark" if second else "bright")
        splits.append("test" if index % 24 >= 16 else "train")
    return task_from_arrays(
        images, labels, classes={0: "background", 1: "disc"}, sites=sites, splits=splits, normalisation="none"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::toolkit.errors.RegularizerWarning")  # it is meant to dominate
def test_p20_the_statistic_of_the_regularised_run_is_lower_at_every_stage(tmp_path: Path) -> None:
    task = two_domains()
    config = TrainConfig(
        steps=120,
        batch_size=8,
        learning_rate=5e-3,
        validate_every=0,
        select="last",
        checkpoint_every=0,
        augmentation="none",
        seed=1,
    )
    measured: dict[str, list[float]] = {}
    for name, regularizer in (("plain", None), ("segreg", SegReg(weight=0.5, samples=1024, directions=64))):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            network = unet(1, 2, channels=(8, 8, 16))
        options: dict[str, Any] = {"regularizer": regularizer, "config": config, "progress": False}
        stages = train_sequence(network, task, ["bright", "dark"], out=tmp_path / name, **options)
        for run in stages.stages:
            features = extract(run.model, task.cases("test"), ["head_input"], pool="voxels", samples=128)
            table = gaussianity(features, "head_input", directions=128, null_draws=1, seed=3).table()
            assert table["group"].iloc[0] == "all"
            measured.setdefault(name, []).append(float(table["T_over_N"].iloc[0]))
        dice = stages.dice("test")
        assert float(np.asarray(dice)[1, 0]) > 0.7, "the first domain has been learnt"
    assert len(measured["plain"]) == 2
    for plain, regularised in zip(measured["plain"], measured["segreg"], strict=True):
        assert regularised < plain
