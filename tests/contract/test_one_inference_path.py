"""Every public call that takes a model runs it alike: the labels behind a map, a score and a prediction are one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toolkit as tk
from toolkit.inference.memory import remember
from toolkit.models.unet import unet

CLASSES = {0: "background", 1: "a", 2: "b"}
REGIONS = {"whole": (1, 2), "core": (2,)}


@dataclasses.dataclass
class Both:
    features: Tensor
    logits: Tensor


class Returning(nn.Module):
    """A small U-Net without a declared divisor, in a form of output of its own."""

    def __init__(self, form: str, dims: int, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.inside = form, unet(1, outputs, channels=(4, 8), dims=dims)

    def forward(self, x: Tensor) -> Any:
        logits = self.inside(x)
        wrong = -logits
        return {
            "tensor": lambda: logits,
            "dict": lambda: {"features": torch.cat((wrong, wrong), 1), "logits": logits},
            "dataclass": lambda: Both(torch.cat((wrong, wrong), 1), logits),
            "list": lambda: [logits, F.avg_pool2d(wrong, 2) if wrong.ndim == 4 else F.avg_pool3d(wrong, 2)],
            "equal heads": lambda: [wrong, logits],
            "recon and seg": lambda: {"recon": x, "seg": logits},
        }[self.form]()


SETTINGS: list[tuple[str, int, tuple[int, ...], dict[str, Any]]] = [
    ("tensor", 2, (13, 11), {"divisor": 2}),
    ("dict", 2, (13, 11), {"divisor": 2}),
    ("dataclass", 2, (13, 11), {"divisor": 2}),
    ("list", 2, (12, 10), {"divisor": 2}),
    ("equal heads", 2, (13, 11), {"divisor": 2}),
    ("recon and seg", 2, (13, 11), {"divisor": 2, "select": "seg"}),
    ("tensor", 3, (7, 6, 5), {"divisor": 2}),
    ("dict", 2, (21, 13), {"divisor": 2, "patch_size": (8, 8)}),
    ("regions", 2, (13, 11), {"divisor": 2}),
    ("bfloat16", 2, (13, 11), {"divisor": 2}),
]


def case_of(dims: int, size: tuple[int, ...]) -> Any:
    drawn = np.random.default_rng(0)
    label = drawn.integers(0, 3, size).astype("u1")
    image = (label + drawn.normal(size=size)).astype("f4")
    task = tk.task_from_arrays([image], [label], classes=CLASSES, splits=["test"], normalisation="none", dims=dims)
    return task.cases("test")[0]


def by_hand(network: nn.Module, case: Any, options: dict[str, Any]) -> Tensor:
    """Labels by MONAI's sliding window on an image that is padded here."""
    from monai.inferers import sliding_window_inference

    image = case.image[None]
    patch = options.get("patch_size", (0,) * len(image.shape[2:]))
    sides = [max(p, s) if p else s + s % 2 for p, s in zip(patch, image.shape[2:], strict=True)]
    pads = [
        ((whole - side) // 2, whole - side - (whole - side) // 2)
        for side, whole in zip(image.shape[2:], sides, strict=True)
    ]
    flat = [n for pair in reversed(pads) for n in pair]
    padded = F.pad(image, flat, value=float(image.min()))
    inside = network.inside if isinstance(network, Returning) else network
    kind = next(inside.parameters()).dtype
    with torch.no_grad():
        run: Callable[[Tensor], Tensor] = lambda x: inside(x.to(kind)).float()  # noqa: E731
        logits = (
            run(padded) if not any(patch) else sliding_window_inference(padded, patch, 4, run, 0.5, mode="gaussian")
        )
    assert isinstance(logits, Tensor)
    logits = logits[
        (..., *(slice(before, before + side) for (before, _), side in zip(pads, image.shape[2:], strict=True)))
    ]
    return (logits > 0).to(torch.uint8)[0] if inside.head.out_channels == 2 else logits.argmax(1)[0].to(torch.uint8)


@pytest.mark.parametrize(("form", "dims", "size", "options"), SETTINGS)
def test_one_array_of_labels(form: str, dims: int, size: tuple[int, ...], options: dict[str, Any]) -> None:
    network = Returning(
        "tensor" if form in ("regions", "bfloat16") else form, dims, 2 if form == "regions" else 3
    ).eval()
    if form == "bfloat16":
        network = network.bfloat16()
    if form == "regions":
        remember(network, regions=REGIONS)
    case = case_of(dims, size)
    expected = by_hand(network, case, options)
    index = 0 if form == "regions" else int(expected.flatten().mode().values)
    target = tk.ClassSum(index)
    layer = "inside.decoder.1"
    assert torch.equal(tk.predict(network, case, **options), expected)
    cam = tk.grad_cam(network, case, layer, target, **options)
    assert torch.equal(cam.prediction[0], expected)
    assert cam.resized(layer).shape[2:] == case.image.shape[1:]
    for method, more in (("saliency", {}), ("layer_conductance", {"layer": layer, "steps": 2})):
        found = tk.attribute(network, case, method, target, **more, **options)
        assert torch.equal(found.prediction[0], expected)
        assert found.resized(next(iter(found.attributions))).shape[2:] == case.image.shape[1:]
    masked = tk.mask_latent(network, case, layer="inside.bottleneck", fraction=0.0, **options)
    assert torch.equal(masked.segmentation[0][0].to(torch.uint8), expected)
    assert torch.equal(masked.segmentation[1], masked.segmentation[0])  # nothing is masked
    rest = {name: value for name, value in options.items() if name != "patch_size"}
    tk.faithfulness(network, cam, target, steps=2, orders=1, perturbations=0, **rest)
    tk.randomised_weights(network, case, layer, target, draws=1, **options)
    features = tk.extract(network, case, [layer, "head_input"], pool="per-class", **options)
    assert torch.isfinite(features.rows(layer)).all()
    if len(tk.layers(network, case, **rest)):
        scores = tk.evaluate(network, [case], metrics=("dice",), **options).set_index("class")["value"]
    label = case.label
    names = REGIONS if form == "regions" else {name: (i,) for i, name in CLASSES.items() if i}
    for row, (name, classes) in enumerate(names.items()):
        truth = torch.isin(label, torch.tensor(classes))
        mask = expected[row] > 0 if form == "regions" else expected == classes[0]
        both = int(truth.sum() + mask.sum())
        assert scores[name] == pytest.approx(2 * int((truth & mask).sum()) / both if both else float("nan"), abs=1e-6)
