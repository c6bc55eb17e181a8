"""`Result`: what every analysis returns. It holds plain arrays and provenance, saves itself and shows itself."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from toolkit.arguments import ByName, checked_methods
from toolkit.errors import ResultError
from toolkit.files import replacing, write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from pandas import DataFrame
else:
    DataFrame = ByName("DataFrame", (), {"__doc__": "Pandas' table in annotations, before pandas is imported."})


_MOST_HEADER, _MOST_ENTRIES = 2**26, 100_000  # bytes of the JSON, and files, in a saved result
_CLASSES: dict[str, type[Result]] = {}
drawing: Any = None  # called, it gives the module that draws; set by the package, so that results do without it


@checked_methods
@dataclasses.dataclass(kw_only=True)
class Result:
    """Base of all results; subclasses are dataclasses of tensors, arrays, tables and JSON-able values.

    Attributes:
        provenance: weights hash, data hash, layer, parameters, versions and thread count of the computation.
    """

    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "result"

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if cls.__module__.startswith("toolkit."):
            checked_methods(cls)
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # the decorator's prints every number
        _CLASSES[cls.__name__] = cls

    def __repr__(self) -> str:
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        own = ", ".join(f"{name}={_brief(value)}" for name, value in named if name != "provenance")
        return f"{type(self).__name__}({own})"

    def table(self) -> DataFrame:
        """The numbers, one row each."""
        raise TypeError(f"{type(self).__name__} defines no table")

    def plot(self, **options: Any) -> go.Figure:
        """An interactive Plotly figure; nothing is shown or printed.

        Args:
            options: those of the function of `toolkit.figures` that draws this kind of result, for example
                `figures.grad_cams(..., scale="shared")` for `.plot(scale="shared")`; their docstrings explain them.
        """
        return drawing().plotly_figure(self, **options)

    def figure(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write the static twin of `plot` (PDF, SVG or PNG by suffix) with matplotlib; no browser is needed.

        Args:
            path: file to write.
            options: as for `plot`.
        """
        return drawing().static_figure(self, Path(path), **options)

    def write_table(self, path: str | os.PathLike[str], digits: int = 4) -> Path:
        """Write `table()` as CSV (all digits) or as a LaTeX tabular, by suffix (.csv or .tex).

        Args:
            path: file to write.
            digits: significant digits of numbers in LaTeX.

        Raises:
            ResultError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".tex"):
            what = f"Tables are not written as {path.suffix or 'files without a suffix'}."
            raise ResultError(what, where=path, fix="Name the file .csv or .tex.")
        table = self.table()
        text = table.to_csv(index=False) if path.suffix == ".csv" else latex_table(table, digits)
        return write_atomically(path, text, parents=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as one zip of .npy arrays and a JSON header; `toolkit.load_result` reads it back."""
        path = Path(path)
        arrays: dict[str, np.ndarray] = {}
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: _encode(getattr(self, name), name, arrays) for name in names}
        header = {"class": type(self).__name__, "module": type(self).__module__, "format": 1, "fields": fields}
        with (
            replacing(path, parents=True) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr("result.json", json.dumps(header, indent=1))
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result written by `save`.

        Raises:
            ResultError: not a result file, a damaged one, or one of another class.
        """
        result = load_result(path)
        if not isinstance(result, cls):
            raise ResultError(f"This file holds a {type(result).__name__}, not a {cls.__name__}.", where=path)
        return result


@dataclasses.dataclass(kw_only=True)
class Numbers(Result):
    """Base of the results whose table is their `numbers`, one row each."""

    numbers: DataFrame
    kind: ClassVar[str] = "numbers"

    def table(self) -> DataFrame:
        """A copy of the numbers, one row each."""
        return self.numbers.copy()


def _brief(value: Any) -> str:
    """An array or table by its shape, a container by its length, the rest as it is."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else repr(value)


def as_table(rows: Any, columns: list[str] | None = None) -> DataFrame:
    """A table of records; the first one imports pandas."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


def latex_table(table: DataFrame, digits: int = 4) -> str:
    """A table as a LaTeX tabular that needs no package; numbers to the right, missing ones as a dash."""
    text = table.to_latex(index=False, na_rep="--", float_format=f"{{:.{digits}g}}".format, escape=True)
    return re.sub(r"\\(top|mid|bottom)rule", r"\\hline", text)


def load_result(path: str | os.PathLike[str], *, most_bytes: int = 2**32) -> Result:
    """Read any saved result. No code stored in the file is ever run.

    Args:
        path: the file.
        most_bytes: size that it may have when it is unpacked; a larger one is refused before anything is read.

    Raises:
        ResultError: not a result file, a damaged one, one of a newer format, or one that is too large.

    Example:
        >>> file = tk.collapse(features, "bottleneck").save("collapse.zip")
        >>> tk.load_result(file).table().shape[0] > 0
        True
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if sizes.get("result.json", 0) > _MOST_HEADER or len(sizes) > _MOST_ENTRIES:
                raise ValueError(f"its header has {sizes.get('result.json', 0)} bytes and {len(sizes)} entries")
            if (size := sum(sizes.values())) > most_bytes:
                raise ValueError(f"it unpacks to {size} bytes; if that is right, raise most_bytes={most_bytes}")
            header = json.loads(archive.read("result.json"))
            names = [name.removesuffix(".npy") for name in sizes if name.endswith(".npy")]
            arrays = {name: _read_array(archive.read(f"{name}.npy")) for name in names}
        if header["format"] != 1:
            raise ValueError(f"its format is {header['format']!r}, and this toolkit reads 1")
        fields = {name: _decode(value, arrays) for name, value in header["fields"].items()}
        module = header.get("module", "")
        if header["class"] not in _CLASSES and module.startswith("toolkit."):
            importlib.import_module(module)  # one of our own modules: the file names it, it brings no code
        return _CLASSES[header["class"]](**fields)
    except Exception as error:  # a file from elsewhere: whatever is wrong in it, it is the file that is wrong
        what = f"This is not a readable result file ({type(error).__name__}: {error})."
        raise ResultError(what, where=path, fix="Compute the result again and save it with .save(path).") from error


def _read_array(content: bytes) -> np.ndarray:
    """An array of a .npy file, whose header must not promise more than comes."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    if math.prod(shape) * kind.itemsize != len(content) - stream.tell():
        raise ValueError(f"an array of shape {shape} does not fit its {len(content)} bytes")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        value = value.float() if value.dtype == torch.bfloat16 else value  # which NumPy does not have
        arrays[name] = value.detach().cpu().numpy()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if type(value).__name__ == "DataFrame":
        types = [str(dtype) for dtype in value.dtypes]  # an empty column would come back as another type
        exact, rest = {}, value.copy()  # JSON has no infinity and rounds the last digits
        for position in [i for i, dtype in enumerate(value.dtypes) if str(dtype) in ("float64", "float32")]:
            exact[str(position)] = f"{name}/column{position}"
            arrays[exact[str(position)]] = value.iloc[:, position].to_numpy()
            rest.isetitem(position, 0.0)  # the numbers are in the array alone
        split = json.loads(rest.to_json(orient="split", double_precision=15))
        return {"table": split, "types": types, "exact": exact}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, f"{name}/{i}", arrays)] for i, (key, item) in enumerate(value.items())]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, np.generic):
        value = value.item()
    return {"value": value}


def _decode(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    kind, value = next(iter(entry.items()))
    if kind == "tensor":
        return torch.from_numpy(arrays[value])
    if kind == "array":
        return arrays[value]
    if kind == "table":
        columns = {int(i): arrays[name] for i, name in entry.get("exact", {}).items()}
        return _decode_table(value, entry["types"], columns)
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in value}
    if kind in ("list", "tuple"):
        items = [_decode(item, arrays) for item in value]
        return tuple(items) if kind == "tuple" else items
    return value


def _decode_table(split: dict[str, Any], types: list[str], exact: dict[int, np.ndarray]) -> DataFrame:
    import pandas as pd

    table = pd.DataFrame(**split)
    for column, type_name in zip(table.columns, types, strict=True):
        table[column] = table[column].astype(type_name)  # type: ignore[call-overload]
    for position, values in exact.items():
        table.isetitem(position, values)
    return table
