"""Two processes with half the batch each have, in float64, the gradients of one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.testing.processes import difference_between_processes, double_network, gradients, shared_batch
from toolkit.training.background import environment
from toolkit.training.protocol import Regularizer

PROGRAM = Path(__file__).parent / "two_ranks_program.py"
SETTINGS: dict[str, Regularizer] = {
    "epps_pulley": SegReg(weight=10.0, samples=300, directions=16),
    "two taps": SegReg(weight=10.0, tap=("head_input", "bottleneck"), samples=200, directions=8),
    "class_balanced": SegReg(weight=10.0, samples=240, directions=16, sampling="class_balanced"),
    "per_image": SegReg(weight=10.0, samples=400, directions=16, pooling="per_image", ignore_label=0),
    "null_centred": SegReg(weight=10.0, samples=300, directions=16, null_centred=True, convex=False),
    "sliced_wasserstein": SegReg(divergence="sliced_wasserstein", samples=300, directions=16),
    "gaussian_kl": SegReg(divergence="gaussian_kl", samples=300),
    "covariance": SegReg(divergence="covariance", samples=300),
    "variance_covariance": SegReg(divergence="variance_covariance", samples=300),
    "gaussian_kernel": SegReg(divergence="gaussian_kernel", samples=300),
    "nearest_neighbour": SegReg(divergence="nearest_neighbour", samples=300),
    "class_conditional": SegReg(divergence="class_conditional", classes=3, samples=500, directions=16),
    "dispersive": Dispersive(weight=5.0),
    "selfreg": SelfReg(scr=1.0, ifd=1.0),
}


@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    assert difference_between_processes(SETTINGS, tmp_path) < 1e-12
    plain = gradients(SegReg(weight=0.0), shared_batch(), double_network())
    for name, regularizer in SETTINGS.items():
        whole = gradients(regularizer, shared_batch(), double_network())
        assert float((whole - plain).norm()) > 0.01 * float(plain.norm()), f"{name} is too weak to be tested"


@pytest.mark.slow
def test_attached_regularizers_see_the_whole_batch_too(tmp_path: Path) -> None:
    def started(out: str, rank: int, size: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, PROGRAM, tmp_path / out, str(rank), str(size), tmp_path / "rendezvous"]
        return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)

    processes = [started("one", 0, 1), started("two", 0, 2), started("two", 1, 2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], b"\n".join(errors).decode()
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    for name in one:
        assert float((one[name] - two[name]).norm() / one[name].norm()) < 1e-12, name
