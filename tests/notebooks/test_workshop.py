"""The workshop: an unsolved exercise fails its check with a hint, wrong answers too, and the learners' copy has no solutions."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toolkit as tk
from toolkit.apps import workshop
from toolkit.errors import ConfigError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
EXERCISES = range(1, 9)


def workshop_notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((NOTEBOOKS / "70_workshop.ipynb").read_text(encoding="utf-8"))
    return content


def tagged(notebook: dict[str, Any], tag: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


def assigned(source: str, name: str) -> list[ast.expr]:
    """What every assignment to `name` gives it, in order."""
    return [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]


def test_exercise_solution_and_check_follow_each_other() -> None:
    tags = [
        tag
        for cell in workshop_notebook()["cells"]
        for tag in cell["metadata"].get("tags", [])
        if tag in ("exercise", "solution", "check")
    ]
    assert tags == ["exercise", "solution", "check"] * len(EXERCISES)


@pytest.mark.parametrize("number", EXERCISES)
def test_the_exercise_is_open_and_the_solution_answers_it(number: int) -> None:
    notebook = workshop_notebook()
    name = f"answer_{number}"
    (last,) = assigned(tagged(notebook, "exercise")[number - 1], name)
    assert isinstance(last, ast.Constant)
    assert last.value is ...
    assert assigned(tagged(notebook, "solution")[number - 1], name)
    assert tagged(notebook, "check")[number - 1] == f"tk.workshop.check({number}, {name})"


@pytest.mark.parametrize("number", EXERCISES)
def test_every_unsolved_exercise_fails_its_check_with_a_hint(number: int) -> None:
    with pytest.raises(workshop.Unsolved, match=rf"Exercise {number} is not solved yet\. Hint: .{{20,}}"):
        tk.workshop.check(number, ...)


WRONG = [(1, 0), (2, "head"), (2, "no such layer"), (3, {"bottleneck"}), (3, {"head"}), (4, "falls"), (4, "better")]
WRONG += [(5, 0.1), (5, {"released": 0.0}), (6, 1.0), (7, 0.5), (8, "better"), (8, 0.5)]
WRONG += [(1, np.arange(3)), (2, 5), (3, 5), (3, [["head"]]), (5, False), (5, np.zeros(2))]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "answer"), WRONG)
def test_wrong_answers_fail_with_a_hint(number: int, answer: Any) -> None:
    with pytest.raises(workshop.Unsolved, match=rf"Exercise {number}: .+ Hint: .+"):
        tk.workshop.check(number, answer)


@pytest.mark.slow
def test_results_of_the_wrong_kind_fail_with_what_is_wrong() -> None:
    network = tk.load_trained("phantom-cardiac/plain", seed=0)
    cases = tk.load_task("phantom-cardiac").cases("test", site="A")[:4]
    open_ways = tk.mask_latent(network, cases[0], fraction=0.5, soft=False)
    shut = tk.mask_latent(network, cases[0], fraction=0.3, soft=False, skips="zero")
    early = tk.mask_latent(network, cases[0], fraction=0.5, soft=False, skips="zero", layer="encoder.1")
    for answer, wrong in ((open_ways, "still there"), (shut, "fraction 0.3"), (early, "layer encoder.1")):
        with pytest.raises(workshop.Unsolved, match=wrong):
            tk.workshop.check(7, answer)
    rival = tk.load_trained("phantom-cardiac/segreg", seed=0)
    stores = [tk.extract(one, cases, ["head_input"], pool="voxels", samples=4) for one in (network, rival)]
    with pytest.raises(workshop.Unsolved, match="one and the same network"):
        tk.workshop.check(6, tk.drift(stores, "head_input", bootstrap=0, null_splits=0))
    with pytest.raises(workshop.Unsolved, match="two draws"):
        tk.workshop.check(6, tk.drift([stores[0]] * 2, "head_input", bootstrap=0, null_splits=0))


@pytest.mark.slow
def test_right_answers_pass() -> None:
    """The rest the notebook itself runs."""
    patients = {case.subject for case in tk.load_task("phantom-cardiac").cases("test", site="B")}
    for number, answer in {1: len(patients), 2: "head:input", 4: "Rises", 5: 0.0, 8: "Inconclusive"}.items():
        tk.workshop.check(number, answer)
    cancelled = [f"{name} " for name in tk.workshop.expected()[3]]
    for number, answer in ((1, np.int64(len(patients))), (2, ["head_input "]), (3, cancelled), (5, torch.zeros(()))):
        tk.workshop.check(number, answer)


def test_the_learners_copy_has_no_solutions(tmp_path: Path) -> None:
    folder = workshop.build_bundle(tmp_path / "dist", NOTEBOOKS)
    learners = json.loads((folder / "notebooks" / "70_workshop.ipynb").read_text(encoding="utf-8"))
    assert not tagged(learners, "solution")
    assert not tagged(learners, "instructor")
    assert len(tagged(learners, "exercise")) == len(EXERCISES)
    assert not list((folder / "notebooks").glob("*solutions*")), "the learners' folder can be given away as it is"
    teacher = json.loads((folder / "instructor" / "70_workshop_solutions.ipynb").read_text(encoding="utf-8"))
    assert teacher == workshop_notebook()
    assert (folder / "notebooks" / "10_segreg.ipynb").is_file()
    assert workshop.build_bundle(folder, NOTEBOOKS) == folder, "an earlier bundle is replaced"


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="something else"):
        workshop.build_bundle(tmp_path, NOTEBOOKS)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    with pytest.raises(ConfigError, match="something else"):
        workshop.build_bundle(tmp_path / "thesis.tex", NOTEBOOKS)
    with pytest.raises(ConfigError, match=r"no 70_workshop\.ipynb"):
        workshop.build_bundle(tmp_path / "new", tmp_path)
