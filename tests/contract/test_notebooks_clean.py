"""Notebooks in git hold no outputs, name the kernel that everybody has, and start with parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return content


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_no_outputs_or_widget_state(notebook: dict[str, Any]) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(notebook))
    assert "widgets" not in notebook["metadata"]


def test_the_kernel_is_python3(notebook: dict[str, Any]) -> None:
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "execution" not in notebook["metadata"], "a timeout here would override the one of the command line"


def test_one_parameters_cell_with_a_quick_form(notebook: dict[str, Any]) -> None:
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert "FAST" in source(tagged[0])


def test_it_checks_what_it_claims(notebook: dict[str, Any]) -> None:
    assert "assert " in source(code_cells(notebook)[-1])


def test_no_path_of_a_machine(notebook: dict[str, Any]) -> None:
    text = json.dumps(notebook)
    assert not any(part in text for part in ("/home/", "/Users/", "C:\\\\", "/root/", "/tmp/"))


def test_cells_parse(notebook: dict[str, Any]) -> None:
    for cell in code_cells(notebook):
        lines = [line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!"))]
        compile("\n".join(lines), "cell", "exec")
