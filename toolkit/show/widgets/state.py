"""`Explorer`: the state of an explorer in plain Python, and what may be changed about it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from toolkit.errors import ConfigError, ToolkitError
from toolkit.files import write_atomically
from toolkit.show.widgets.canvas import Canvas, below_each_other
from toolkit.show.widgets.view import ExplorerView, show

AT_ONCE = 0.09  # s; what is expected to take longer is announced, and follows
PAUSE = 0.03  # s after an announcement: the page shows it, and the next change of a moving slider replaces it
Value = TypeVar("Value")
Key = tuple[Hashable, ...]


class TimedResults:
    """Results by key, at most so many; the first entry of a key is the kind of call.

    `guesses` are the seconds of kinds that have not been called yet; without one a kind counts as quick.
    """

    def __init__(self, most: int = 128, guesses: Mapping[Hashable, float] | None = None) -> None:
        self.most = most
        self.seconds: dict[Hashable, float] = dict(guesses or {})
        self._values: OrderedDict[Key, Any] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made on first use."""
        if key in self._values:
            self._values.move_to_end(key)
        else:
            self._values[key], self.seconds[key[0]] = seconds_of(make)
            if len(self._values) > self.most:
                self._values.popitem(last=False)
        return self._values[key]

    def expected(self, key: Key) -> float:
        """Seconds that `get` will take: none for what is known, else as long as the last one of its kind took."""
        return 0.0 if key in self._values else self.seconds.get(key[0], 0.0)

    def __contains__(self, key: Key) -> bool:
        return key in self._values


def seconds_of(make: Callable[[], Value]) -> tuple[Value, float]:
    """What a call returns, and its seconds by the wall clock."""
    started = time.perf_counter()
    value = make()
    return value, time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class Control:
    """One thing that can be set.

    Its kind is "choice" (one of `options`), "several" (any of `options`, a tuple), "integer" or "real" (from `low` to
    `high`), or "switch" (True or False).
    """

    name: str  # key in the state
    label: str  # what the page calls it
    kind: str
    options: tuple[tuple[str, Any], ...] = ()  # (label, value)
    low: float = 0  # smallest number
    high: float = 1  # largest number
    step: float = 1  # of a slider
    animated: bool = False  # the page offers a play button
    hint: str = ""  # tooltip
    group: str = ""  # heading under which the page puts it

    def checked(self, value: Any) -> Any:
        """The value, as the type it has in the state."""
        values = [one for _, one in self.options]
        if self.kind == "choice" and value in values:
            return value
        if self.kind == "several" and not isinstance(value, str) and all(one in values for one in value):
            return tuple(one for one in values if one in value)
        if self.kind == "switch" and isinstance(value, bool):
            return value
        if self.kind in ("integer", "real") and not isinstance(value, (bool, str)):
            number = int(value) if self.kind == "integer" else float(value)
            if number == value and self.low <= number <= self.high:
                return number
        allowed = ", ".join(map(str, values)) if values else f"a number from {self.low:g} to {self.high:g}"
        fix = "Use True or False." if self.kind == "switch" else f"Use {allowed}."
        raise ConfigError(f"{value!r} is no value of {self.name}.", where=f"explorer.set({self.name}=...)", fix=fix)


