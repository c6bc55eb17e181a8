"""The promise of the notebooks for one's own model: the whole analysis in under 20 lines."""

from __future__ import annotations

import json
from pathlib import Path

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("6?_your_own_model*.ipynb"))
CALLS = (
    "load_weights",
    "layers",
    "extract",
    "grad_cam",
    "channel_similarity",
    "project",
    "drift",
    "mask_latent",
    "report",
)


def sources() -> list[str]:
    cells = [cell for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    return ["".join(cell["source"]) for cell in cells if "analysis" in cell["metadata"].get("tags", [])]


def test_two_networks_are_analysed() -> None:
    assert len(sources()) == 2


def test_each_makes_every_call_in_under_twenty_statements() -> None:
    import ast

    for source in sources():
        assert all(f"tk.{call}(" in source for call in CALLS), source
        assert len(ast.parse(source).body) < 20


def test_each_is_short_as_it_stands() -> None:
    for source in sources():
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) < 20, f"{len(lines)} lines:\n{source}"
