"""Results survive a round trip through a file, and a file can never run code."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from toolkit.errors import ResultError
from toolkit.results import Result, load_result


@dataclasses.dataclass(kw_only=True)
class Measured(Result):
    maps: dict[str, torch.Tensor]
    values: np.ndarray
    rows: pd.DataFrame
    names: tuple[str, ...]
    labels: dict[int, str]
    fraction: float | None = None


@dataclasses.dataclass(kw_only=True)
class Other(Result):
    value: float = 0.0


@pytest.fixture
def measured() -> Measured:
    return Measured(
        maps={"encoder.1": torch.arange(6.0).reshape(1, 2, 3), "a/b": torch.tensor([1, 2], dtype=torch.int64)},
        values=np.array([0.1, np.nan, 1e-300]),
        rows=pd.DataFrame({"class": ["LV", "RV"], "dice": [0.5, 1 / 3]}),
        names=("x", "y"),
        labels={0: "background", 3: "LV"},
        provenance={"seed": 3, "parameters": {"layer": "encoder.1"}},
    )


def test_round_trip_keeps_every_field(measured: Measured, tmp_path: Path) -> None:
    back = load_result(measured.save(tmp_path / "deep" / "result.zip"))
    assert isinstance(back, Measured)
    assert torch.equal(back.maps["encoder.1"], measured.maps["encoder.1"])
    assert back.maps["a/b"].dtype == torch.int64
    np.testing.assert_array_equal(back.values, measured.values)
    pd.testing.assert_frame_equal(back.rows, measured.rows)
    assert (back.names, back.labels, back.fraction) == (("x", "y"), {0: "background", 3: "LV"}, None)
    assert back.provenance == {"seed": 3, "parameters": {"layer": "encoder.1"}}


def test_a_result_is_named_by_shapes_and_not_by_all_its_numbers(measured: Measured) -> None:
    expected = "maps=dict of 2, values=ndarray(3,), rows=DataFrame(2, 2), names=tuple of 2, labels=dict of 2"
    assert repr(measured) == f"Measured({expected}, fraction=None)"


class Tabled(Measured):
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"a_b": ["x & y", "50 %", None], "value": [1 / 3, float("nan"), 12345.678], "n": [1, 2, 3]})


def test_tables_are_written_as_csv_and_latex(measured: Measured, tmp_path: Path) -> None:
    result = Tabled(**{field.name: getattr(measured, field.name) for field in dataclasses.fields(measured)})
    back = pd.read_csv(result.write_table(tmp_path / "deep" / "table.csv"))
    assert back.to_csv() == result.table().to_csv()
    text = result.write_table(tmp_path / "table.tex", digits=3).read_text(encoding="utf-8")
    assert text.splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\hline",
        r"a\_b & value & n \\",
        r"\hline",
        r"x \& y & 0.333 & 1 \\",
        r"50 \% & -- & 2 \\",
        r"-- & 1.23e+04 & 3 \\",
        r"\hline",
        r"\end{tabular}",
    ]
    with pytest.raises(ResultError, match=r"\.xlsx"):
        result.write_table(tmp_path / "table.xlsx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "table.tex"]


def test_saving_leaves_only_the_file(measured: Measured, tmp_path: Path) -> None:
    measured.save(tmp_path / "result.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["result.zip"]


def test_a_result_of_another_class_is_refused(measured: Measured, tmp_path: Path) -> None:
    path = measured.save(tmp_path / "result.zip")
    with pytest.raises(ResultError, match="Measured, not a Other"):
        Other.load(path)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("ran"),))


def _damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "unknown class":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("result.json", json.dumps({"class": "Nothing", "fields": {}}))
    elif kind == "pickle":
        buffer = io.BytesIO()
        np.save(buffer, np.array([_Payload()], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("result.json", json.dumps({"class": "Other", "fields": {"value": {"array": "value"}}}))
            archive.writestr("value.npy", buffer.getvalue())
    elif kind == "raw pickle":
        path.write_bytes(pickle.dumps(_Payload()))


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign zip", "unknown class", "pickle", "raw pickle"])
def test_a_damaged_file_is_refused_and_runs_nothing(
    measured: Measured, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = measured.save(tmp_path / "result.zip")
    _damage(path, kind)
    with pytest.raises(ResultError, match="result file"):
        load_result(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"nothing\.zip"):
        load_result(tmp_path / "nothing.zip")


def test_a_result_is_read_in_a_process_that_has_not_computed_one(tmp_path: Path) -> None:
    from toolkit.measure.collapse import Collapse

    fields = {f.name: None for f in dataclasses.fields(Collapse)} | {"provenance": {"layer": "bottleneck"}}
    path = Collapse(**fields).save(tmp_path / "collapse.zip")
    code = f"import toolkit as tk; print(type(tk.load_result({str(path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Collapse"


def test_a_file_cannot_make_us_import_a_foreign_module(measured: Measured, tmp_path: Path) -> None:
    path = measured.save(tmp_path / "result.zip")
    header = {"class": "Foreign", "module": "antigravity", "fields": {}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", json.dumps(header))
    with pytest.raises(ResultError, match="result file"):
        load_result(path)
    assert "antigravity" not in sys.modules


def test_tables_come_back_to_the_bit_with_infinities(measured: Measured, tmp_path: Path) -> None:
    values = [0.1 + 0.2, math.inf, -math.inf, math.nan, -0.0, 1e-310, 1e300]
    table = pd.DataFrame({"value": values, "name": ["\u00e9", None, "", "a", "b", "c", "d"], "count": range(7)})
    loaded = load_result(dataclasses.replace(measured, rows=table).save(tmp_path / "table.zip"))
    assert isinstance(loaded, Measured)
    pd.testing.assert_frame_equal(loaded.rows, table, check_exact=True)
    assert math.copysign(1, loaded.rows["value"][4]) == -1
