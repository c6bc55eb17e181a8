"""The state of an explorer without any page: what may be set, and that nothing is half changed."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.errors import ConfigError
from toolkit.show.widgets.canvas import Area, Canvas
from toolkit.show.widgets.state import Control, Explorer, TimedResults


class Counting(Explorer):
    """Two dependent controls: the number may not exceed what the word allows."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Any] = {"word": "one", "number": 0, "flag": True, "some": ("a",)}
        self.drawn = 0

    def controls(self) -> list[Control]:
        high = {"one": 1, "nine": 9}[self._values["word"]]
        return [
            Control("word", "word", "choice", (("1", "one"), ("9", "nine"))),
            Control("number", "number", "integer", low=0, high=high),
            Control("flag", "flag", "switch"),
            Control("some", "some", "several", (("A", "a"), ("B", "b"))),
        ]

    def adapt(self, changed: set[str]) -> None:
        self._values["number"] = min(self._values["number"], int(self.controls()[1].high))

    def draw(self) -> Canvas:
        self.drawn += 1
        canvas = Canvas(20, 20)
        canvas.area(Area("cell", 0, 0, 10, 10, 2, 2))
        return canvas

    def picked(self, area: str, row: int, column: int) -> None:
        self.set(flag=bool(row), some=("a", "b") if column else ())

    def pressed(self, key: str) -> None:
        self.shift("number", 1 if key == "ArrowRight" else -1)


def test_values_are_checked_in_the_order_of_the_controls() -> None:
    explorer = Counting().set(number=7, word="nine")
    assert explorer.state == {"word": "nine", "number": 7, "flag": True, "some": ("a",)}
    explorer.set(word="one")
    assert explorer.state["number"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"word": "two"},
        {"number": 2},
        {"number": 0.5},
        {"number": True},
        {"flag": 1},
        {"some": ("c",)},
        {"some": "a"},
        {"x": 1},
    ],
)
def test_a_wrong_value_changes_nothing(changes: dict[str, Any]) -> None:
    explorer = Counting()
    heard: list[int] = []
    explorer.listen(lambda: heard.append(1))
    before = explorer.state
    with pytest.raises(ConfigError):
        explorer.set(flag=False, **changes) if "flag" not in changes else explorer.set(**changes)
    assert explorer.state == before
    assert not heard


def test_listeners_hear_of_changes_only_and_the_picture_is_composed_once() -> None:
    explorer = Counting()
    heard: list[int] = []
    explorer.listen(lambda: heard.append(1))
    explorer.compose()
    explorer.compose()
    explorer.set(number=0)
    assert (explorer.drawn, len(heard)) == (1, 0)
    explorer.set(number=1)
    explorer.compose()
    assert (explorer.drawn, len(heard)) == (2, 1)


def test_clicks_and_keys() -> None:
    explorer = Counting().set(word="nine")
    explorer.click(8, 2)
    assert explorer.state["flag"] is False
    assert explorer.state["some"] == ("a", "b")
    explorer.click(15, 15)  # outside of every area
    assert explorer.state["flag"] is False
    explorer.key("ArrowRight").key("ArrowRight").key("ArrowLeft")
    assert explorer.state["number"] == 1
    for _ in range(20):
        explorer.key("ArrowRight")
    assert explorer.state["number"] == 9


def test_the_state_is_a_copy() -> None:
    explorer = Counting()
    explorer.state["word"] = "nine"
    assert explorer.state["word"] == "one"


def test_memory_keeps_what_was_used_last() -> None:
    memory, made = TimedResults(2), []

    def value(key: str) -> str:
        return memory.get((key,), lambda: made.append(key) or key.upper())

    assert [value(key) for key in "aabac"] == ["A", "A", "B", "A", "C"]
    assert made == ["a", "b", "c"]
    assert value("b") == "B"  # was dropped for c: a was used after it
    assert made == ["a", "b", "c", "b"]
    assert ("c",) in memory
    assert ("a",) not in memory
