"""Grad-CAM of nine layers in one call, against the same maps from other libraries, one layer at a time and at once.

Network: U-Net 16-32-64-128-128 (nine blocks), 16 images of 96 x 96, score = logits of one class, summed. The maps are
checked to be equal before anything is timed.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from interleave import medians, row
from torch import Tensor

from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import ClassSum
from toolkit.models.unet import unet

LAYERS = [*(f"encoder.{k}" for k in (1, 2, 3, 4)), "bottleneck", *(f"decoder.{k}" for k in (4, 3, 2, 1))]
CLASS = 2


def toolkit_maps(model: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
    return dict(grad_cam(model, images, LAYERS, ClassSum(CLASS), batch_size=len(images)))


def captum_maps(model: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
    from captum.attr import LayerGradCam

    def score(x: Tensor) -> Tensor:
        return model(x).sum((2, 3))

    return {
        name: LayerGradCam(score, model.get_submodule(name)).attribute(images, target=CLASS).detach() for name in LAYERS
    }


def monai_one_pass(hooked: Any, images: Tensor) -> dict[str, Tensor]:
    _, activations, gradients = hooked(images, class_idx=CLASS)
    return {
        name: (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).detach()
        for name, activation, gradient in zip(LAYERS, activations, gradients, strict=True)
    }


def forward_and_backward(model: torch.nn.Module, images: Tensor) -> Tensor:
    """What the maps cannot do without: one forward pass, and one backward pass down to the first of the layers."""
    kept: list[Tensor] = []
    handle = model.get_submodule(LAYERS[0]).register_forward_hook(lambda *call: kept.append(call[2]))
    score = model(images)[:, CLASS].sum()
    handle.remove()
    return torch.autograd.grad(score, kept)[0]


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest absolute difference over the largest value, over all layers."""
    return max(float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max()) for name in LAYERS)


def pytorch_grad_cam_arm(model: torch.nn.Module, images: Tensor) -> Any:
    """A call with all layers in one pass, or None if the library cannot be imported here."""
    try:
        library = importlib.import_module("pytorch_grad_cam")
    except (ImportError, RuntimeError):
        return None
    network = copy.deepcopy(model)

    def score(logits: Tensor) -> Tensor:
        return logits[CLASS].sum()

    cam = library.GradCAM(network, [network.get_submodule(name) for name in LAYERS])

    def run() -> object:
        cam.activations_and_grads.activations, cam.activations_and_grads.gradients = [], []
        cam.outputs = cam.activations_and_grads(images)
        cam.model.zero_grad()
        sum(score(one) for one in cam.outputs).backward()
        return cam.compute_cam_per_layer(images, [score] * len(images), False)

    return run


def rows(threads: int, clock: str, rounds: int) -> list[dict[str, Any]]:
    from monai.visualize import GradCAM
    from monai.visualize.class_activation_maps import ModelWithHooks

    torch.manual_seed(0)
    model = unet(1, 4, channels=(16, 32, 64, 128, 128)).eval()
    images = torch.randn(16, 1, 96, 96)
    # MONAI leaves its hooks on the network, so every object gets a copy of its own, made outside of the clock.
    single = {name: GradCAM(copy.deepcopy(model), name, postprocessing=lambda x: x) for name in LAYERS}
    hooked = ModelWithHooks(copy.deepcopy(model), LAYERS, register_forward=True, register_backward=True)
    ours = toolkit_maps(model, images)
    differences = {
        "captum": largest_difference(ours, captum_maps(model, images)),
        "MONAI": largest_difference(ours, monai_one_pass(hooked, images)),
    }
    for name, difference in differences.items():
        if difference > 1e-5:
            raise SystemExit(f"The maps differ from {name}'s by {difference:.2g} of their range: nothing to compare.")
    arms: dict[str, Any] = {
        "toolkit": lambda: toolkit_maps(model, images),
        "captum, nine calls": lambda: captum_maps(model, images),
        "MONAI GradCAM, nine calls": lambda: [cam(images, class_idx=CLASS) for cam in single.values()],
        "MONAI ModelWithHooks, one pass": lambda: monai_one_pass(hooked, images),
    }
    bare = "one forward and backward pass"
    arms[bare] = lambda: forward_and_backward(model, images)
    other = pytorch_grad_cam_arm(model, images)
    if other is not None:
        arms["pytorch-grad-cam, one pass"] = other
    seconds = medians(arms, rounds, clock)
    floors = {
        "captum, nine calls": 6.0,
        "MONAI GradCAM, nine calls": 10.0,
        "MONAI ModelWithHooks, one pass": 1.2,
        "pytorch-grad-cam, one pass": 1.2,
    }
    table = [
        row(
            f"nine-layer Grad-CAM against {name}",
            seconds[name] / seconds["toolkit"],
            floor,
            seconds=seconds[name],
            toolkit_seconds=seconds["toolkit"],
            largest_relative_difference=differences[name.split(",")[0].split(" ")[0]],
        )
        for name, floor in floors.items()
        if name in seconds and name.split(",")[0].split(" ")[0] in differences
    ]
    table.append(
        row(
            f"{bare}, as a share of nine-layer Grad-CAM",
            seconds[bare] / seconds["toolkit"],
            round(1 / 1.15, 3),
            seconds=seconds[bare],
            toolkit_seconds=seconds["toolkit"],
        )
    )
    if other is not None:
        name = "pytorch-grad-cam, one pass"
        table.append(row(f"nine-layer Grad-CAM against {name}", seconds[name] / seconds["toolkit"], floors[name]))
    return table
