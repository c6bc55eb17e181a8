"""Every call on every network that people bring: works, or a clear refusal; nothing raw, nothing silent.

    make third-party            (its own environment, .venv-third-party, with the libraries that need torchvision)
    scripts/launch python benchmarks/third_party.py [--libraries monai torch] [--networks NAME ...] [--out FILE]

Writes benchmarks/results/third_party.csv: network, call, outcome ("works", "refused", or "raw": an exception that is none
of the toolkit's, "silent": a result that is wrong), and the words of the refusal. Exits with 1 if anything is raw or silent.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from third_party_networks import CLASSES, LIBRARIES
from torch import nn

import toolkit as tk

RESULTS = Path(__file__).parent / "results" / "third_party.csv"
COLUMNS = ("network", "call", "outcome", "text")
SIDE = 64


def task() -> Any:
    """Four images with a disc in each."""
    numbers = np.random.default_rng(0)
    images = numbers.normal(size=(4, 1, SIDE, SIDE)).astype(np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    label = ((rows - 30) ** 2 + (columns - 34) ** 2 < 200).astype(np.uint8)
    label[20:30, 20:30] = 2
    images[:, 0] += 2 * label
    return tk.task_from_arrays(
        list(images), [label] * 4, classes=["background", "disc", "square"], splits=["train", "train", "val", "test"]
    )


def train_with(regularizer: tk.Regularizer) -> Callable[[nn.Module, Any], object]:
    """Two steps, then the terms must be finite."""

    def call(network: nn.Module, data: Any) -> object:
        config = tk.TrainConfig(steps=2, batch_size=2, patch_size=(SIDE, SIDE), validate_every=0, checkpoint_every=0)
        with tempfile.TemporaryDirectory() as folder:
            run = tk.train(network, data, None, regularizer, config, out=f"{folder}/run", progress=False)
            history = run.history
        terms = [name for name in history if name.startswith(f"{regularizer.name}/")]
        assert terms, f"no term of {regularizer.name} in the history"
        assert np.isfinite(history[terms].apply(pd.to_numeric, errors="coerce").to_numpy(float)[-1]).any(), (
            "a term is not finite"
        )
        return history

    return call


def maps_of(method: str) -> Callable[[nn.Module, Any], object]:
    """Maps at the bottleneck, which must be finite and of the image's batch."""

    def call(network: nn.Module, data: Any) -> object:
        found = tk.grad_cam(network, data.cases("test"), "bottleneck", tk.ClassSum(1), method=method)
        assert bool(torch.isfinite(found["bottleneck"]).all()), "the map is not finite"
        assert found["bottleneck"].shape[0] == 1, "not one map an image"
        return found

    return call


def aliases(network: nn.Module, data: Any) -> object:
    """The table of layers; it must name a bottleneck and the head's input."""
    table = tk.layers(network, data.cases("test")[0])
    assert len(table) > 0, "an empty table"
    return table


def labels(network: nn.Module, data: Any) -> object:
    """A label map of the image's size."""
    found = tk.predict(network, data.cases("test")[0])
    assert tuple(found.shape) == (SIDE, SIDE), f"labels of shape {tuple(found.shape)}"
    assert int(found.max()) < CLASSES, f"class {int(found.max())} of {CLASSES}"
    return found


CALLS: dict[str, Callable[[nn.Module, Any], object]] = {
    "layers": aliases,
    "extract": lambda n, d: tk.extract(n, d.cases("test"), ["bottleneck", "head_input"]),
    "grad_cam": maps_of("grad_cam"),
    "hires_cam": maps_of("hires_cam"),
    "attribute": lambda n, d: tk.attribute(n, d.cases("test"), "saliency", tk.ClassSum(1)),
    "mask_latent": lambda n, d: tk.mask_latent(n, d.cases("test")[0]),
    "predict": labels,
    "evaluate": lambda n, d: tk.evaluate(n, d.cases("test"), metrics=["dice"]),
    "channel_similarity": lambda n, d: tk.channel_similarity(
        tk.extract(n, d.cases("test"), "bottleneck"), "bottleneck"
    ),
    "train, SegReg": train_with(tk.SegReg(weight=0.1, directions=8)),
    "train, SelfReg": train_with(tk.SelfReg()),
}


def outcome(build: Callable[[], nn.Module], call: Callable[[nn.Module, Any], object], data: Any) -> tuple[str, str]:
    """What one call on a network that was never called before does, and whether the network works afterwards."""
    torch.manual_seed(0)
    try:
        network = build()
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(network, data)
    except tk.ToolkitError as error:
        return "refused", " | ".join(line.strip() for line in str(error).splitlines())
    except AssertionError as error:
        return "silent", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "raw", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})".replace("\n", " ")
    return still_works(network)


def still_works(network: nn.Module) -> tuple[str, str]:
    """The network answers after an analysis, as SegFormer did not when its hooks were gone."""
    kind = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            network(torch.zeros(2 if network.training else 1, 1, SIDE, SIDE, dtype=kind))
    except Exception as error:
        return "broken", f"the network fails afterwards: {type(error).__name__}: {error}".replace("\n", " ")
    return "works", ""


def rows(libraries: Sequence[str], networks: Sequence[str] | None) -> Iterator[dict[str, str]]:
    """One row a network and call, as they come."""
    data = task()
    for library in libraries:
        try:
            builds = LIBRARIES[library]()
        except ImportError as error:
            yield dict(zip(COLUMNS, (library, "", "not installed", str(error)), strict=True))
            continue
        for name, build in builds.items():
            for call in CALLS if networks is None or name in networks else ():
                yield dict(zip(COLUMNS, (name, call, *outcome(build, CALLS[call], data)), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; 1 if a call failed raw, was silently wrong, or broke a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--networks", nargs="*", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    table = []
    for row in rows(options.libraries, options.networks):
        table.append(row)
        print(f"{row['network']:32} {row['call']:20} {row['outcome']:8} {row['text'][:150]}", flush=True)
    with options.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    bad = [row for row in table if row["outcome"] in ("raw", "silent", "broken", "not built")]
    print(f"{len(table)} rows: {len(bad)} raw, silent, broken or not built")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
