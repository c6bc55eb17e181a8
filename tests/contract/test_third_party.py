"""Every call on networks of other libraries: the part of `make third-party` that installs beside the pins."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import pytest
from programs import benchmark


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("third_party", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MONAI BasicUNet", "MONAI DynUNet, deep supervision", "MONAI SegResNetDS"])
def test_a_network_of_monai_works_or_is_refused(program: ModuleType, tmp_path: Path, name: str) -> None:
    assert program.main(["--libraries", "monai", "--networks", name, "--out", str(tmp_path / "table.csv")]) == 0
    with (tmp_path / "table.csv").open() as stream:
        found = {row["call"]: row for row in csv.DictReader(stream)}
    assert list(found) == list(program.CALLS)
    for row in found.values():
        assert row["outcome"] == "works" or (row["outcome"] == "refused" and "fix:" in row["text"]), row


def test_the_committed_table_is_complete_and_holds_nothing_raw_or_silent(program: ModuleType) -> None:
    with program.RESULTS.open() as stream:
        table = list(csv.DictReader(stream))
    assert {row["outcome"] for row in table} <= {"works", "refused"}
    assert all(row["text"] for row in table if row["outcome"] == "refused")
    counts = {row["network"] for row in table}
    assert len(counts) >= 30
    assert len(table) == len(counts) * len(program.CALLS)
