"""Draw docs/images/phantom_<name>.png: rows are sites, columns slices or tiles of two subjects, some with labels.

python benchmarks/phantom_montage.py [cardiac glands hippocampus prostate]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What a task's montage shows.

    Attributes:
        subjects: per site those whose slices fill the columns; by default the first two of different groups.
        levels: places within a stack, 0 first slice to 1 last; one empty place for tiles.
        outlined: columns with labels.
        colours: of the classes.
        width: of the picture, inches.
    """

    levels: tuple[float, ...]
    outlined: tuple[int, ...]
    colours: dict[int, str]
    width: float = 11.2
    count: int = 2
    subjects: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


SHEETS = {
    "cardiac": Sheet(
        levels=(0.0, 0.3, 0.6, 0.95),
        outlined=(1, 5),
        colours={1: "#46c5dd", 2: "#f2c14e", 3: "#e4572e"},
        subjects={"A": (25, 1), "B": (4, 28), "C": (1, 25), "D": (0, 27)},
    ),
    "glands": Sheet(levels=(0.0,), outlined=(1, 3, 5, 7), colours={1: "#00c853"}, count=4),
    "hippocampus": Sheet(levels=(0.3, 0.45, 0.6, 0.75), outlined=(1, 3, 5, 7), colours={1: "#46c5dd", 2: "#e4572e"}),
    "prostate": Sheet(levels=(0.25, 0.45, 0.65, 0.85), outlined=(1, 3, 5, 7), colours={1: "#46c5dd", 2: "#e4572e"}),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of the montage; `text` only where a subject begins."""

    image: np.ndarray
    label: np.ndarray
    vmax: float | None
    text: str


def chosen(module: Any, sheet: Sheet, site: str) -> list[int]:
    """Subjects of a row: those that are named, else the first ones with the groups in turn."""
    if site in sheet.subjects:
        return list(sheet.subjects[site])
    groups = sorted({module.group_of(site, n) for n in range(20)})
    found: list[int] = []
    for place in range(sheet.count):
        wanted = groups[place % len(groups)]
        found.append(next(n for n in range(100) if module.group_of(site, n) == wanted and n not in found))
    return found


def row(module: Any, sheet: Sheet, site: str) -> list[Cell]:
    """The pictures of one site; a tile is shown twice, plain and with its label."""
    cells = []
    for subject in chosen(module, sheet, site):
        phantom = module.generate(site, subject)
        text = f"{site}: {phantom.group.replace('_', ' ')}"
        if phantom.label.ndim == 2:
            tile = np.moveaxis(phantom.image, 0, -1).astype(np.uint8)
            cells += [Cell(tile, phantom.label, None, text), Cell(tile, phantom.label, None, "")]
            continue
        top = float(np.percentile(phantom.image, 99.0))
        for level in sheet.levels:
            k = round(level * (len(phantom.image) - 1))
            first = text if level == sheet.levels[0] else ""
            cells.append(Cell(phantom.image[k], phantom.label[k], top, first))
    return cells


def montage(module: Any, sheet: Sheet) -> plt.Figure:
    """The figure: what each site is above, its pictures below."""
    rows = [row(module, sheet, site) for site in module.SITES]
    side, legend = sheet.width / len(rows[0]), 0.06 + 0.165 * len(rows)
    height = side * len(rows) + legend
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(sheet.width, height), dpi=100)
    for line, cells in zip(axes, rows, strict=True):
        for column, (axis, cell) in enumerate(zip(line, cells, strict=True)):
            _draw(axis, cell, sheet.colours if column in sheet.outlined else {})
    figure.subplots_adjust(left=0, right=1, top=1 - legend / height, bottom=0, wspace=0.02, hspace=0.02)
    lines = [f"{site}  {module.DESCRIPTIONS[site]}" for site in module.SITES]
    figure.text(0.005, 1 - 0.03 / height, "\n".join(lines), fontsize=8, va="top", linespacing=1.35)
    return figure


def _draw(axis: Any, cell: Cell, colours: dict[int, str]) -> None:
    axis.imshow(cell.image, cmap="gray", vmin=0, vmax=cell.vmax)
    axis.set_axis_off()
    for label, colour in colours.items():
        if (cell.label == label).any():
            axis.contour(cell.label == label, [0.5], colors=colour, linewidths=1.0)
    if cell.text:
        box = {"facecolor": (0, 0, 0, 0.55), "edgecolor": "none", "pad": 1.0}
        axis.text(2, 3, cell.text, color="white", fontsize=8, va="top", bbox=box)


def palette(colours: dict[int, str]) -> Image.Image:
    """64 greys and, for every outline, its blends with them: small on disk without losing the colours."""
    greys = np.rint(np.linspace(0, 255, 64))[:, None].repeat(3, axis=1)
    blends = [
        np.rint(share * np.array(matplotlib.colors.to_rgb(colour)) * 255 + (1 - share) * grey)
        for colour in colours.values()
        for share in (0.35, 0.7, 1.0)
        for grey in (0.0, 128.0, 255.0)
    ]
    table = np.concatenate([greys, np.array(blends)]).astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(table.tobytes())
    return image


def draw(name: str, folder: Path) -> Path:
    """Draw one task's montage and write it with few colours."""
    module, sheet = importlib.import_module(f"toolkit.data.phantoms.{name}"), SHEETS[name]
    buffer = io.BytesIO()
    montage(module, sheet).savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    if module.generate(module.SITES[0], 0).label.ndim == 2:  # colour tiles
        few = picture.quantize(192, method=Image.Quantize.MEDIANCUT)
    else:
        few = picture.quantize(palette=palette(sheet.colours), dither=Image.Dither.NONE)
    path = folder / f"phantom_{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    few.save(temporary, format="PNG", optimize=True)
    temporary.replace(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=sorted(SHEETS), default=sorted(SHEETS))
    parser.add_argument("--folder", type=Path, default=IMAGES)
    options = parser.parse_args()
    for name in options.names:
        path = draw(name, options.folder)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
