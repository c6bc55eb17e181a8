"""A network compiled for its run trains to the same weights; where compiling would do nothing it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import weights_of
from torch import nn

from toolkit.errors import ConfigError
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import UNet
from toolkit.training.run import Run

Trainer = Callable[..., Run]


@pytest.mark.slow
def test_a_compiled_run_is_the_run(trained: Trainer, network: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compile_it = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_it(self, backend=backend))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    plain = weights_of(trained("plain", select="last").model)
    network.load_state_dict(start)
    run = trained("compiled", compile=True, select="last")
    assert graphs
    assert network._compiled_call_impl is None
    for first, second in zip(plain, weights_of(run.model), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert json.loads((run.path / "run.json").read_text())["config"]["compile"] is True
    torch.compiler.reset()


def test_taps_and_calls_of_parts_are_refused_with_the_reason(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segreg taps layers, and compiled passes call no hooks"):
        trained(regularizer=SegReg(), compile=True)
    model = fast_slow_network(1, 2, width=4)
    with pytest.raises(ConfigError, match="calls parts of the network"):
        trained(model=model, objective=FastSlowObjective(), compile=True)
    assert not list(tmp_path.iterdir())
