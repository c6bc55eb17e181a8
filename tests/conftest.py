"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(Path(__file__).parent / "support"))  # modules shared by tests of several packages


@pytest.fixture(autouse=True)
def _same_threads_everywhere() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference numbers, one sub-folder a paper."""
    return GOLDEN


@pytest.fixture(autouse=True, scope="session")
def _no_record_of_files_that_tests_make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names of temporary folders come back: what was read below them before says nothing."""
    from toolkit.data import first_reading

    place = tmp_path_factory.mktemp("cache") / "first_reading.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_reading, "record", lambda: place)
        yield


@pytest.fixture
def real_data() -> Path:
    """Folder of the real data packs; tests that use it are listed in tests/SKIPS.md."""
    root = os.environ.get("TOOLKIT_DATA")
    if not root:
        pytest.skip("TOOLKIT_DATA is not set")
    return Path(root)
