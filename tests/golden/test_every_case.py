"""Every reference case is asked for by a test, or stands on the written list of postponed ones with its reason."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from golden_cases import METHODS, golden_manifest

TESTS = Path(__file__).parents[1]
DOORS = {"golden_case", "golden_file"}


@functools.cache
def postponed() -> dict[tuple[str, str], str]:
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (.+?) \|$", (TESTS / "golden" / "POSTPONED.md").read_text(), re.M)
    assert len({(method, name) for method, name, _ in rows}) == len(rows)
    return {(method, name): reason for method, name, reason in rows}


def read(source: str) -> tuple[set[str], set[str], set[tuple[str, str]], set[str]]:
    """Methods and names (whole literals that are no docstrings), whole files, and modules that are imported."""
    tree = ast.parse(source)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    }
    calls: set[str] = set()
    files: set[tuple[str, str]] = set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").rpartition(".")[2])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DOORS:
            first = [a.value for a in node.args if isinstance(a, ast.Constant)]
            assert first, "the method is a literal"
            calls.add(first[0])
            if node.func.id == "golden_file":
                files.add((first[0], first[1]))
    return calls, words, files, modules


def used_in(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Cases that the modules ask for; a module that imports a reader of cases has that reader's methods."""
    seen = {path: read(source) for path, source in sources.items()}
    readers: dict[str, set[str]] = {}
    for path, (calls, *_) in seen.items():
        if not Path(path).name.startswith("test_"):
            readers.setdefault(Path(path).stem, set()).update(calls)
    used: set[tuple[str, str]] = set()
    for calls, words, files, modules in seen.values():
        methods = calls.union(*(readers.get(module, set()) for module in modules))
        for method in methods:
            used |= {(method, word) for word in words & set(golden_manifest(method))}
        for method, file in files:
            used |= {(method, name) for name, case in golden_manifest(method).items() if case.entry["file"] == file}
    return used


@functools.cache
def used() -> frozenset[tuple[str, str]]:
    sources = {
        str(path): path.read_text(encoding="utf-8")
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__) and path.name != "golden_cases.py"
    }
    return frozenset(used_in(sources))


ALL = [(method, name) for method in METHODS for name in golden_manifest(method)]


def test_the_manifests_hold_the_known_number_of_cases() -> None:
    assert len(ALL) == 173


@pytest.mark.parametrize(("method", "name"), ALL, ids=lambda value: value)
def test_case_is_used_or_postponed(method: str, name: str) -> None:
    assert ((method, name) in used()) != ((method, name) in postponed()), "used, or on the list: one of the two"
    if (method, name) in used():
        assert golden_manifest(method)[name].path.is_file()


def test_the_list_names_cases_and_reasons() -> None:
    assert set(postponed()) <= set(ALL)
    assert all(len(reason) > 20 for reason in postponed().values())


def test_the_scan_finds_literals_only() -> None:
    helper = "def read(name):\n    return golden_case('selfreg', name)\n"
    test = '"""ifd_basic is not used."""\nfrom .reader import read\n# ifd_relu neither\nCASES = ["ifd_zero", "x ifd_rect"]\n'
    assert used_in({"a/reader.py": helper, "b/test_a.py": test}) == {("selfreg", "ifd_zero")}
    assert used_in({"b/test_a.py": test}) == set()
    whole = "golden_file('selfreg', 'schedule.npz')"
    assert used_in({"test_b.py": whole}) == {("selfreg", "poly_lr")}
