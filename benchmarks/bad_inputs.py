"""What the toolkit says to bad files, labels, folders, arrays, archives, manifests and servers.

Runs the tests that hand it such inputs, with the same builders, and records the error that each one met:

    OMP_NUM_THREADS=1 python benchmarks/bad_inputs.py

Writes benchmarks/results/bad_inputs.json: per input the kind of error, what it said, where, and how to fix it, and every
hidden or partial file that was left in the test's folder. A test that fails is recorded as `failed`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "bad_inputs.json"
_PORT = re.compile(r"127\.0\.0\.1:\d+")  # another one in every run
# Kind of input -> the parametrised tests that hand it over; one case of a test is one bad input.
FAMILIES = {
    "volume files": ["test_volumes.py::test_bad_file_is_refused"],
    "picture files": ["test_pictures.py::test_bad_picture_is_refused"],
    "folders": ["test_folder.py::test_bad_folder_is_refused"],
    "arrays": ["test_task.py::test_bad_arrays_are_refused_at_once", "test_task.py::test_wrong_classes_are_refused"],
    "official data sets": ["test_bad_layouts.py::test_bad_data_sets_are_refused"],
    "packed stacks": ["test_catalogue.py::test_bad_archives_are_refused_and_found"],
    "manifests": [
        "test_catalogue.py::test_wrong_manifests_name_the_key",
        "test_fetch.py::test_a_manifest_that_cannot_be_checked_is_refused",
        "test_fetch.py::test_only_https_is_fetched",
    ],
    "archives": ["test_download.py::test_archives_that_attack_leave_nothing"],
    "servers": [
        "test_download.py::test_bad_servers_leave_nothing",
        "test_fetch.py::test_bad_servers_leave_no_data_set",
    ],
}


class Recorder:
    """A pytest plugin that keeps the first error of the toolkit in every test, and how the test ended."""

    def __init__(self, families: dict[str, str]) -> None:
        self.families, self.rows = families, list[dict[str, Any]]()
        self._met: list[Any] = []

    def pytest_configure(self) -> None:
        """Every error of the toolkit notes itself when it is made."""
        from toolkit.errors import ToolkitError

        made, met = ToolkitError.__init__, self._met

        def noting(error: ToolkitError, *arguments: Any, **options: Any) -> None:
            made(error, *arguments, **options)
            met.append(error)

        ToolkitError.__init__ = noting  # type: ignore[method-assign]

    def pytest_runtest_setup(self) -> None:
        """Forget what the test before met."""
        self._met.clear()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """One row per test that ran, or whose preparation failed."""
        outcome = yield
        if call.when != "call" and call.excinfo is None:
            return
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        left = (
            [] if folder is None else [path for path in folder.rglob("*") if path.is_file() and _partial(path, folder)]
        )
        row = {"kind": self.families[item.nodeid.partition("[")[0].rpartition("/")[2]], "input": item.name}
        row |= {"verdict": "refused" if outcome.get_result().passed else "failed"}
        if self._met:
            error = self._met[0]
            hide = str(folder) if folder is not None else "\0"
            said = {
                name: _PORT.sub("127.0.0.1:PORT", str(getattr(error, name)).replace(hide, "FOLDER"))
                for name in ("what", "where", "fix")
            }
            row |= {"error": type(error).__name__, **said}
        self.rows.append(row | {"left_behind": [path.name for path in left]})


def _partial(path: Path, folder: Path) -> bool:
    """Hidden files and unfinished ones, but not what a builder wrote on purpose (a Mac's ._ files)."""
    name = path.name
    return name.endswith((".part", ".tmp")) or (name.startswith(".") and not name.startswith("._"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    recorder = Recorder({node: family for family, nodes in FAMILIES.items() for node in nodes})
    nodes = [f"{ROOT}/tests/unit/data/{node}" for node in recorder.families]
    status = pytest.main(
        ["-q", "--no-header", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *nodes], plugins=[recorder]
    )
    rows = recorder.rows
    silent = [row["input"] for row in rows if "error" not in row or not row["what"] or row["verdict"] != "refused"]
    report = {
        "question": "What is said to each bad input, and what is left behind",
        "inputs": len(rows),
        "kinds": dict(collections.Counter(row["kind"] for row in rows)),
        "refused with a message": len(rows) - len(silent),
        "not refused": silent,
        "left something behind": [row["input"] for row in rows if row["left_behind"]],
        "rows": rows,
    }
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    print(f"{len(rows)} bad inputs, {len(silent)} not refused; {options.out}")
    return int(bool(silent) or status != 0)


if __name__ == "__main__":
    sys.exit(main())
