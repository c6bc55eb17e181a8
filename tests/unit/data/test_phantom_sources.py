"""Each generator's `SOURCES` names the files that decide its bytes: a missing one would let a stale cache pass."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from toolkit.data.phantoms import cardiac, glands, hippocampus, prostate

PREFIX = "toolkit.data.phantoms."


def _imported(folder: Path, name: str, seen: set[str]) -> set[str]:
    """Files of the folder that a module imports, directly or through others, itself included."""
    if name in seen:
        return seen
    seen.add(name)
    for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PREFIX):
            _imported(folder, f"{node.module.removeprefix(PREFIX)}.py", seen)
    return seen


@pytest.mark.parametrize("generator", [cardiac, glands, hippocampus, prostate])
def test_the_listed_sources_are_all_that_the_generator_imports(generator):
    path = Path(generator.__file__)
    found = _imported(path.parent, path.name, set())
    # The container of cardiac's result decides no bytes.
    assert found - {"phantom.py"} == set(generator.SOURCES) - {"phantom.py"}
    assert path.name in generator.SOURCES
