"""What a wrong call of the analyses says: what is wrong, where, and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import toolkit as tk
from toolkit.errors import ToolkitError
from toolkit.features.arrays import MemoryArrays
from toolkit.features.store import Features

SIZE = 16


def scan(scale: float = 1.0, count: int = 3) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    label = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    label[:, 4:9, 4:9] = 1
    image = torch.randn(count, 1, SIZE, SIZE, generator=random) * scale
    return {"image": image, "label": label, "classes": {0: "background", 1: "LV", 2: "RV"}}


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return tk.unet(1, 3, channels=(4, 8)).eval()


@pytest.fixture(scope="module")
def store(net: torch.nn.Module) -> Callable[..., Features]:
    def make(layers: str = "bottleneck", scale: float = 1.0, **options: Any) -> Features:
        return tk.extract(net, scan(scale), layers, **{"pool": "voxels", "samples": 6, **options})

    return make


def spoilt(features: Features, **rows: torch.Tensor) -> Features:
    values = {(name, "rows"): value for name, value in rows.items()}
    tables = {"cases": features.cases.head(len(next(iter(rows.values())))).to_dict("records"), "images": []}
    return Features(list(rows), MemoryArrays(values, tables), dict(features.provenance))


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(ToolkitError) as error:
        call()
    assert error.value.what
    assert error.value.fix or error.value.where
    return str(error.value)


def test_an_unknown_layer_offers_the_nearest(net: torch.nn.Module, store: Callable[..., Features]) -> None:
    image = scan()["image"]
    for call in (
        lambda: tk.grad_cam(net, image, "bottelneck", 1),
        lambda: tk.extract(net, image, "bottelneck", pool="global"),
        lambda: tk.mask_latent(net, image, layer="bottelneck"),
        lambda: tk.attribute(net, image, "layer_conductance", 1, layer="bottelneck"),
        lambda: tk.channel_similarity(store(), "bottelneck"),
        lambda: tk.project([store()], "bottelneck"),
        lambda: tk.drift([store(), store()], "bottelneck"),
        lambda: tk.collapse(store(), "bottelneck"),
        lambda: tk.layer_similarity(store(), layers_a=["bottelneck"]),
    ):
        message = said(call)
        assert "'bottelneck'" in message
        assert "bottleneck" in message.replace("bottelneck", "")


def test_an_absent_class_lists_those_there_are(net: torch.nn.Module) -> None:
    for wanted, named in (("left ventricle", "1: LV"), (7, "2: RV")):
        for call in (
            lambda w=wanted: tk.grad_cam(net, scan(), "bottleneck", w),
            lambda w=wanted: tk.attribute(net, scan(), "saliency", tk.Region(w)),
        ):
            message = said(call)
            assert f"no class {wanted!r}" in message
            assert named in message


def test_an_empty_region_says_what_else_to_ask(net: torch.nn.Module) -> None:
    for call in (
        lambda: tk.grad_cam(net, scan(), "bottleneck", tk.Region("RV", inside="reference")),
        lambda: tk.attribute(net, scan(), "saliency", tk.Region("RV", inside="reference")),
    ):
        message = said(call)
        assert "empty in every image" in message
        assert "ClassSum" in message


def test_stores_that_differ_say_in_what(store: Callable[..., Features]) -> None:
    assert "holds no layer" in said(lambda: tk.drift([store("encoder.1"), store()], "bottleneck")).replace(
        "hold no", "holds no"
    )
    assert "samples is 6 there and 5 here" in said(lambda: tk.drift([store(), store(samples=5)], "bottleneck"))
    assert "seed is 0 there and 1 here" in said(lambda: tk.drift([store(), store(seed=1)], "bottleneck"))
    assert "pool is 'voxels' there" in said(lambda: tk.drift([store(), store(pool="per-class")], "bottleneck"))
    for call in (
        lambda: tk.drift([store(), store(scale=2.0)], "bottleneck"),
        lambda: tk.layer_similarity(store(), store(scale=2.0)),
    ):
        assert "other data" in said(call)
    tk.drift([store(), store(batch_size=1)], "bottleneck")  # the same data in other batches is the same data


def test_nan_features_are_counted_and_placed(store: Callable[..., Features]) -> None:
    rows = store().rows("bottleneck").clone()
    rows[4, 1] = torch.nan
    bad = spoilt(store(), bottleneck=rows)
    for call in (
        lambda: tk.drift([store(), bad], "bottleneck"),
        lambda: tk.project([bad], "bottleneck"),
        lambda: tk.collapse(bad, "bottleneck"),
        lambda: tk.layer_similarity(bad),
        lambda: tk.classifier_variability(bad, "bottleneck", bootstraps=2),
    ):
        message = said(call)
        assert "1 of 36 feature rows" in message
        assert "row 4" in message


def test_too_few_rows_say_how_many_are_needed(store: Callable[..., Features]) -> None:
    few = spoilt(store(), bottleneck=store().rows("bottleneck")[:2])
    for call in (
        lambda: tk.drift([few, few], "bottleneck"),
        lambda: tk.collapse(few, "bottleneck"),
        lambda: tk.layer_similarity(few),
        lambda: tk.gaussianity(few, "bottleneck"),
    ):
        message = said(call)
        assert "2 rows" in message
        assert "few" in message or "at least" in message


def test_a_list_of_the_wrong_things_is_named_by_what_it_holds(store: Callable[..., Features]) -> None:
    assert "not a list of Features, NoneType." in said(lambda: tk.drift([store(), None], "bottleneck"))
