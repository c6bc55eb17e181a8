"""The peak memory that each analysis states beforehand, beside the one that is measured.

    OMP_NUM_THREADS=1 python benchmarks/memory.py        # writes results/memory.csv; with --only, some of its rows

Each analysis runs in a child process of its own, first on small images, so that libraries are loaded. Measured is the
peak resident size of the second, large run, reset at its beginning, minus what the process held then.
What is stated is read from the warning, which is made to speak always.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import re
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import toolkit as tk
from toolkit.features import memory
from toolkit.features.writer import MemoryWriter

sys.path.remove(str(Path(__file__).parent))  # a benchmark has the name of a library that UMAP's compiler imports
TABLE = Path(__file__).parent / "results" / "memory.csv"
COLUMNS = ("analysis", "stated_mb", "measured_mb", "ratio")
PATIENTS, STAGES = 20, 3


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return tk.unet(1, 4, channels=(16, 32, 64)).eval()


def stored(path: Path, rows: int, channels: int, seed: int) -> Any:
    """A feature store as `extract(pool="voxels")` writes it: rows of two layers, and moments of every image."""
    drawn, writer, each = torch.Generator().manual_seed(seed), MemoryWriter(), rows // PATIENTS
    for layer in ("a", "b"):
        writer.add(layer, "rows", torch.randn(rows, channels, generator=drawn))
        wide = 8 * channels if seed == 0 and layer == "a" else 4
        writer.add(layer, "gram", torch.randn(PATIENTS, wide, wide, generator=drawn))
        writer.add(layer, "sum", torch.randn(PATIENTS, wide, generator=drawn))
        writer.add(layer, "count", torch.full((PATIENTS,), 100.0))
    names = [f"p{index}" for index in range(PATIENTS) for _ in range(each)]
    known = {"site": "A", "count": each, "index": -1}
    rows = [
        {"case": n, "volume": n, "subject": n, "class": i % 3, "class_name": str(i % 3), **known}
        for i, n in enumerate(names)
    ]
    writer.add_records("cases", rows)
    writer.add_records("images", [{"case": n, "volume": n, "subject": n, "site": "A"} for n in dict.fromkeys(names)])
    tk.Features(*writer.finish({}, None, None)).save(path)


def analyses(folder: Path, side: int, rows: int) -> dict[str, Callable[[], Any]]:
    """Each as a call; what it needs is made when it is called."""
    model, few = network(), {"batch_size": 2}
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    label = (images[:, 0] > 1).long()
    scan = {"image": images, "label": label, "classes": ["background", "x", "y", "z"]}
    one = {**scan, "image": images[:1], "label": label[:1]}
    named = {"classes": scan["classes"], "normalisation": "none"}
    task = tk.task_from_arrays(images[:, 0].numpy(), label.numpy(), **named)
    target = tk.ClassSum(1)
    small = {"bootstrap": 4, "null_splits": 4, "max_rows": 256, "directions": 32}
    stores = lambda: [tk.open_features(folder / f"{rows}-{stage}.zarr") for stage in range(STAGES)]  # noqa: E731
    seen = tk.grad_cam(model, one, "decoder.1", target)
    salient = tk.attribute(model, one, "saliency", target)
    by_path = tk.attribute(model, one, "integrated_gradients", target, steps=4, batch_size=4)
    quick = {"steps": 7, "orders": 1, "perturbations": 0}
    return {
        "predict": lambda: tk.predict(model, images, output="probabilities", **few),
        "predict, windows": lambda: tk.predict(model, images[:1], patch_size=(side // 2, side // 2)),
        "evaluate": lambda: tk.evaluate(model, task.cases(), **few, metrics=["dice"]),
        "extract": lambda: tk.extract(model, scan, ["encoder.*", "decoder.*"], **few),
        "extract voxels": lambda: tk.extract(model, scan, "decoder.1", pool="voxels", **few),
        "grad_cam, one layer": lambda: tk.grad_cam(model, scan, "bottleneck", target, **few),
        "grad_cam, all blocks": lambda: tk.grad_cam(
            model, scan, ["encoder.?", "bottleneck", "decoder.?"], target, **few
        ),
        "attribute saliency": lambda: tk.attribute(model, one, "saliency", target),
        "attribute integrated gradients": lambda: tk.attribute(model, one, target=target, steps=4, batch_size=4),
        "attribute occlusion": lambda: tk.attribute(model, one, "occlusion", target, window=side // 2, batch_size=4),
        "attribute layer conductance": lambda: tk.attribute(
            model, one, "layer_conductance", target, layer="bottleneck", steps=4, batch_size=4
        ),
        "mask_latent": lambda: tk.mask_latent(model, scan),
        "mask_latent, skips": lambda: tk.mask_latent(model, scan, skips="mask"),
        "faithfulness of Grad-CAM": lambda: tk.faithfulness(model, seen, target, batch_size=4, **quick),
        "faithfulness of saliency": lambda: tk.faithfulness(
            model, salient, target, batch_size=4, **{**quick, "perturbations": 1}
        ),
        "faithfulness of integrated gradients": lambda: tk.faithfulness(
            model, by_path, target, batch_size=4, **{**quick, "perturbations": 1}
        ),
        "randomised_weights": lambda: tk.randomised_weights(model, scan, "decoder.1", target, draws=1, **few),
        "drift": lambda: tk.drift(stores(), "a", **small),
        "collapse": lambda: tk.collapse(stores()[0], "a", max_rows=256),
        "gaussianity": lambda: tk.gaussianity(stores()[0], "a", directions=32, null_draws=5),
        "classifier_variability": lambda: tk.classifier_variability(
            stores()[0], "a", stores()[1], bootstraps=3, rows=300
        ),
        "project pca": lambda: tk.project(stores(), "a"),
        "project tsne": lambda: tk.project(stores(), "a", "tsne", fit_rows=300),
        "project umap": lambda: tk.project(stores(), "a", "umap", fit_rows=300),
        "channel_similarity": lambda: tk.channel_similarity(stores()[0], "a"),
        "layer_similarity cka": lambda: tk.layer_similarity(*stores()[:2]),
        "layer_similarity procrustes": lambda: tk.layer_similarity(*stores()[:2], "procrustes"),
        "layer_similarity rsa": lambda: tk.layer_similarity(*stores()[:2], "rsa", max_rows=200),
    }


def held() -> float:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(small: Callable[[], Any], large: Callable[[], Any]) -> dict[str, float]:
    """Megabytes stated and taken by a large call after a small one, in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                small()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # else the peak is the parent's
            start = held()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                large()
            peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
            found = [re.search(r"needs about ([\d.e+-]+) GB", str(one.message)) for one in said]
            stated = max(float(one[1]) * 1e3 for one in found if one)
            os.write(write, json.dumps({"stated_mb": stated, "measured_mb": (peak - start) / 1e6}).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return json.loads(stream.read() or "{}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[""])
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory._SAID, memory._SURELY = 0.0, 10**12  # speak always
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in (600, options.rows):
            for stage in range(STAGES):
                stored(folder / f"{rows}-{stage}.zarr", rows, options.channels, stage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small, large = analyses(folder, 32, 600), analyses(folder, options.side, options.rows)
        chosen = [name for name in large if any(part in name for part in options.only)]
        table = []
        for analysis in chosen:
            found = measured(small[analysis], large[analysis])
            ratio = found.get("stated_mb", 0.0) / found.get("measured_mb", 1.0)
            table.append({"analysis": analysis, **{k: round(v) for k, v in found.items()}, "ratio": round(ratio, 2)})
            print(table[-1], flush=True)
    old = list(csv.DictReader(TABLE.open(encoding="utf-8"))) if TABLE.exists() else []
    new = {row["analysis"]: row for row in (*old, *table)}
    with TABLE.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(new[name] for name in large if name in new)
    sys.exit(0 if all(0.7 <= row["ratio"] <= 2 for row in table) else 1)


if __name__ == "__main__":
    main()
