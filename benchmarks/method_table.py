"""Table of the methods, made by running one training step of each: docs/costs.md.

    python benchmarks/method_table.py                # what runs where, extra parameters and passes
    python benchmarks/method_table.py --measure      # and first what they cost (method_costs.py); needs a quiet machine

A method counts as running in 2D, 3D, on a convolutional network, on a transformer or in mixed precision (bf16) if a step
of it there gives a finite loss and finite gradients. Extra parameters and passes are counted, not stated: passes by how
often the first layer of a network runs, of earlier networks too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleave import CLOCKS, machine
from method_costs import earlier, elastic, measure, step_times, taught
from method_costs import lines as cost_lines
from notebook_times import section
from torch import nn

from toolkit.errors import ToolkitError
from toolkit.methods.latent_augmentation.image_baselines import (
    AdversarialBias,
    AdversarialNoise,
    RandomConvolution,
    RandomWindows,
)
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.swin_unet import swin_unet
from toolkit.models.unet import unet
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

OUT = Path(__file__).parents[1] / "docs" / "costs.md"
README = OUT.parents[1] / "README.md"
MARKS = ("<!-- methods: made by benchmarks/method_table.py -->", "<!-- end of methods -->")
CLASSES = 3
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    "2D": lambda large: unet(1, CLASSES, channels=(16, 32, 64, 128) if large else (4, 8, 8)),
    "3D": lambda large: unet(1, CLASSES, channels=(4, 8, 8), dims=3),
    "transformer": lambda large: swin_unet(1, CLASSES, width=12, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4),
    "codes": lambda large: fast_slow_network(1, CLASSES, width=16 if large else 2),
    "codes 3D": lambda large: fast_slow_network(1, CLASSES, width=2, dims=3),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A regularizer made for a network; `codes` if it needs a network with codes."""

    name: str
    make: Callable[[nn.Module], Regularizer]
    codes: bool = False
    cost: str = ""  # its row in method_costs

    def kinds(self) -> dict[str, str]:
        """Column of the table: network it is tried on."""
        if self.codes:
            return {"2D": "codes", "3D": "codes 3D", "CNN": "codes", "transformer": "transformer"}
        return {"2D": "2D", "3D": "3D", "CNN": "2D", "transformer": "transformer"}


METHODS = (
    Method("SegReg", lambda network: SegReg(), cost="SegReg, K 256"),
    Method("SelfReg", taught, cost="SelfReg (SCR + IFD)"),
    Method("latent augmentation", lambda network: LatentAugmentation(), codes=True, cost="cooperative, both targeted"),
    Method("random windows", lambda network: RandomWindows(), codes=True, cost="random windows"),
    Method("random convolution", lambda network: RandomConvolution(), codes=True, cost="random convolution"),
    Method("adversarial noise", lambda network: AdversarialNoise(), codes=True, cost="adversarial noise"),
    Method("adversarial bias", lambda network: AdversarialBias(), codes=True, cost="adversarial bias"),
    Method("dispersive", lambda network: Dispersive(), cost="dispersive, pooled"),
    Method("EWC", elastic, cost="EWC"),
    Method("LwF, one earlier task", earlier, cost="LwF, one earlier task"),
)


def batch(dims: int, side: int, images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (images, 1, *[side] * dims)
    label = torch.randint(0, CLASSES, shape, generator=generator)
    return {"image": (label + torch.rand(shape, generator=generator)) / CLASSES, "label": label}


def prepared(kind: str, method: Method | None, large: bool = False) -> tuple[nn.Module, TrainingStep]:
    torch.manual_seed(0)
    network = NETWORKS[kind](large)
    objective: Objective = FastSlowObjective() if kind.startswith("codes") else SegmentationObjective()
    return network, TrainingStep(network, objective, () if method is None else (method.make(network),))


def one_step(step: TrainingStep, data: dict[str, torch.Tensor], mixed: bool = False) -> float:
    """Forward and backward of every part; the loss."""
    loss = 0.0
    for part in range(step.parts(0)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            total = step(data, part=part).total
        total.backward()
        loss += total.item()
    return loss


def runs(method: Method, kind: str, mixed: bool = False) -> bool:
    """Whether a step of the method there is finite; a network it refuses does not count as an error."""
    dims = 3 if kind.endswith("3D") else 2
    try:
        network, step = prepared(kind, method)
        loss = one_step(step, batch(dims, 16 if dims == 3 else 64 if kind == "transformer" else 32, 2), mixed)
    except ToolkitError:
        return False
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return bool(torch.isfinite(torch.tensor(loss))) and all(g.isfinite().all() for g in gradients)


def extra_parameters(method: Method) -> int:
    """Parameters of the step that are not the network's."""
    network, step = prepared(method.kinds()["2D"], method)
    return sum(p.numel() for p in step.parameters()) - sum(p.numel() for p in network.parameters())


def first_layer_runs(kind: str, method: Method | None) -> int:
    """How often the first convolution runs in a step, in copies of the network too (hooks are copied with them)."""
    network, step = prepared(kind, method)
    count = [0]
    first = next(m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    first.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    one_step(step, batch(2, 32, 2))
    return count[0]


def table() -> list[str]:
    """Lines of the Markdown table."""
    places = ["2D", "3D", "CNN", "transformer"]
    head = ["method", *places, "mixed precision", "extra parameters", "extra passes", "step time"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    times = step_times()
    for method in METHODS:
        kinds = method.kinds()
        cells: list[Any] = ["yes" if runs(method, kinds[place]) else "no" for place in places]
        cells.append("yes" if runs(method, kinds["2D"], mixed=True) else "no")
        cells.append(extra_parameters(method))
        cells.append(first_layer_runs(kinds["2D"], method) - first_layer_runs(kinds["2D"], None))
        cells.append(times.get(method.cost, "not measured"))
        lines.append("| " + " | ".join(map(str, [method.name, *cells])) + " |")
    return lines


def put_into(path: Path, table_lines: list[str]) -> None:
    """Replace what stands between the marks in a page; a page without marks is left alone."""
    text = path.read_text(encoding="utf-8")
    if all(mark in text for mark in MARKS):
        before, rest = text.split(MARKS[0], 1)
        _, after = rest.split(MARKS[1], 1)
        path.write_text(
            "\n".join([f"{before}{MARKS[0]}", "", *table_lines, "", f"{MARKS[1]}{after}"]), encoding="utf-8"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        measure(None, options.rounds, options.clock, options.threads)
    found = ", ".join(f"{key} {value}" for key, value in machine(options.threads, options.clock).items())
    costs, methods = cost_lines(), table()
    lines = [
        "# Methods",
        "",
        "Written by `python benchmarks/method_table.py`; every cell is the outcome of a training step that was run.",
        "Step time: multiples of the plain step on the same network, see below. Passes are runs of the first layer besides the plain step's, of searches and of earlier networks too.",
        "Latent augmentation and the four image-space methods need a network with codes, as `toolkit.fast_slow_network`.",
        "SegReg's loss is our inference from the public parts of the paper.",
        "",
        *methods,
        "",
        f"{found}.",
        "",
        "## What they cost",
        "",
        "Written by `python benchmarks/method_table.py --measure`: multiples of the plain step on the same network, forward and",
        "backward without the optimizer, all arms in turns in one process. Numbers: `benchmarks/results/method_costs.json`.",
        "",
        *(costs or ["Not measured yet."]),
        "",
        *section(),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.out == OUT:
        put_into(README, methods)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
