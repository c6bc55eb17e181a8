"""Toolkit objects are stored by registered name and keyword arguments, foreign ones not at all."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from toolkit import registry
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.unet import unet


@registry.register("thing", "pair")
@dataclasses.dataclass(frozen=True)
class Pair:
    first: int = 1
    second: float = 2.0


def test_a_registered_dataclass_round_trips() -> None:
    config = registry.describe(Pair(second=5.0))
    assert config == {"name": "pair", "arguments": {"first": 1, "second": 5.0}}
    assert registry.build("thing", config) == Pair(1, 5.0)


def test_a_network_describes_itself_and_is_rebuilt_with_the_same_shapes() -> None:
    network = unet(1, 3, channels=(4, 8), dims=3, norm="group")
    config = registry.describe(network)
    assert config is not None
    again = registry.build("model", config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_a_foreign_object_has_no_description() -> None:
    assert registry.describe(torch.nn.Linear(2, 2)) is None


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="Use one of pair"):
        registry.build("thing", {"name": "triple"})


def test_wrong_arguments_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="cannot be rebuilt"):
        registry.build("thing", {"name": "pair", "arguments": {"third": 1}})


def test_an_error_says_what_where_and_how() -> None:
    error = ToolkitError("It broke.", where="file.nii", fix="Mend it.")
    assert str(error).splitlines() == ["It broke.", "  where: file.nii", "  fix:   Mend it."]
    assert str(ToolkitError("It broke.")) == "It broke."
