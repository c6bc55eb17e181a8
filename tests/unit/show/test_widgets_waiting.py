"""Work that takes long is announced at once and follows from the event loop; the last of several changes counts."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

import toolkit as tk
from toolkit.errors import DataError
from toolkit.show.widgets import state
from toolkit.show.widgets.canvas import Canvas
from toolkit.show.widgets.state import AT_ONCE, PAUSE, Control, Explorer, Key, TimedResults

LATER = 5 * PAUSE


class Slow(Explorer):
    """One number; its result is expected to take long at first, and can fail."""

    def __init__(self, guess: float = 1.0, seconds: float = 0.0) -> None:
        super().__init__()
        self._values = {"number": 0}
        self.memory, self.seconds = TimedResults(guesses={"square": guess}), seconds
        self.made: list[int] = []
        self.heard: list[int] = []
        self.words: list[tuple[str, bool]] = []

    def controls(self) -> list[Control]:
        return [Control("number", "number", "integer", low=0, high=9)]

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        return [(self.memory, ("square", self._values["number"]))]

    def result(self) -> int:
        number = self._values["number"]
        if number == 9:
            raise DataError("Nine is too many.")
        if number == 8:
            raise ZeroDivisionError("eight")
        self.memory.get(("square", number), lambda: self.made.append(number) or time.sleep(self.seconds))
        return number

    def draw(self) -> Canvas:
        self.result()
        return Canvas(5, 5)

    def with_page(self) -> Slow:
        self.listen(lambda: self.heard.append(self.result()), lambda words, failed: self.words.append((words, failed)))
        return self


def test_long_work_is_announced_and_only_the_last_change_is_computed() -> None:
    explorer = Slow().with_page()

    async def page() -> None:
        for number in (1, 2, 3):
            explorer.set(number=number)
            assert explorer.waiting
            assert (explorer.made, explorer.heard) == ([], [])
        await asyncio.sleep(LATER)

    asyncio.run(page())
    assert (explorer.made, explorer.heard, explorer.waiting) == ([3], [3], False)
    assert [failed for _, failed in explorer.words] == [False] * 3
    assert explorer.words[0][0] == "Computing, about 1 s …"


def test_what_is_known_or_quick_comes_at_once() -> None:
    explorer = Slow().with_page()
    explorer.memory.get(("square", 2), lambda: None)  # took no time: the guess is forgotten

    async def page() -> None:
        explorer.set(number=2)
        assert explorer.heard == [2]
        explorer.set(number=3)
        assert explorer.heard == [2, 3]

    asyncio.run(page())
    assert explorer.words == []


def test_a_kind_that_took_long_is_announced_the_next_time() -> None:
    explorer = Slow(guess=0.0, seconds=1.2 * AT_ONCE).with_page()

    async def page() -> None:
        explorer.set(number=1)
        assert (explorer.heard, explorer.words) == ([1], [])
        explorer.set(number=2)
        assert (explorer.heard, len(explorer.words)) == ([1], 1)
        explorer.set(number=1)  # known: at once, and nothing is left of the announced change
        assert explorer.heard == [1, 1]
        await asyncio.sleep(LATER)

    asyncio.run(page())
    assert (explorer.heard, explorer.made) == ([1, 1], [1])


def test_an_error_of_announced_work_goes_to_the_page() -> None:
    explorer = Slow().with_page()

    async def page() -> None:
        explorer.set(number=9)
        await asyncio.sleep(LATER)

    asyncio.run(page())
    assert explorer.words[-1] == ("Nine is too many.", True)
    assert not explorer.waiting


def test_an_error_that_is_not_ours_is_shown_and_raised() -> None:
    explorer = Slow().with_page()

    async def page() -> None:
        explorer.set(number=8)
        with pytest.raises(ZeroDivisionError):
            explorer.catch_up()

    asyncio.run(page())
    assert explorer.words[-1] == ("ZeroDivisionError: eight", True)


def test_without_an_event_loop_or_a_page_everything_comes_at_once() -> None:
    explorer = Slow().with_page()
    explorer.set(number=1)
    assert (explorer.heard, explorer.words) == ([1], [])

    async def script() -> Slow:
        return Slow().set(number=2)

    assert not asyncio.run(script()).waiting


def test_python_need_not_wait_for_the_page() -> None:
    explorer = Slow().with_page()

    async def cell() -> None:
        explorer.set(number=4)
        explorer.compose()
        assert explorer.made == [4]
        explorer.catch_up()
        explorer.catch_up()  # nothing is left to do
        assert (explorer.heard, explorer.waiting) == ([4], False)
        await asyncio.sleep(LATER)

    asyncio.run(cell())
    assert (explorer.made, explorer.heard) == ([4], [4])


def test_the_page_of_the_maps_says_that_captum_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "AT_ONCE", 0.5)  # a busy machine may need a tenth of a second to draw
    torch.manual_seed(0)
    explorer = tk.widgets.cam_explorer(tk.unet(1, 3, channels=(4, 8)), torch.randn(2, 1, 32, 32))
    view = explorer.view.explorer_view

    async def page() -> None:
        before = view.picture.value
        view.controls["method"].value = "saliency"
        assert "Computing" in view.message.value
        assert view.picture.value == before
        await asyncio.sleep(LATER)
        assert view.message.value == ""
        assert view.picture.value != before
        view.controls["method"].value = "grad_cam"
        view.controls["method"].value = "saliency"  # known now
        assert view.message.value == ""

    asyncio.run(page())
    assert view.picture.value == explorer.compose().encode()[0]


def test_the_drift_numbers_of_a_layer_not_seen_yet_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(tk.unet(1, 3, channels=(4, 8)))
    images = torch.randn(6, 1, 32, 32)
    labels = torch.randint(0, 3, (6, 1, 32, 32))
    features = [
        tk.extract(one, images, ["bottleneck", "decoder.*"], pool="voxels", samples=8, label=labels) for one in networks
    ]
    explorer = tk.widgets.drift_explorer(features, bootstrap=20)
    view = explorer.view.explorer_view
    monkeypatch.setitem(explorer.memory.seconds, "drift", 1.0)
    table = view.box.children[-1].children[1]

    async def page() -> None:
        before = table.value
        view.controls["layer"].value = "decoder.1"
        assert explorer.waiting
        assert table.value == before
        await asyncio.sleep(LATER)
        assert table.value != before

    asyncio.run(page())
    assert not explorer.waiting
