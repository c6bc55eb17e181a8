"""The figures of several results of one kind, one below the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from toolkit.errors import ResultError
from toolkit.show.captions import captions
from toolkit.show.draw import compose
from toolkit.show.panels import Figure, Panel


def stacked(results: Sequence[Any], names: Sequence[str], *, note: str = "", **options: Any) -> Figure:
    """One below the other, each row led by the name of its network; the first figure's title and subtitle are kept.

    For kinds without a composer of their own for several networks, for example masked latents.

    Args:
        results: of one class.
        names: names of the networks.
        note: sentence for the caption.
        options: handed to the composer of each.

    Raises:
        ResultError: results of different classes, or no figure for them.
    """
    if len({type(result) for result in results}) != 1:
        raise ResultError("Only results of one kind can be stacked.", where="stacked(...)")
    figures = [compose(result, **options) for result in results]
    rows: list[list[Panel | None]] = []
    for figure, name in zip(figures, names, strict=True):
        for row in figure.rows:
            first = row[0]
            head = None if first is None else dataclasses.replace(first, title=f"{name}: {first.title}")
            rows.append([head, *row[1:]])
    return Figure(
        title=figures[0].title, subtitle=figures[0].subtitle, rows=rows, caption=captions(results, names, note)
    )
