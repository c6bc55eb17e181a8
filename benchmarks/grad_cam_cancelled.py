"""Where Grad-CAM's mean gradient cancels: many networks, each map against that of the same weights with another padding.

    scripts/launch python benchmarks/grad_cam_cancelled.py [--steps 120]

Writes benchmarks/results/grad_cam_cancelled.json and docs/images/grad_cam_cancelled.png; see
docs/grad_cam_and_instance_norm.md. A map that says what a network uses hardly changes when zeros outside the image are
replaced by its edge values; a map that is made of the zeros outside the image does.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import toolkit as tk
from toolkit.explain.cam_maps import CANCELLED_BELOW
from toolkit.features.modules import named
from toolkit.features.trace import trace_calls

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "grad_cam_cancelled.json"
PICTURE = ROOT / "docs" / "images" / "grad_cam_cancelled.png"
MOST_LAYERS = 24


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Small networks of the field, 1 channel in, 4 classes out."""
    from monai.networks import nets

    four = (16, 32, 64, 128)
    kernels, strides = [3] * 4, [1, 2, 2, 2]
    return {
        "toolkit U-Net, instance": lambda: tk.unet(1, 4),
        "toolkit U-Net, batch": lambda: tk.unet(1, 4, norm="batch"),
        "toolkit U-Net, group": lambda: tk.unet(1, 4, norm="group"),
        "MONAI BasicUNet, instance": lambda: nets.BasicUNet(2, 1, 4, features=(16, 16, 32, 64, 128, 16)),
        "MONAI BasicUNet, batch": lambda: nets.BasicUNet(2, 1, 4, features=(16, 16, 32, 64, 128, 16), norm="batch"),
        "MONAI UNet, instance": lambda: nets.UNet(2, 1, 4, four, (2, 2, 2), num_res_units=2),
        "MONAI DynUNet, instance": lambda: nets.DynUNet(2, 1, 4, kernels, strides, strides[1:], filters=list(four)),
        "MONAI SegResNet, group": lambda: nets.SegResNet(2, 8, 1, 4),
        "MONAI AttentionUnet, batch": lambda: nets.AttentionUnet(2, 1, 4, four, (2, 2, 2)),
        "MONAI UNet++, instance": lambda: nets.BasicUNetPlusPlus(2, 1, 4, features=(8, 8, 16, 32, 64, 8)),
        "MONAI SwinUNETR, instance": lambda: nets.SwinUNETR(
            1, 4, feature_size=12, spatial_dims=2, depths=(1,) * 4, num_heads=(1, 2, 4, 8)
        ),
        "MONAI UNETR, instance": lambda: nets.UNETR(
            1, 4, (96, 96), feature_size=8, hidden_size=96, mlp_dim=192, num_heads=4, spatial_dims=2
        ),
        "MONAI VNet, batch": lambda: nets.VNet(2, 1, 4),
        "MONAI HighResNet, batch": lambda: nets.HighResNet(2, 1, 4, layer_params=high_res_layers()),
        "SelfReg's U-Net, batch": lambda: tk.self_reg_unet(1, 4, width=8),
    }


