"""On CUDA the process that trains runs ahead of the device: nothing waits for it between two logged steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.data.task import Task
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.loop import Loop
from toolkit.training.train import train


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: CUDA itself counts what waits for it")
@pytest.mark.parametrize("method", [None, SegReg, SelfReg, Dispersive])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_no_step_between_two_logged_ones_waits(
    discs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, precision: str
) -> None:
    one_step, checked = Loop._one_step, []

    def watched(self: Loop, index: int) -> Any:
        quiet = 2 <= index < 9  # the first steps allocate and choose kernels; step 10 is logged
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            return one_step(self, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            checked.extend([index] if quiet else [])

    monkeypatch.setattr(Loop, "_one_step", watched)
    config = TrainConfig(
        steps=10, batch_size=4, log_every=10, validate_every=0, select="last", device="cuda", precision=precision
    )
    regularizer = None if method is None else method()
    train(unet(1, 2, channels=(8, 16, 16)), discs, None, regularizer, config, out=tmp_path / "run", progress=False)
    assert checked == list(range(2, 9))
