"""Reading the SelfReg-UNet reference cases, and their tolerance rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_case(golden: Path, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of a case by their short names, and its manifest entry."""
    manifest = json.loads((golden / "selfreg" / "manifest.json").read_text())
    entry = next(c for c in manifest["cases"] if c["id"] == case)
    with np.load(golden / "selfreg" / entry["file"]) as arrays:
        keys = {**entry["inputs"], **entry["expected"]}
        data = {name: torch.from_numpy(np.array(arrays[place["key"]])) for name, place in keys.items()}
    return data, entry


def assert_scalar(value: Tensor, expected: Tensor, entry: dict[str, Any]) -> None:
    limit = entry["tolerance"]["scalar_atol"] + entry["tolerance"]["scalar_rtol"] * abs(float(expected))
    assert abs(value.item() - expected.item()) <= limit


def assert_array(value: Tensor, expected: Tensor, entry: dict[str, Any]) -> None:
    limit = entry["tolerance"]["array_max_rel"] * float(expected.abs().max())
    assert value.shape == expected.shape
    assert float((value.double() - expected.double()).abs().max()) <= limit
