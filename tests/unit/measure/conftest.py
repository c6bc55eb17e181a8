"""Features made from arrays, so that expected values can be computed from the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from toolkit.features.arrays import MemoryArrays
from toolkit.features.store import Features

NAMES = ("background", "RV", "LV")


def row_table(n: int, cases: int = 10, classes: int = 1, start: int = 0) -> pd.DataFrame:
    """`n` rows dealt out to cases, then to classes; two cases make a subject."""
    index = np.arange(n)
    case, label = start + index % cases, (index // cases) % classes
    frame = pd.DataFrame({"case": [f"case{c:03d}" for c in case], "volume": [f"case{c:03d}" for c in case]})
    frame["subject"] = [f"subject{c // 2:03d}" for c in case]
    return frame.assign(site="A", **{"class": label}, class_name=[NAMES[c] for c in label], count=1, index=index)


@pytest.fixture
def make_store() -> Callable[..., Features]:
    """make_store(rows or {layer: rows}, cases=10, classes=1, table=None, head=None, ...) -> Features."""

    def make(
        rows: Any,
        cases: int = 10,
        classes: int = 1,
        *,
        table: pd.DataFrame | None = None,
        head: Any = None,
        start: int = 0,
        **settings: Any,
    ) -> Features:
        layers = rows if isinstance(rows, dict) else {"head_input": rows}
        values = {(name, "rows"): torch.as_tensor(value).float() for name, value in layers.items()}
        number = len(next(iter(values.values())))
        table = row_table(number, cases, classes, start) if table is None else table
        arrays = MemoryArrays(values, {"cases": table.to_dict("records"), "images": []})
        return Features(list(layers), arrays, {"parameters": settings}, head)

    return make


@pytest.fixture
def make_image_store() -> Callable[..., Features]:
    """make_image_store(layer=activations (B, C, *S), ...) -> Features with moments."""

    def make(moments: bool = True, **images: torch.Tensor) -> Features:
        values = {}
        for name, image in images.items():
            flat = image.flatten(2).double()
            values[name, "rows"] = flat.mean(2).float()
            if moments:
                values[name, "gram"] = flat @ flat.transpose(1, 2)
                values[name, "sum"] = flat.sum(2)
                values[name, "count"] = torch.full((len(flat),), flat.shape[-1])
        table = row_table(len(next(iter(images.values()))))
        return Features(list(images), MemoryArrays(values, {"cases": table.to_dict("records"), "images": []}), {})

    return make
