"""The long forms: notebooks with TRAIN on, measured by benchmarks/notebook_times.py, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import benchmark

ROOT = Path(__file__).parents[2]
TRAINING = [
    path
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if any("if TRAIN:" in "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
]
AGAIN = "measure it again: python benchmarks/notebook_times.py --train notebooks/NAME.ipynb"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("notebook_times", monkeypatch)


def parameters_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])))


def rows() -> dict[str, Any]:
    content = json.loads((ROOT / "benchmarks/results/notebooks_train.json").read_text(encoding="utf-8"))
    return {row["notebook"]: row for row in content["rows"]}


CELL = """\
import os

FAST = os.environ.get("FAST", "0") == "1"  # größer, in two bytes: columns are counted so
TRAIN, STEPS, NAMES = False, 400, ("é", "b")  # True: hours
UNET_STEPS = 60 if FAST else 300
SEEDS = (0, 1, 2)
"""


def test_parameters_are_replaced_where_they_are_assigned(program: ModuleType) -> None:
    changed = program.with_parameters(CELL, {"SEEDS": (0,), "TRAIN": True, "NAMES": "c", "UNET_STEPS": 7})
    assert changed == (
        CELL.replace("False, 400", "True, 400")
        .replace('("é", "b")', "'c'")
        .replace("60 if FAST else 300", "7")
        .replace("(0, 1, 2)", "(0,)")
    )
    assert program.with_parameters(CELL, {}) == CELL
    assert program.amounts(CELL) == {"STEPS": 400, "UNET_STEPS": 300, "SEEDS": [0, 1, 2]}


def test_a_name_that_is_no_parameter_is_an_error(program: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"no parameter STEP; there are FAST, TRAIN, STEPS"):
        program.with_parameters(CELL, {"STEP": 4})


def test_a_long_form_is_reckoned_linearly(program: ModuleType) -> None:
    """By hand: a seed costs 10 s and 2 s a step, and 4 steps were run."""
    small = {"STEPS": 4, "SEEDS": [0]}
    run = {"parameters": small, "training_cpu_s": 18.0, "steps_cpu_s": 8.0, "cpu_s": 48.0}
    assert program.reckoned(run, {"STEPS": 400, "SEEDS": [0, 1, 2]}) == pytest.approx(3 * (10 + 800))
    assert program.reckoned(run, {"STEPS": 100, "SEEDS": [0]}) == pytest.approx(10 + 200)
    assert program.reckoned(run, small) == 18.0


def test_warm_steps_bear_their_share_of_validations(program: ModuleType, tmp_path: Path) -> None:
    """By hand: steps 2 to 4 took 3 s each, a gradient ratio 5 s every 10 steps, a validation 50 s every 100."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    config = {"steps": 4, "log_every": 10, "validate_every": 100}
    (tmp_path / "runs" / "one" / "run.json").write_text(json.dumps({"config": config}))
    events = [
        {"event": "train", "seconds/step": 99.0, "seconds/gradient_ratio": 9.0},
        {"event": "train", "seconds/step": 3.0, "seconds/gradient_ratio": 5.0},
        {"event": "validation", "seconds/validation": 50.0},
    ]
    (tmp_path / "runs" / "one" / "history.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert program.trainings(tmp_path) == {"trainings": 1, "steps": 4, "steps_cpu_s": 4 * (3.0 + 0.5 + 0.5)}


def test_needed_cells_are_those_that_the_training_reads_from(program: ModuleType) -> None:
    import nbformat

    sources = {
        "parameters": "TRAIN, STEPS = False, 400",
        "first": "import numpy as np\nx, y = 1, 2",
        "unused": "z = np.mean([x, y])",
        "overwritten": "task = x",
        "task": "task = [x for x in range(3)]",
        "figure": "figure = [task for task in (1, 2)]",
        "function": "def cost(steps):\n    return steps * len(task)",
        "training": "if TRAIN:\n    cost(STEPS)",
        "after": "assert z > 0",
    }
    cells = [nbformat.v4.new_code_cell(source) for source in sources.values()]
    cells[0].metadata["tags"] = ["parameters"]
    chosen = [one.source for one in program.needed([nbformat.v4.new_markdown_cell("x"), *cells])]
    assert chosen == [sources[name] for name in ("parameters", "task", "function", "training")]


@pytest.mark.slow
def test_a_notebook_is_trained_in_a_folder_of_its_own(program: ModuleType, tmp_path: Path) -> None:
    import nbformat

    training = 'folder = pathlib.Path("runs", str(STEPS))\nfolder.mkdir(parents=True)\n'
    training += 'config = {"steps": STEPS, "log_every": 10, "validate_every": 0}\n'
    training += '(folder / "run.json").write_text(json.dumps({"config": config}))\n'
    training += 'row = {"event": "train", "seconds/step": 2.0, "seconds/gradient_ratio": 0.0}\n'
    training += '(folder / "history.jsonl").write_text(json.dumps(row))'
    indented = training.replace("\n", "\n    ")
    v4 = nbformat.v4
    first = v4.new_code_cell("import json, pathlib\nTRAIN, STEPS = False, 400", metadata={"tags": ["parameters"]})
    content = v4.new_notebook(cells=[first, v4.new_code_cell(f"if TRAIN:\n    {indented}")])
    path = tmp_path / "one.ipynb"
    nbformat.write(content, path)
    before = path.read_bytes()
    row = program.measure(path, 60, {"STEPS": 4})
    assert (row["error"], row["parameters"], row["trainings"], row["steps"]) == ("", {"STEPS": 4}, 1, 4)
    assert 0 <= row["training_cpu_s"] < row["cpu_s"]
    assert row["steps_cpu_s"] == 4 * 2.0
    assert [file.name for file in tmp_path.iterdir()] == ["one.ipynb"], "nothing is left beside the notebook"
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_the_notebook_says_what_was_measured(program: ModuleType, path: Path) -> None:
    row = rows()[path.name]
    assert row["error"] == ""
    assert row["parameters"] == program.amounts(parameters_of(path)), AGAIN
    assert f"{program.in_words(row['training_cpu_s'])} on one core" in parameters_of(path)


def test_the_page_of_costs_is_that_of_the_measurements(program: ModuleType) -> None:
    assert set(rows()) == {path.name for path in TRAINING}
    assert (ROOT / "docs" / "costs.md").read_text(encoding="utf-8").endswith("\n".join(program.section()) + "\n")
