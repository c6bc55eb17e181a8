"""Reading the SelfReg-UNet reference cases, and their tolerance rule."""

from __future__ import annotations

from typing import Any

from golden_cases import golden_case
from torch import Tensor


def read_case(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of a case by their short names, and its manifest entry."""
    found = golden_case("selfreg", case)
    arrays, entry = found.tensors(), found.entry
    keys = {**entry["inputs"], **entry["expected"]}
    return {name: arrays[place["key"]] for name, place in keys.items()}, entry


def assert_scalar(value: Tensor, expected: Tensor, entry: dict[str, Any]) -> None:
    limit = entry["tolerance"]["scalar_atol"] + entry["tolerance"]["scalar_rtol"] * abs(float(expected))
    assert abs(value.item() - expected.item()) <= limit


def assert_array(value: Tensor, expected: Tensor, entry: dict[str, Any]) -> None:
    limit = entry["tolerance"]["array_max_rel"] * float(expected.abs().max())
    assert value.shape == expected.shape
    assert float((value.double() - expected.double()).abs().max()) <= limit
