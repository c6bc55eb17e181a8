"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.files import replacing, write_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old\r\n", durable=durable)
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_bytes() == b"old\r\n"
        assert temporary.suffix == ".csv"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"

    def interrupted() -> None:
        with replacing(path, parents=True) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert list(path.parent.iterdir()) == []


def test_a_missing_folder_is_not_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "gone" / "table.csv", b"")
