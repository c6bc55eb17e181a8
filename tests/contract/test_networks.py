"""The trained networks that come with the project: every one loads and scores what its card says."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import toolkit as tk

FOLDER = Path(__file__).parents[2] / "evidence" / "networks"
ROWS = [] if not FOLDER.is_dir() else list(tk.list_trained().itertuples())


@functools.cache
def cases_of(task: str, normalisation: str) -> dict[str, list[Any]]:
    """Cases by patient; in cross-validation a patient of any split was tested."""
    patients: dict[str, list[Any]] = {}
    for case in tk.load_task(task, normalisation=normalisation).cases():
        patients.setdefault(case.subject, []).append(case)
    return patients


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Any:
    """A network of the list; those of real packs where the packs are."""
    if not request.param.task.startswith("phantom"):
        request.getfixturevalue("real_data")
    return request.param


each = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.seed}", indirect=True)


@each
def test_a_network_scores_what_its_card_says(row: Any) -> None:
    network = tk.load_trained(row.name, seed=row.seed)
    card = network.provenance
    cases = cases_of(task=card["task"]["name"], normalisation=card["task"]["normalisation"])
    for patient, expected in card["sample"].items():
        table = tk.evaluate(network, cases[patient], metrics=("dice",))
        present = table[table["status"] != "both_absent"]
        dice = present.groupby("case")["value"].mean().mean()
        assert dice == pytest.approx(expected, abs=card["tolerance"])


@each
def test_a_card_is_honest(row: Any) -> None:
    network = tk.load_trained(row.name, seed=row.seed)
    card = network.provenance
    assert card["data"] == tk.load_task(**card["task"]).content_hash()
    assert sum(one.numel() for one in network.parameters()) == card["parameters"] == row.parameters
    assert row.above_floor == (row.dice_home > max(0.75, card["floor"]["dice"]))
    assert row.above_floor or card["note"], "who cannot reach the floor says so"
    assert (network.scores["low"] <= network.scores["dice"]).all()
    assert (network.scores["dice"] <= network.scores["high"]).all()
    assert "step" in network.history


def test_the_networks_are_few_megabytes() -> None:
    assert ROWS
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 40e6
    assert {file.suffix for file in FOLDER.iterdir()} == {".json", ".safetensors"}
