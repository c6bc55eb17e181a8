"""Where every panel stands, in pixels: both backends draw into the same rectangles."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from itertools import zip_longest

import numpy as np

from toolkit.show.colours import FAINT, TEXT, hex_colour
from toolkit.show.panels import Coloured, Figure, Image, Panel, Series

# in pixels; 11.2 are 8 points in print and more on a screen
TITLE_SIZE, SUBTITLE_SIZE, PANEL_SIZE, NOTE_SIZE, TICK_SIZE, CAPTION_SIZE = 16, 12, 12.5, 11.2, 11.2, 11.2
MANY = 9  # pictures in a row that are too small beside each other
WIDEST = 1000  # pixels of a page: shown at its own size wherever there is room for a notebook
MARGIN, GAP = 18, 10
BOLD = 1.12  # bold text is this much wider
LINE = 1.35  # line height in units of the font size
_GLYPH = 0.60  # width of an average glyph in units of the font size, for the wider of the two backends' fonts


def corners(one: Series) -> list[tuple[str, str]]:
    """Where the number of every point of a joined series stands: on the side away from the points before and after it."""
    points = np.stack([np.asarray(one.x, dtype=float), np.asarray(one.y, dtype=float)], 1)
    away = [point - points[max(0, i - 1) : i + 2].mean(0) for i, point in enumerate(points)]
    return [("bottom" if up < 0 else "top", "left" if right < 0 else "right") for right, up in away]


@dataclasses.dataclass(frozen=True)
class Placed:
    """One panel and the rectangle of its axes; `top` is measured downwards from the figure's upper edge."""

    panel: Panel
    left: float
    top: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Text:
    """Wrapped lines, and where their upper left corner is."""

    lines: tuple[str, ...]
    left: float
    top: float
    size: float
    colour: str = FAINT
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """Size of the page in pixels, its texts and panels."""

    width: int
    height: int
    texts: tuple[Text, ...]
    placed: tuple[Placed, ...]


def wrap(text: str, width: float, size: float) -> tuple[str, ...]:
    """Lines that fit into `width` pixels at a font size; existing line breaks are kept, long names break after / or _."""
    characters = max(8, int(width / (size * _GLYPH)))
    return tuple(
        line
        for part in text.splitlines()
        for line in textwrap.wrap(_in_pieces(part, characters), characters, break_on_hyphens=False) or [""]
    )


def _in_pieces(text: str, characters: int) -> str:
    """Words longer than a line with spaces where they may break; no two pieces fit on one line together."""
    words = []
    for word in text.split(" "):
        pieces = [""]
        for part in re.split(r"(?<=[/_])", word) if len(word) > characters else [word]:
            if pieces[-1] and len(pieces[-1]) + len(part) > characters:
                pieces.append("")
            pieces[-1] += part
        words += pieces
    return " ".join(words)


def stamp_size(stamp: str, width: float) -> float:
    """Font size in pixels at which a stamp fills half the page's width."""
    return min(90.0, 0.6 * width / (len(stamp) * _GLYPH))


def lines_height(lines: tuple[str, ...], size: float) -> float:
    """Height of wrapped lines in pixels."""
    return len(lines) * size * LINE


def place(figure: Figure, minimum_width: int = 480) -> Layout:
    """Lay a figure out; the page is never narrower than `minimum_width`, so that captions stay readable."""
    rows = _folded([row for row in figure.rows if any(panel is not None for panel in row)])
    rows = _narrowed([_sharing(row) for row in rows], WIDEST - 2 * MARGIN)
    columns = _columns(rows)
    content = max((sum(sum(cell) for cell in row) + GAP * max(0, len(row) - 1) for row in columns), default=0)
    width = max(minimum_width, round(content + 2 * MARGIN))
    usable = width - 2 * MARGIN
    title = wrap(figure.title, usable, TITLE_SIZE * BOLD)
    subtitle = wrap(figure.subtitle, usable, SUBTITLE_SIZE)
    caption = wrap(figure.caption, usable, CAPTION_SIZE)
    top = MARGIN * 0.7 + lines_height(title, TITLE_SIZE)
    texts = [
        Text(title, MARGIN, MARGIN * 0.7, TITLE_SIZE, TEXT, bold=True),
        Text(subtitle, MARGIN, top + 2, SUBTITLE_SIZE),
    ]
    top += lines_height(subtitle, SUBTITLE_SIZE) + 10
    left, key = float(MARGIN), figure.key()
    for label, name in key.items():
        texts.append(Text((f"■ {name}",), left, top - 4, NOTE_SIZE, hex_colour(label)))
        left += (len(name) + 4) * NOTE_SIZE * _GLYPH
    top += NOTE_SIZE * LINE if key else 0
    placed: list[Placed] = []
    for row, cells in zip(rows, columns, strict=True):
        heads = {index: _head(panel) for index, panel in enumerate(row) if panel is not None}
        head = max(lines_height(t, PANEL_SIZE) + lines_height(n, NOTE_SIZE) for t, n in heads.values()) + 5
        bottom = 0.0
        for index, (heading, note) in heads.items():
            panel = row[index]
            assert panel is not None
            start = MARGIN + cells[index][0] + sum(sum(cell) for cell in cells[:index]) + GAP * index
            placed.append(Placed(panel, start, top + head, panel.width, panel.height))
            below = top + head - lines_height(note, NOTE_SIZE) - 4
            texts.append(Text(heading, start, below - lines_height(heading, PANEL_SIZE), PANEL_SIZE, TEXT, bold=True))
            texts.append(Text(note, start, below, NOTE_SIZE))
            bottom = max(bottom, panel.height + panel.padding()[2])
        top += head + bottom + GAP
    height = round(top + lines_height(caption, CAPTION_SIZE) + MARGIN)
    foot = height - lines_height(caption, CAPTION_SIZE) - MARGIN * 0.6
    texts.append(Text(caption, MARGIN, foot, CAPTION_SIZE))
    return Layout(width, height, tuple(text for text in texts if text.lines), tuple(placed))


