"""Draw docs/images/phantom_cardiac.png: rows are sites, columns slices of two subjects, some with their labels."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from toolkit.data.phantoms.cardiac import DESCRIPTIONS, SITES, generate

SUBJECTS = {"A": (25, 1), "B": (4, 28), "C": (1, 25), "D": (0, 27)}  # two pathology groups per site
LEVELS = (0.0, 0.3, 0.6, 0.95)
OUTLINED = (1, 5)
COLOURS = {1: "#46c5dd", 2: "#f2c14e", 3: "#e4572e"}  # RV, myocardium, LV


def montage() -> plt.Figure:
    columns = [(which, level) for which in range(2) for level in LEVELS]
    figure, axes = plt.subplots(len(SITES), len(columns), figsize=(11.2, 6.35), dpi=100)
    for row, site in enumerate(SITES):
        pair = [generate(site, subject) for subject in SUBJECTS[site]]
        for column, (which, level) in enumerate(columns):
            phantom, axis = pair[which], axes[row, column]
            k = round(level * (len(phantom.image) - 1))
            axis.imshow(phantom.image[k], cmap="gray", vmin=0, vmax=np.percentile(phantom.image, 99.0))
            axis.set_axis_off()
            if column in OUTLINED:
                for label, colour in COLOURS.items():
                    if (phantom.label[k] == label).any():
                        axis.contour(phantom.label[k] == label, [0.5], colors=colour, linewidths=1.0)
            if level == LEVELS[0]:
                text = f"{site}: {phantom.group.replace('_', ' ')}"
                box = {"facecolor": (0, 0, 0, 0.55), "edgecolor": "none", "pad": 1.0}
                axis.text(2, 3, text, color="white", fontsize=8, va="top", bbox=box)
    figure.subplots_adjust(left=0, right=1, top=0.885, bottom=0, wspace=0.02, hspace=0.02)
    lines = [f"{site}  {DESCRIPTIONS[site]}" for site in SITES]
    figure.text(0.005, 0.995, "\n".join(lines), fontsize=8, va="top", linespacing=1.35)
    return figure


def palette() -> Image.Image:
    """64 greys and, for every outline, its blends with them: small on disk without losing the colours."""
    greys = np.rint(np.linspace(0, 255, 64))[:, None].repeat(3, axis=1)
    blends = [
        np.rint(share * np.array(matplotlib.colors.to_rgb(colour)) * 255 + (1 - share) * grey)
        for colour in COLOURS.values()
        for share in (0.35, 0.7, 1.0)
        for grey in (0.0, 128.0, 255.0)
    ]
    colours = np.concatenate([greys, np.array(blends)]).astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(colours.tobytes())
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/images/phantom_cardiac.png")
    path = Path(parser.parse_args().out)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    montage().savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(palette=palette(), dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
