"""The one door to the reference numbers; `tests/golden/test_every_case.py` looks for cases that no test asks for here."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = ("segreg", "selfreg", "latent_augmentation", "med_disseg")


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One case of a manifest: its entry, and the arrays of its file."""

    method: str
    name: str
    entry: dict[str, Any]

    @property
    def path(self) -> Path:
        """The file with its numbers."""
        return GOLDEN / self.method / str(self.entry["file"])

    def numbers(self) -> dict[str, np.ndarray]:
        """Every array of the file."""
        with np.load(self.path) as arrays:
            return {name: np.array(arrays[name]) for name in arrays.files}

    def tensors(self) -> dict[str, Tensor]:
        """Every array of the file, as tensors."""
        return {name: torch.from_numpy(array) for name, array in self.numbers().items()}

    def document(self) -> dict[str, Any]:
        """The content of a JSON file."""
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return content


@functools.cache
def golden_manifest(method: str) -> dict[str, GoldenCase]:
    """All cases of a method, by name."""
    entries = json.loads((GOLDEN / method / "manifest.json").read_text(encoding="utf-8"))["cases"]
    names = [str(entry.get("id") or entry.get("name") or entry["case"]) for entry in entries]
    assert len(set(names)) == len(names)
    return {name: GoldenCase(method, name, entry) for name, entry in zip(names, entries, strict=True)}


def golden_case(method: str, name: str) -> GoldenCase:
    """One case; a test names it by a whole string literal, in this call or in its parameters."""
    return golden_manifest(method)[name]


def golden_file(method: str, file: str) -> dict[str, GoldenCase]:
    """All cases of one file, for a test that walks through them; both arguments are literals."""
    found = {name: case for name, case in golden_manifest(method).items() if case.entry["file"] == file}
    assert found
    return found
