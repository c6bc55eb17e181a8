"""Step time and peak memory of each method against the plain step on the same network, with the bars they must keep.

    scripts/launch python benchmarks/method_costs.py [--threads 1] [--clock cpu] [--rounds 5] [--only selfreg]

One process, arms in turns, the fastest of the rounds (other programs only ever slow a step down); a step is forward and backward of every part, without the optimizer, so a method's
share is not watered down. Memory is the peak of what torch allocates on top of the parameters during one step. On
CUDA where there is a device (then by the wall clock), else on the CPU; each entry names it. Written
to `benchmarks/results/method_costs.json`; `method_table.py` prints it. On a busy machine use the CPU clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from interleave import CLOCKS, machine
from segreg_step import direct_formula, peak_bytes
from torch import nn

from toolkit.features.epps_pulley import sliced_epps_pulley, unit_directions
from toolkit.files import write_atomically
from toolkit.methods.continual.strategies import ElasticWeights, LearningWithoutForgetting
from toolkit.methods.latent_augmentation.image_baselines import (
    AdversarialBias,
    AdversarialNoise,
    RandomConvolution,
    RandomWindows,
)
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.med_disseg import med_disseg
from toolkit.methods.med_disseg.objective import MedDisSegObjective
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.swin_unet import swin_unet
from toolkit.methods.selfreg.unet import self_reg_unet
from toolkit.models.unet import unet
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

RESULTS = Path(__file__).parent / "results" / "method_costs.json"
CLASSES = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods on one network; `bars` are the largest allowed multiples of the plain step's time."""

    network: Callable[[], nn.Module]
    objective: Callable[[], Objective]
    methods: dict[str, Callable[[nn.Module], Regularizer]]
    images: int
    side: int
    setting: str
    bars: dict[str, float] = dataclasses.field(default_factory=dict)


def taught(network: nn.Module) -> Regularizer:
    return SelfReg(groups=getattr(network, "selfreg_groups", None))


def elastic(network: nn.Module) -> Regularizer:
    regularizer = ElasticWeights()
    regularizer.remember(network, {name: torch.ones_like(p) for name, p in network.named_parameters()})
    return regularizer


def earlier(network: nn.Module) -> Regularizer:
    regularizer = LearningWithoutForgetting()
    regularizer.remember(network)
    return regularizer


def masked(scheme: str) -> Callable[[nn.Module], Regularizer]:
    return lambda network: LatentAugmentation(image_schemes=(scheme,), shape_schemes=(scheme,))


COMPARISONS = {
    "selfreg": Comparison(
        lambda: self_reg_unet(1, CLASSES),
        SegmentationObjective,
        {"SelfReg (SCR + IFD)": taught},
        1,
        224,
        "SelfReg-UNet's U-Net, width 64, 224 x 224, batch 1",
        {"SelfReg (SCR + IFD)": 1.10},
    ),
    "selfreg_swin": Comparison(
        lambda: swin_unet(1, CLASSES),
        SegmentationObjective,
        {"SelfReg (SCR + IFD), Swin": taught},
        1,
        224,
        "Swin-Unet, width 96, 224 x 224, batch 1",
    ),
    "segreg": Comparison(
        lambda: unet(1, CLASSES),
        SegmentationObjective,
        {"SegReg, K 64": lambda _: SegReg(directions=64), "SegReg, K 256": lambda _: SegReg()},
        12,
        160,
        "U-Net 16-32-64-128, 160 x 160, batch 12, N 4096",
        {"SegReg, K 64": 1.10},
    ),
    "dispersive": Comparison(
        lambda: unet(1, CLASSES),
        SegmentationObjective,
        {"dispersive, pooled": lambda _: Dispersive()},
        16,
        96,
        "U-Net 16-32-64-128, 96 x 96, batch 16",
        {"dispersive, pooled": 1.02},
    ),
    "dispersive_med_disseg": Comparison(
        lambda: med_disseg(3, 2, encoder_width=16, width=32),
        MedDisSegObjective,
        {"dispersive, pooled, Med-DisSeg": lambda _: Dispersive(tap="layer3", weight=0.6)},
        4,
        128,
        "Med-DisSeg stage 2, a quarter of its width, 128 x 128, batch 4",
        {"dispersive, pooled, Med-DisSeg": 1.02},
    ),
    "cooperative": Comparison(
        lambda: fast_slow_network(1, CLASSES),
        FastSlowObjective,
        {
            "cooperative, both targeted": masked("channel"),
            "cooperative, both dropout": masked("dropout"),
            "random windows": lambda _: RandomWindows(),
            "random convolution": lambda _: RandomConvolution(),
            "adversarial noise": lambda _: AdversarialNoise(),
            "adversarial bias": lambda _: AdversarialBias(),
        },
        2,
        192,
        "fast/slow network, width 16, 192 x 192, batch 2; plain = standard training",
        {"cooperative, both targeted": 2.4, "cooperative, both dropout": 2.4},
    ),
    "continual": Comparison(
        lambda: unet(1, CLASSES),
        SegmentationObjective,
        {"EWC": elastic, "LwF, one earlier task": earlier},
        12,
        160,
        "U-Net 16-32-64-128, 160 x 160, batch 12, one earlier task",
    ),
}


def batch(case: Comparison) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = 2 if case.objective is MedDisSegObjective else CLASSES
    label = torch.randint(0, classes, (case.images, 1, case.side, case.side), generator=generator)
    image = (label + torch.rand(label.shape, generator=generator)) / classes
    return {"image": (image.expand(-1, 3, -1, -1) if classes == 2 else image).to(DEVICE), "label": label.to(DEVICE)}


