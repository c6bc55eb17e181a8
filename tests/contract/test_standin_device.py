"""Every method's step on a device that is not the CPU, without one: nothing is mixed, nothing waits between logged steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
NAMES = [
    *("adversarial_bias", "adversarial_noise", "dispersive", "elastic_weights", "latent_augmentation"),
    *("learning_without_forgetting", "random_convolution", "random_windows", "segreg", "selfreg"),
    *("segreg, rows balanced over classes", "segreg, by class", "segreg, gaussian_kl"),
    *("dispersive, median", "dispersive, positions", "latent_augmentation, spatial"),
]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the program saw, in a process of its own: torch's spare device is registered once and for all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])}
    command = [sys.executable, str(HERE / "standin_program.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not seen:
        pytest.skip(f"torch {torch.__version__} offers no device of Python kernels")
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["standin"] == pytest.approx(seen[name]["cpu"], rel=1e-4, abs=1e-6)
    reads_labels = name in ("segreg, rows balanced over classes", "segreg, by class")  # rows are drawn on the CPU
    assert [wait for wait in seen[name]["waits"] if not (reads_labels and "training/sampling.py" in wait)] == []
    assert len(seen[name]["waits"]) == reads_labels


@pytest.mark.slow
def test_every_regularizer_was_there(seen: dict[str, Any]) -> None:
    assert set(seen) == {*NAMES, "refused"}


@pytest.mark.slow
def test_the_device_has_the_rules_of_cuda(seen: dict[str, Any]) -> None:
    refused = seen["refused"]
    assert "same device" in refused["mixed"]
    assert "for generator but found 'cpu'" in refused["generator"]
    assert "to numpy" in refused["numpy"]
    assert [refused[name] for name in ("item", "truth", "mask", "back", "constant")] == ["1 waits"] * 5
    assert [refused[name] for name in ("number", "asynchronous")] == ["0 waits"] * 2


@pytest.mark.slow
def test_a_label_beyond_the_outputs_is_an_error_in_a_logged_step(seen: dict[str, Any]) -> None:
    assert "The labels hold [2], but the network has 2 outputs" in seen["refused"]["label"]
    assert seen["refused"]["regions"] == "0 waits"
