"""A stand-in for stored features: rows, a row table and moments, made from arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor


@dataclasses.dataclass
class Store:
    """What the measures ask of stored features."""

    data: dict[str, Tensor]
    cases: pd.DataFrame
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    head_weights: Tensor | None = None

    @property
    def layers(self) -> list[str]:
        return list(self.data)

    def rows(self, layer: str) -> Tensor:
        return self.data[layer]

    def moments(self, layer: str) -> dict[str, Tensor] | None:
        if layer not in self.images:
            return None
        flat = self.images[layer].flatten(2).double()
        count = torch.full((len(flat),), float(flat.shape[-1]))
        return {"gram": flat @ flat.transpose(1, 2), "sum": flat.sum(2), "count": count}


def row_table(n: int, cases: int = 10, classes: int = 1) -> pd.DataFrame:
    """`n` rows dealt out to cases, then to classes."""
    index = np.arange(n)
    case, label = index % cases, (index // cases) % classes
    frame = pd.DataFrame({"case": [f"case{c:03d}" for c in case], "class": label, "index": index})
    return frame.assign(
        volume=frame["case"], site="A", class_name=[("background", "RV", "LV")[c] for c in label]
    )


@pytest.fixture
def make_store() -> Callable[..., Store]:
    """make_store(rows, cases=10, classes=1, layer="head_input") -> Store."""

    def make(
        rows: Tensor | np.ndarray, cases: int = 10, classes: int = 1, layer: str = "head_input"
    ) -> Store:
        tensor = torch.as_tensor(rows).float()
        return Store({layer: tensor}, row_table(len(tensor), cases, classes))

    return make


@pytest.fixture
def make_image_store() -> Callable[..., Store]:
    """make_image_store(layer=activations, ...) -> Store with moments."""

    def make(**images: Tensor) -> Store:
        rows = {
            name: image.flatten(2).transpose(1, 2).reshape(-1, image.shape[1])
            for name, image in images.items()
        }
        return Store(rows, row_table(len(next(iter(rows.values())))), images=images)

    return make
