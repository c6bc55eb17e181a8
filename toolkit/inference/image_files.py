"""Image files as inputs of an analysis, read and normalised as a task's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.first_reading import check as check_first_reading
from toolkit.data.normalise import DEFAULT, normalise
from toolkit.data.reading import dims_of
from toolkit.data.rows import stem_of
from toolkit.data.table import cases_of_rows
from toolkit.errors import DataError


def read_items(
    paths: Sequence[str],
    dims: int | None,
    channels: int | None = None,
    label: str | None = None,
    normalisation: str = DEFAULT,
) -> list[Any]:
    """The images of a file as cases, of a volume one a slice for a 2D network; of a `.npy` array a dict.

    Args:
        paths: any file that a task can be made of, a `.npy` array (*S) or (C, *S), or several NIfTI files, one a channel.
        dims: spatial axes that the network takes.
        channels: that a picture is to have; None = its own.
        label: file of the label.
        normalisation: rule, see `toolkit.data.normalise`.
    """
    files, marks = tuple(Path(path) for path in paths), None if label is None else Path(label)
    if files[0].suffix.lower() == ".npy":
        return [_array(files[0], marks, normalisation)]
    row: dict[str, Any] = {"image": files if len(files) > 1 else files[0], "label": marks, "split": "test"}
    row |= {"case": stem_of(files[0]), "site": "", "subject": ""}
    channels = channels if channels in (1, 3) else None
    return cases_of_rows([row], dims or dims_of(row), channels, {"normalisation": normalisation}, {})[0]


def _array(file: Path, label: Path | None, normalisation: str) -> dict[str, Any]:
    check_first_reading([file])
    try:
        array = np.load(file, allow_pickle=False)
        marks = None if label is None else np.load(label, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"This array cannot be read ({error}).", where=file) from error
    image = normalise(array if array.ndim > 2 else array[None], normalisation)
    return {"image": image, "label": marks, "id": file.stem}
