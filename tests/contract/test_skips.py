"""Every test that may be skipped stands in tests/SKIPS.md, and nothing else does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
LEDGER = TESTS / "SKIPS.md"
SKIPPING = {"skip", "skipif", "importorskip", "xfail"}


def skips_in(source: str) -> int:
    """Number of pytest skips in a file: calls and marks, whether pytest or its names were imported."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in SKIPPING:
            base = node.value
            owner = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
            count += owner in ("pytest", "mark")
        elif isinstance(node, ast.ImportFrom) and node.module == "pytest":
            count += sum(alias.name in SKIPPING for alias in node.names)
    return count


def listed() -> dict[str, list[str]]:
    """Cells of every row of the table, by the path in its first cell."""
    rows = [line for line in LEDGER.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {re.findall(r"`([^`]+)`", row[0])[0]: row for row in cells}


def test_the_finder_sees_every_form() -> None:
    assert skips_in("import pytest\npytest.skip('x')") == 1
    assert skips_in("import pytest\n@pytest.mark.skipif(True, reason='x')\ndef test(): pass") == 1
    assert skips_in("import pytest\npytest.importorskip('x')") == 1
    assert skips_in("from pytest import skip") == 1
    assert skips_in("queue.skip()") == 0


def test_every_skip_is_listed_and_every_line_has_one() -> None:
    found = {
        f"tests/{path.relative_to(TESTS).as_posix()}"
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and skips_in(path.read_text(encoding="utf-8"))
    }
    assert found == set(listed())


def test_every_line_gives_a_reason_and_an_end() -> None:
    for path, cells in listed().items():
        assert len(cells) == 3, path
        assert all(len(cell) > 10 for cell in cells[1:]), path