def arm(case: Comparison, make: Callable[[nn.Module], Regularizer] | None) -> Callable[[], None]:
    torch.manual_seed(0)
    network = case.network().to(DEVICE)
    step = TrainingStep(network, case.objective(), () if make is None else (make(network),))
    data = batch(case)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # gradients are no part of the peak, in any arm

    def run() -> None:
        for part in range(step.parts(0)):
            total = step(data, part=part).total
            assert total is not None
            total.backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def peak(run: Callable[[], None]) -> int:
    """Largest sum of memory allocated during one call, on top of what lay there before."""
    if DEVICE == "cpu":
        return peak_bytes(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def fastest(arms: Mapping[str, Callable[[], None]], rounds: int, clock: str) -> dict[str, float]:
    """Smallest seconds of every arm over the rounds, after one round to warm up; in each round every arm runs once."""
    now, seconds = CLOCKS[clock], dict.fromkeys(arms, math.inf)
    for turn in range(rounds + 1):
        for name, run in arms.items():
            start = now()
            run()
            if turn:
                seconds[name] = min(seconds[name], now() - start)
    return seconds


def compared(case: Comparison, rounds: int, clock: str) -> list[dict[str, Any]]:
    arms = {"plain": arm(case, None), **{name: arm(case, make) for name, make in case.methods.items()}}
    seconds = fastest(arms, rounds, clock)
    memory = {name: peak(run) for name, run in arms.items()}
    rows = []
    for name in case.methods:
        ratio, bar = seconds[name] / seconds["plain"], case.bars.get(name)
        rows.append(
            {
                "method": name,
                "setting": case.setting,
                "step_time": round(ratio, 3),
                "bar": bar,
                "passed": None if bar is None else ratio <= bar,
                "peak_memory": round(memory[name] / memory["plain"], 3),
                "seconds": round(seconds[name], 4),
                "plain_seconds": round(seconds["plain"], 4),
                "megabytes": round(memory[name] / 1e6, 1),
                "plain_megabytes": round(memory["plain"] / 1e6, 1),
            }
        )
    return rows


def statistic(rounds: int, clock: str) -> list[dict[str, Any]]:
    """SegReg's statistic, forward and backward, against the formula as it is written."""
    z = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    directions = unit_directions(32, 256, torch.Generator().manual_seed(1))
    arms = {
        "direct": lambda: direct_formula(z, directions).backward(),
        "ours": lambda: sliced_epps_pulley(z, directions).backward(),
    }
    seconds = fastest(arms, rounds, clock)
    memory = {name: peak_bytes(run) for name, run in arms.items()}
    found = {
        "times faster": (seconds["direct"] / seconds["ours"], 3.0),
        "times smaller": (memory["direct"] / memory["ours"], 8.0),
    }
    setting = "sliced Epps-Pulley, N 4096, C 32, K 256, M 17, against its direct formula"
    return [
        {
            "method": f"SegReg's statistic, {name}",
            "setting": setting,
            "factor": round(value, 2),
            "bar": bar,
            "passed": value >= bar,
        }
        for name, (value, bar) in found.items()
    ]


def measure(only: list[str] | None, rounds: int, clock: str, threads: int, note: str = "") -> None:
    """Measure, and put the rows into the file of all."""
    torch.set_num_threads(threads)
    for name in only or [*COMPARISONS, "statistic"]:
        rows = statistic(rounds, clock) if name == "statistic" else compared(COMPARISONS[name], rounds, clock)
        content = {
            **stored(),
            name: {**machine(threads, clock), "device": DEVICE, "rounds": rounds, "note": note, "rows": rows},
        }
        for one in rows:
            print(json.dumps(one), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        write_atomically(RESULTS, json.dumps(content, indent=1) + "\n")


def stored() -> dict[str, Any]:
    """What was measured last, by comparison."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def step_times() -> dict[str, str]:
    """Multiple of the plain step's time by method, as far as measured."""
    rows = [row for entry in stored().values() for row in entry["rows"]]
    return {row["method"]: f"{row['step_time']:.2f}" for row in rows if "step_time" in row}


def lines() -> list[str]:
    """The measured costs as Markdown, or nothing if none were measured."""
    content = stored()
    if not content:
        return []
    found = ["| method | step time | bar | peak memory | on |", "|---|---|---|---|---|"]
    for one in (row for entry in content.values() for row in entry["rows"]):
        bar = "" if one["bar"] is None else f"{'>=' if 'factor' in one else '<='} {one['bar']:g}"
        bar += "" if one["passed"] in (True, None) else ", missed"
        if "factor" in one:
            found.append(f"| {one['method']} | {one['factor']:.1f} | {bar} | | {one['setting']} |")
        else:
            cells = [one["method"], f"{one['step_time']:.2f}", bar, f"{one['peak_memory']:.2f}", one["setting"]]
            found.append("| " + " | ".join(cells) + " |")
    circumstances = [
        f"* {name}: threads {e['threads']}, clock {e['clock']}, torch {e['torch']}, {e['rounds']} rounds. {e['note']}".strip()
        for name, e in content.items()
    ]
    return [*found, "", *circumstances]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*COMPARISONS, "statistic"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="circumstances, printed below the table")
    options = parser.parse_args()
    clock = "wall" if DEVICE == "cuda" else options.clock
    measure(options.only, options.rounds, clock, options.threads, options.note)


if __name__ == "__main__":
    main()