class Explorer:
    """Base of all explorers.

    A subclass names its controls, composes the picture of the current state, and says what clicks and keys mean.
    `state` holds one value per control, at first those that the constructor is given.
    """

    title = "Explorer"
    arrows: ClassVar[dict[str, tuple[str, int]]] = {}  # "Left", "Up", ... -> the control that it moves, and how far

    def __init__(self, **values: Any) -> None:
        self._values: dict[str, Any] = values
        self._listeners: list[Callable[[], None]] = []
        self._announcers: list[Callable[[str, bool], None]] = []
        self._due: asyncio.TimerHandle | None = None
        self._drawing = 0.0
        self._canvas: Canvas | None = None

    def controls(self) -> list[Control]:
        """What can be set now; options may depend on the state."""
        raise NotImplementedError

    def draw(self) -> Canvas:
        """Compose the picture of the current state."""
        raise NotImplementedError

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        """The remembered results that the picture of the current state is made from."""
        return []

    def adapt(self, changed: set[str]) -> None:
        """Bring the rest of the state into line after a change; called before anybody is told."""

    def picked(self, area: str, row: int, column: int) -> None:
        """React to a click on a cell of an area of the picture."""

    def pressed(self, key: str) -> None:
        """React to a key pressed while the picture has the focus: an arrow key, "Enter" or " "."""
        if (step := self.arrows.get(key.removeprefix("Arrow"))) is not None:
            self.shift(*step)

    def readout(self, x: float, y: float) -> str:
        """What is under a point of the picture, for the line below it."""
        return ""

    def turned(self, x: float, y: float, steps: float) -> None:
        """React to the mouse wheel at a point of the picture; positive steps come closer."""

    def dragged(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """React to a drag from one point of the picture to another."""

    def actions(self) -> list[tuple[str, str, Callable[[], str]]]:
        """Buttons beside the controls: text, icon, and what they do; it returns what to say about it."""
        return [("Save this figure", "download", lambda: f"Saved as {self.save()}, beside the notebook.")]

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write what is shown of the current state as PNG.

        Args:
            path: the .png file; None = the explorer's title with a number that is free, in the working directory.

        Raises:
            ConfigError: another suffix.
        """
        if path is None:
            stem = self.title.lower().replace(" ", "_")
            path = next(file for n in itertools.count(1) if not (file := Path(f"{stem}_{n}.png")).exists())
        if Path(path).suffix.lower() != ".png":
            raise ConfigError("An explorer's picture is a PNG.", where=str(path), fix="Use a path ending in .png.")
        return write_atomically(Path(path), below_each_other(self.static_pictures()), parents=True)

    @property
    def state(self) -> dict[str, Any]:
        """A copy of the state: one value per control."""
        return dict(self._values)

    def set(self, **changes: Any) -> Self:
        """Change the state; the page follows.

        Args:
            changes: new values by name of the control.

        Raises:
            ConfigError: an unknown name or value; then nothing is changed.
        """
        before = dict(self._values)
        try:
            unknown = set(changes) - {control.name for control in self.controls()}
            if unknown:
                what = f"This explorer has no {', '.join(sorted(unknown))}."
                fix = f"It has {', '.join(control.name for control in self.controls())}."
                raise ConfigError(what, where="explorer.set(...)", fix=fix)
            for name in [control.name for control in self.controls() if control.name in changes]:
                value = self._control(name).checked(changes[name])
                if value != self._values.get(name):
                    self._values[name] = value
                    self.adapt({name})
        except BaseException:
            self._values = before
            raise
        if self._values != before:
            self.changed()
        return self

    def changed(self) -> None:
        """Forget the picture and tell the page: at once, or after an announcement if that takes long.

        Of several changes announced in a row only the last is computed.
        """
        self._canvas = None
        self._overtaken()
        seconds = self.expected()
        if self._announcers and seconds > AT_ONCE:
            with contextlib.suppress(RuntimeError):  # no loop runs here
                self._due = asyncio.get_running_loop().call_later(PAUSE, self.catch_up)
        if self._due is None:
            self._tell()
        else:
            self._announce(f"Computing, about {seconds:.2g} s …")

    def expected(self) -> float:
        """Seconds until the picture of the current state will be there, judged by the last result of each kind."""
        return self._drawing + sum(memory.expected(key) for memory, key in dict.fromkeys(self.wanted()))

    @property
    def composed(self) -> bool:
        """Whether the picture of the current state is there; if not, it takes time, or it failed."""
        return self._canvas is not None

    @property
    def waiting(self) -> bool:
        """Whether the page was told to wait for the picture of the current state."""
        return self._due is not None

    def catch_up(self) -> None:
        """Compute what was announced, now; see `attempt`."""
        if self._overtaken():
            self.attempt(self._tell, self._announce)

    @staticmethod
    def attempt(action: Callable[[], object], announce: Callable[[str, bool], None]) -> None:
        """Do something; an error is announced, and one that is not the toolkit's is also raised."""
        try:
            action()
        except Exception as error:
            ours = isinstance(error, ToolkitError)
            announce(str(error) if ours else f"{type(error).__name__}: {error}", True)
            if not ours:
                raise

    def _overtaken(self) -> bool:
        """Drop what was announced; whether anything was."""
        due, self._due = self._due, None
        if due is not None:
            due.cancel()
        return due is not None

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _announce(self, words: str, failed: bool = False) -> None:
        for announcer in list(self._announcers):
            announcer(words, failed)

    def compose(self) -> Canvas:
        """The picture of the current state; composed once per state."""
        if self._canvas is None:
            missing = [key for memory, key in self.wanted() if key not in memory]
            canvas, seconds = seconds_of(self.draw)
            if not missing:
                self._drawing = seconds
            self._canvas = canvas
        return self._canvas

    def click(self, x: float, y: float) -> Self:
        """A click on the picture, in its pixels."""
        if (cell := self.compose().hit(x, y)) is not None:
            self.picked(*cell)
        return self

    def key(self, key: str) -> Self:
        self.pressed(key)
        return self

    def listen(self, listener: Callable[[], None], announcer: Callable[[str, bool], None] | None = None) -> None:
        """Call `listener` after every change, when the picture may be asked for.

        `announcer` is called with words before work that takes long, and with (words, True) if that work failed. In a
        program that runs an event loop, such as a notebook, the work then follows from the loop.
        """
        self._listeners.append(listener)
        if announcer is not None:
            self._announcers.append(announcer)

    def shift(self, name: str, by: int) -> None:
        """Move a choice or a number by so many places, staying within its bounds."""
        control, now = self._control(name), self._values[name]
        if control.kind == "choice":
            values = [value for _, value in control.options]
            self.set(**{name: values[min(max(values.index(now) + by, 0), len(values) - 1)]})
        else:
            self.set(**{name: min(max(now + by * control.step, control.low), control.high)})

    def _control(self, name: str) -> Control:
        return next(one for one in self.controls() if one.name == name)

    @functools.cached_property
    def view(self) -> Any:
        """The ipywidgets box of this explorer, built on first use."""
        return ExplorerView(self).box

    def extra_views(self) -> list[Any]:
        """Widgets that stand below the picture, such as a Plotly figure."""
        return []

    def static_pictures(self) -> list[bytes]:
        """PNGs of the current state that stay readable without a kernel."""
        return [self.compose().png()]

    def _ipython_display_(self) -> None:
        show(self)
