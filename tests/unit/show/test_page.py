"""Captions and pages: no paths, no requests, readable without scripts."""

from __future__ import annotations

import html.parser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.show.test_panels import example
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.show.captions import caption, plain
from toolkit.show.report import Section, write_page


class Reader(html.parser.HTMLParser):
    """Collects tags, what would be fetched, and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.alternatives: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden += tag in ("script", "style")
        values = {key: value or "" for key, value in attrs}
        self.fetched += [values[key] for key in ("src", "srcset", "data", "action") if key in values]
        if tag == "link":
            self.fetched.append(values.get("href", ""))
        if tag == "img":
            self.alternatives.append(values.get("alt", ""))

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    path = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    table = pd.DataFrame({"site": ["A", "<b>"], "dice": [0.81234, float("nan")], "file": ["/home/ann/x.nii.gz", "y"]})
    sections = [
        Section("First & last", "One.\n\nTwo at /home/ann/scan.nii", [example()], [("Scores", table)]),
        Section("Second"),
    ]
    write_page("A page", "What it shows.", sections, path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_nothing_is_fetched(page: Reader) -> None:
    assert page.fetched
    assert all(address.startswith("data:image/") for address in page.fetched)


def test_it_reads_without_scripts(page: Reader) -> None:
    text = " ".join(page.text)
    for part in ("A page", "What it shows.", "First & last", "How to read it.", "weights 0123456789ab", "0.812", "<b>"):
        assert part in text
    assert page.tags.count("img") == 1
    assert "a range" in page.alternatives[0], "the alternative text names the panels and their ranges"


def test_no_folder_of_anybody_appears(page: Reader) -> None:
    assert "ann" not in " ".join(page.text)
    assert "scan.nii" in " ".join(page.text)


def test_tables_are_tables_for_screen_readers(page: Reader) -> None:
    assert page.tags.count("caption") == 1
    assert page.tags.count("th") == 3


def test_the_static_page_is_small(tmp_path: Path) -> None:
    path = write_page("t", "", [Section("s", "", [example()])], tmp_path / "r.html", interactive=False)
    assert path.stat().st_size < 600_000
    assert "<script" not in path.read_text(encoding="utf-8")


def test_caption_shortens_hashes_and_paths() -> None:
    record = {
        "weights": "0123456789abcdef" * 4,
        "source": "/home/ann/data/scan.nii",
        "parameters": {"seed": 3, "rate": 0.25},
        "stages": [{"weights": "f" * 64}, {"weights": "e" * 64}],
        "layers": list("abcdef"),
        "nothing": None,
    }
    text = caption(record)
    assert text == (
        "weights 0123456789ab · source scan.nii · seed 3 · rate 0.25 · stage 1 weights ffffffffffff · "
        "stage 2 weights eeeeeeeeeeee · layers a, b, c, d, … (6 in all)"
    )


def test_every_mention_of_segreg_brings_the_note() -> None:
    assert SegReg.caveat in caption({"regularizer": "SegReg"})
    assert SegReg.caveat in caption({}, "network trained with SegReg")
    assert "inference" not in caption({"regularizer": "SelfReg"})


def test_several_captions_carry_the_note_once() -> None:
    records = [{"weights": letter * 64, "data": "d" * 64} for letter in "ab"]
    text = caption({"networks": dict(zip(("plain", "SegReg"), records, strict=True))})
    assert text.splitlines() == [
        "plain: weights aaaaaaaaaaaa",
        "SegReg: weights bbbbbbbbbbbb",
        "data dddddddddddd",
        SegReg.caveat,
    ]


def test_plain_keeps_ordinary_words() -> None:
    assert plain("a / b and 3/4 of and/or") == "a / b and 3/4 of and/or"
    assert plain("C:\\Users\\ann\\x.pth of /home/ann/runs/") == "x.pth of runs"


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame({"n": np.array([3], dtype=np.int64), "x": np.array([0.5], dtype=np.float32)})
    text = write_page(
        "t", "", [Section("s", "", (), [("c", table)])], tmp_path / "r.html", interactive=False
    ).read_text()
    assert '<td class="number">3</td><td class="number">0.5</td>' in text
