"""Notebooks in git hold no outputs, name the kernel that everybody has, and start with parameters."""

from __future__ import annotations

import json
import re
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


def test_imports_from_the_toolkit_are_public(notebook: dict[str, Any]) -> None:
    """A notebook shows what everybody can write: the package, its methods, and the contract of a regularizer."""
    pattern = re.compile(r"^\s*(?:from|import) (toolkit[\w.]*)", flags=re.MULTILINE)
    imported = {name for cell in code_cells(notebook) for name in pattern.findall(source(cell))}
    private = {
        name
        for name in imported
        if name not in ("toolkit", "toolkit.testing") and not name.startswith("toolkit.methods.")
    }
    assert not private


LESSONS = ["10_segreg", "20_selfreg_unet", "30_latent_augmentation", "40_med_disseg", "50_compare"]


def opened(name: str) -> dict[str, Any]:
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", LESSONS)
def test_a_method_s_notebook_is_a_lesson(name: str) -> None:
    """It opens trained networks, and trains only where the reader says so."""
    content = opened(name)
    assert any("tk.load_trained" in source(cell) for cell in code_cells(content))
    assert any("tk.trained_scores(" in source(cell) for cell in code_cells(content)), "it says what is loaded"
    trainings = [
        source(cell) for cell in code_cells(content) if re.search(r"tk\.(train|compare|train_sequence)\(", source(cell))
    ]
    assert len(trainings) == 1
    assert trainings[0].startswith("if TRAIN:")
    imported = {
        one.split(".")[0]
        for cell in code_cells(content)
        for one in re.findall(r"^(?:from|import) ([\w.]+)", source(cell), flags=re.MULTILINE)
    }
    assert imported <= {"os", "numpy", "pandas", "plotly", "torch", "toolkit"}


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if "appendix" not in path.stem])
def test_a_lesson_is_short(name: str) -> None:
    """At most 900 words, and 90 lines of code that are neither empty nor a comment."""
    texts = [source(cell) for cell in opened(name)["cells"] if cell["cell_type"] == "markdown"]
    assert sum(len(text.split()) for text in texts) <= 900
    lines = [line.strip() for cell in code_cells(opened(name)) for line in source(cell).splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 90


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if re.match("[1-5]1_", path.stem)])
def test_an_appendix_trains_only_where_the_reader_says_so(name: str) -> None:
    """No training call stands at the top level: it is below `if TRAIN:` or in a function that is called there."""
    for cell in code_cells(opened(name)):
        before, _, _ = source(cell).partition("if TRAIN:")
        assert not re.search(r"^(?:\w+ = )?tk\.(train|compare|train_sequence)\(", before, flags=re.MULTILINE)
    assert any("tk.load_trained" in source(cell) for cell in code_cells(opened(name)))


def test_the_gallery_links_to_headings_that_there_are() -> None:
    links = re.findall(
        r"\]\(notebooks/(\w+)\.ipynb#([\w-]+)\)",
        (NOTEBOOKS[0].parents[1] / "docs/gallery.md").read_text(encoding="utf-8"),
    )
    assert len(links) > 10
    for name, anchor in links:
        texts = [source(cell) for cell in opened(name)["cells"] if cell["cell_type"] == "markdown"]
        titles = [line.lstrip("# ").lower() for text in texts for line in text.splitlines() if line.startswith("#")]
        assert anchor in {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}, (name, anchor)
