"""`on_log`: what a run tells while it trains. Rows go to callables, pictures of predictions to those that take them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from toolkit.data.case import Case
from toolkit.errors import ToolkitWarning
from toolkit.inference.network import Predictor
from toolkit.inference.predict import predict_volumes
from toolkit.inference.volumes import group_volumes, one_map, stack

OnLog = Callable[[dict[str, Any]], object]
_COLOURS = np.array(
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [230, 159, 0]], np.float32
)


class Watchers:
    """The callables of one run; one that fails is named in a warning and left alone from then on.

    Each is called with a copy of every row of the history. One that has a method `pictures(step, images)` is also given
    {name: uint8 (H, 3 W, 3)} at every validation.
    """

    def __init__(self, given: OnLog | Iterable[OnLog] | None = None) -> None:
        self._active: list[Any] = [] if given is None else [given] if callable(given) else list(given)

    def __bool__(self) -> bool:
        return bool(self._active)

    def row(self, row: Mapping[str, Any]) -> None:
        """Hand over one row."""
        self._each(self._active, lambda one: one(dict(row)))

    def pictures(self, step: int, draw: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Hand over pictures; they are drawn if any of them takes some."""
        if takers := [one for one in self._active if hasattr(one, "pictures")]:
            images = draw()
            self._each(takers, lambda one: one.pictures(step, images))

    def _each(self, watchers: Sequence[Any], tell: Callable[[Any], object]) -> None:
        for one in list(watchers):
            try:
                tell(one)
            except Exception as error:  # hours of training must not end because a tracking server did
                self._active.remove(one)
                what = f"on_log={one!r} failed and is not called again ({type(error).__name__}: {error})"
                warnings.warn(f"{what}; training goes on, history.jsonl holds every row.", ToolkitWarning, stacklevel=2)


def prediction_pictures(model: nn.Module, cases: Sequence[Case], volumes: int = 3) -> dict[str, np.ndarray]:
    """Image, reference, prediction side by side, (H, 3 W, 3) uint8, of the fullest slice of the first volumes of labelled cases."""
    shown = [
        [max(volume, key=lambda case: int(np.count_nonzero(case.label_array())))]
        for volume in group_volumes(cases)[:volumes]
    ]
    images = {}
    for (case,), labels in zip(shown, predict_volumes(Predictor(model), shown), strict=True):
        image, reference = case.image_array()[0], stack([case.label_array()], [case])
        labels = one_map(labels, reference.ndim)
        if reference.ndim == image.ndim + 1:  # a slice of a stack
            labels, reference = labels[0], reference[0]
        if image.ndim == 3:
            fullest = int((reference > 0).sum((1, 2)).argmax())
            image, reference, labels = image[fullest], reference[fullest], labels[fullest]
        low, high = np.percentile(image, (1, 99))
        scaled = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
        grey = np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=-1)
        images[case.id] = np.concatenate([grey, _overlaid(grey, reference), _overlaid(grey, labels)], axis=1)
    return images


def _overlaid(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    colour = _COLOURS[(labels.astype(int) - 1) % len(_COLOURS)]
    return np.where(labels[..., None] > 0, 0.5 * grey + 0.5 * colour, grey).astype(np.uint8)
