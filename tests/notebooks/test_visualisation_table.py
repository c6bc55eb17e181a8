"""Four visualisations for four papers: every paper's notebook draws all of them, and says which are extensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
TAGS = ("gradcam", "channel-similarity", "layer-cka", "pca", "umap", "drift", "masked-latent")
# What the paper itself published; everything else that a notebook draws of it is an extension.
PUBLISHED = {
    "10_segreg": ("pca", "drift"),  # Fig. 3; the drift numbers belong to it
    "20_selfreg_unet": ("gradcam", "channel-similarity"),  # Fig. 1b, 1c
    "30_latent_augmentation": ("masked-latent",),  # Fig. 2, 3
    "40_med_disseg": (),
}


def cells(name: str) -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def tagged(name: str, tag: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(name) if tag in cell["metadata"].get("tags", [])]


@pytest.fixture(params=PUBLISHED)
def notebook(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("tag", TAGS)
def test_every_visualisation_is_there(notebook: str, tag: str) -> None:
    assert tagged(notebook, tag), f"{notebook} has no code cell tagged {tag!r}"


@pytest.mark.parametrize("tag", TAGS)
def test_what_the_paper_did_not_publish_is_called_an_extension(notebook: str, tag: str) -> None:
    drawn = [source for source in tagged(notebook, tag) if "tk.show(" in source]
    unnamed = [] if tag in PUBLISHED[notebook] else [one for one in drawn if "(extension)" not in one]
    assert not unnamed, f"{notebook}: a figure tagged {tag!r} lacks '(extension)' in its title:\n{unnamed[0]}"


def test_umap_is_one_of_the_pictures(notebook: str) -> None:
    assert any("umap" in source for source in tagged(notebook, "umap")), f"{notebook}: no UMAP in the cell tagged so"


def test_segreg_s_loss_is_called_an_inference() -> None:
    content = json.loads((FOLDER / "10_segreg.ipynb").read_text(encoding="utf-8"))
    texts = " ".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")
    assert "inference" in texts.lower()