def _head(panel: Panel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The wrapped title and note of a panel."""
    title = wrap(panel.title, panel.width + panel.padding()[1] + GAP - 2, PANEL_SIZE * BOLD)
    return title, wrap(panel.note, panel.width + 8, NOTE_SIZE)


def _folded(rows: list[list[Panel | None]]) -> list[list[Panel | None]]:
    """A grid of many pictures a row in two halves, one below the other; what stood above one another still does."""
    count = len(rows[0]) if rows else 0
    if count < MANY or any(len(row) != count or not all(isinstance(one, Image | None) for one in row) for row in rows):
        return rows
    half, folded = -(-count // 2), [row[: -(-count // 2)] for row in rows]
    for row in rows:
        name = row[0].title.split(":")[0] if row[0] is not None else ""
        first, *others = row[half:]
        titled = first and dataclasses.replace(first, title=f"{name}: {first.title}".removeprefix(": "))
        folded.append([titled, *others])
    return folded


def _sharing(row: list[Panel | None]) -> list[Panel | None]:
    """A row with one colour bar a scale, relative where the ranges differ, and one millimetre bar a size."""
    shared: list[Panel | None] = []
    bars = [panel.ramp() for panel in row if isinstance(panel, Coloured) and panel.bar]
    known = None
    for place, panel in enumerate(row):
        if isinstance(panel, Coloured) and panel.bar:
            low, _, scale = panel.ramp()
            later = [one for one in row[place + 1 :] if isinstance(one, Coloured) and one.bar]
            if any(one.ramp()[2] == scale for one in later):
                panel = dataclasses.replace(panel, bar=False)
            elif len({ramp for ramp in bars if ramp[2] == scale}) > 1:
                ticks = ("\N{MINUS SIGN}max", "0", "max") if low < 0 else ("min", "", "max")
                panel = dataclasses.replace(panel, bar_ticks=ticks)
        if isinstance(panel, Image) and panel.mm is not None:
            size = (panel.mm, panel.shown(), panel.width)
            panel, known = (dataclasses.replace(panel, mm=None), known) if size == known else (panel, size)
        shared.append(panel)
    return shared


def _narrowed(rows: list[list[Panel | None]], width: float) -> list[list[Panel | None]]:
    """The panels of a figure that is too wide, smaller by one factor; texts keep their size."""
    factor = 1.0
    for row in rows:
        panels = [panel for panel in row if panel is not None]
        inner = sum(panel.width for panel in panels)
        around = sum(panel.padding()[0] + panel.padding()[1] for panel in panels) + GAP * (len(row) - 1)
        factor = min(factor, max(0.3, (width - around) / inner)) if inner else factor
    if factor == 1.0:
        return rows
    return [[None if panel is None else _smaller(panel, factor) for panel in row] for row in rows]


def _smaller(panel: Panel, factor: float) -> Panel:
    square = isinstance(panel, Image) or panel.width == panel.height
    height = int(panel.height * factor) if square else panel.height
    return dataclasses.replace(panel, width=int(panel.width * factor), height=height)


def _columns(rows: list[list[Panel | None]]) -> list[list[tuple[float, float, float]]]:
    """Width left of, inside and right of every cell; columns line up where all their panels are of one kind."""
    sizes = [
        [(0.0, 0.0, 0.0) if p is None else (float(p.padding()[0]), float(p.width), float(p.padding()[1])) for p in row]
        for row in rows
    ]
    if any(len({type(p) for p in column if p is not None}) > 1 for column in zip_longest(*rows)):
        return sizes
    count = max((len(row) for row in rows), default=0)
    for index in range(count):
        column = [row for row in sizes if index < len(row)]
        inner = [row[index][2] for row in column if index + 1 < len(row) or len(row) == count]  # others have room there
        left, width = (max(row[index][part] for row in column) for part in (0, 1))
        for row in column:
            row[index] = (left, width, max(inner) if index + 1 < len(row) or len(row) == count else row[index][2])
    return sizes