def high_res_layers() -> list[dict[str, Any]]:
    """HighResNet's own layers with half the features: it never leaves the image's resolution."""
    from monai.networks.nets.highresnet import DEFAULT_LAYER_PARAMS_3D

    return [
        {key: value // 2 if key == "n_features" else value for key, value in layer.items()}
        for layer in DEFAULT_LAYER_PARAMS_3D
    ]


def padded(network: nn.Module, mode: str) -> nn.Module:
    """A copy whose convolutions pad with edge values ("replicate") or around the image ("circular")."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.padding_mode = mode
    return other


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean over images of Pearson's correlation of two maps; NaN where one is constant."""
    found = [float(np.corrcoef(a.flatten(), b.flatten())[0, 1]) for a, b in zip(first, second, strict=True)]
    return float(np.mean(found))


def block_names(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Blocks (modules with parts) that return maps of more than one voxel; at most `MOST_LAYERS`, evenly chosen."""
    modules = named(network)
    names = [
        str(call.name)
        for call in trace_calls(network, [image]).calls
        if len(call.shape) == 4 and min(call.shape[2:]) > 1 and call.name.call == 1 and call.shape[2] == call.shape[3]
        if any(True for _ in modules[call.name.path].children())
    ]
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, MOST_LAYERS).round().astype(int))]


def measure(name: str, network: nn.Module, cases: Sequence[Any], steps: int) -> list[dict[str, Any]]:
    """One row a layer: the share its mean gradient keeps, and how the maps change with the padding."""
    network = network.eval()
    target = tk.Region("LV", inside="reference")
    layers = block_names(network, torch.from_numpy(np.asarray(cases[0].image))[None])
    both = ["grad_cam", "hires_cam"]
    own = tk.grad_cam(network, cases, layers, target, method=both)
    edge = tk.grad_cam(padded(network, "replicate"), cases, layers, target, method=both)
    around = tk.grad_cam(padded(network, "circular"), cases, layers, target)
    same = float((own.prediction == edge.prediction).float().mean())
    hires = own.by_method("hires_cam"), edge.by_method("hires_cam")
    rows = []
    for layer in layers:
        share = own.net_gradient[layer]
        rows.append(
            {
                "network": name,
                "steps": steps,
                "layer": layer,
                "side": own[layer].shape[-1],
                "net_gradient_min": min(share),
                "net_gradient_max": max(share),
                "images": len(cases),
                "grad_cam": correlation(own[layer], edge[layer]),
                "hires_cam": correlation(hires[0][layer], hires[1][layer]),
                "circular_max": float(around[layer].abs().amax() / own[layer].abs().amax().clamp_min(1e-38)),
                "same_prediction": same,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers below and above the bound, by norm: how many, how many of them change with the padding, medians."""
    found = []
    for norm in ("instance", "group", "batch"):
        for below in (True, False):
            mine = [r for r in rows if r["network"].endswith(norm) and np.isfinite(r["grad_cam"])]
            mine = [r for r in mine if (r["net_gradient_min"] < CANCELLED_BELOW) == below]
            medians = {key: round(float(np.median([r[key] for r in mine])), 2) for key in ("grad_cam", "hires_cam")}
            changed = sum(r["grad_cam"] < 0.5 for r in mine)
            found.append(
                {"norm": norm, "below": below, "layers": len(mine), "correlation_below_half": changed, **medians}
            )
    return found


def trained_copy(network: nn.Module, task: Any, steps: int) -> nn.Module:
    """The network after a short training."""
    config = tk.TrainConfig(steps=steps, batch_size=8, seed=0, validate_every=0, checkpoint_every=0, select="last")
    with tempfile.TemporaryDirectory() as folder:
        return tk.train(network, task, config=config, out=f"{folder}/run", progress=False).model


def picture(rows: list[dict[str, Any]], network: nn.Module, cases: Sequence[Any]) -> None:
    """The default U-Net's maps with two paddings, and every layer of every network."""
    from matplotlib import pyplot as plt

    layers = ["encoder.1", "encoder.2", "encoder.3", "decoder.1"]
    target = tk.Region("LV", inside="reference")
    edge = padded(network, "replicate")
    one = [tk.grad_cam(n, cases[:1], layers, target, method=["grad_cam", "hires_cam"]) for n in (network, edge)]
    lines = [
        ("Grad-CAM, zero padding", one[0]),
        ("Grad-CAM, replicate padding", one[1]),
        ("HiResCAM, zero padding", one[0].by_method("hires_cam")),
        ("HiResCAM, replicate padding", one[1].by_method("hires_cam")),
    ]
    figure = plt.figure(figsize=(13.5, 6.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.05, 1])
    axes = left.subplots(4, 5)
    for line, (title, result) in zip(axes, lines, strict=True):
        line[0].imshow(cases[0].image[0], cmap="gray")
        line[0].contour(cases[0].label == 3, levels=[0.5], colors="tab:orange", linewidths=1)
        line[0].set_ylabel(title.replace(", ", ",\n"), fontsize=8)
        for axis, layer in zip(line[1:], layers, strict=True):
            values = result[layer][0, 0]
            top = float(values.abs().max())
            axis.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            axis.set_title(f"{layer}: {result.status[layer][0]}\n±{top:.1g}", fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    left.suptitle("tk.unet (instance norm), LV; colours stretched here to show what a cancelled map is", fontsize=9)
    axis = right.subplots()
    for words, colour in (("instance", "tab:red"), ("group", "tab:orange"), ("batch", "tab:blue")):
        for trained, marker in ((True, "o"), (False, "x")):
            mine = [row for row in rows if row["network"].endswith(words) and (row["steps"] > 0) == trained]
            x = [max(row["net_gradient_min"], 1e-8) for row in mine]
            label = f"{words} norm, {'trained' if trained else 'at the start'}"
            axis.plot(x, [row["grad_cam"] for row in mine], marker, color=colour, ms=5, alpha=0.7, label=label)
    axis.axvline(CANCELLED_BELOW, color="black", lw=1, ls="--")
    axis.text(CANCELLED_BELOW, -0.95, " bound of the status", fontsize=8)
    axis.set(
        xscale="log", ylim=(-1.05, 1.05), xlabel="sum of |mean gradient| / sum of mean |gradient| (smallest image)"
    )
    axis.set_ylabel("correlation of the Grad-CAM maps with zero and replicate padding")
    axis.legend(fontsize=8, loc="lower left")
    axis.set_title(f"blocks of {len({row['network'] for row in rows})} networks", fontsize=9)
    figure.savefig(PICTURE, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write; all networks in one go, so that the file comes from one state of the code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args(arguments)
    task = tk.load_task("phantom-cardiac")
    cases = [case for case in task.cases("test", site="A") if (np.asarray(case.label) == 3).sum() > 60]
    cases = [cases[i] for i in np.linspace(0, len(cases) - 1, 12).round().astype(int)]
    rows: list[dict[str, Any]] = []
    trained: dict[str, nn.Module] = {}
    for name, build in networks().items():
        start = time.monotonic()
        torch.manual_seed(0)
        network = build()
        rows += measure(name, network, cases, 0)
        trained[name] = trained_copy(network, task, options.steps)
        mine = measure(name, trained[name], cases, options.steps)
        rows += mine
        words = ", ".join(f"{row['layer']} {row['net_gradient_min']:.1e}/{row['grad_cam']:.2f}" for row in mine[:6])
        print(f"{name} ({time.monotonic() - start:.0f} s): {words}", flush=True)
    record = {"cases": len(cases), "bound": CANCELLED_BELOW, "torch": torch.__version__}
    RESULTS.write_text(json.dumps({**record, "summary": summary(rows), "rows": rows}, indent=1) + "\n")
    picture(rows, trained["toolkit U-Net, instance"].eval(), cases)


if __name__ == "__main__":
    main()
