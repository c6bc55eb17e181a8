"""`TimedResults`: results of expensive calls by key, and how long a call of each kind took."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")
Key = tuple[Hashable, ...]


class TimedResults:
    """Results by key; the oldest are dropped. The first entry of a key is the kind of call.

    Args:
        most: how many are kept.
        guesses: seconds of kinds that have not been called yet; without one a kind counts as quick.
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
        value: Value = self._values[key]
        return value

    def expected(self, key: Key) -> float:
        """Seconds that `get` will take: none for what is known, else as long as the last one of its kind took."""
        return 0.0 if key in self._values else self.seconds.get(key[0], 0.0)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)


def seconds_of(make: Callable[[], Value]) -> tuple[Value, float]:
    """What a call returns, and its seconds by the wall clock."""
    started = time.perf_counter()
    value = make()
    return value, time.perf_counter() - started
