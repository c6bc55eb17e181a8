"""What explorers of images share: the images by stack and slice; window and level, zoom and pan, values under the cursor."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.data.catalogue import list_tasks, load_task
from toolkit.errors import ConfigError, DataError
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import as_batches
from toolkit.inference.layers import layers as list_layers
from toolkit.inference.memory import defaults_of
from toolkit.inference.network import Predictor
from toolkit.show.slices import View, choose_view
from toolkit.show.widgets.canvas import WHOLE, Area, Canvas, Lens, enlarged, grey, heated, outlined
from toolkit.show.widgets.state import Control, Explorer
from toolkit.training.trained import list_trained, load_trained

FEWEST_LAYERS, MOST_LAYERS, PATIENTS = 4, 14, 4


@dataclasses.dataclass(frozen=True)
class Page:
    """One slice: the item that the network takes, and where the slice lies in it."""

    item: Any  # a case or a dict with "image"
    key: str  # name of the item, unique among the images
    position: int | None  # index along the first axis of a volume; None for a 2D item

    @property
    def image(self) -> Any:
        """The whole image (C, *S)."""
        if isinstance(self.item, dict):
            return self.item["image"]
        return self.item.image_array() if hasattr(self.item, "image_array") else self.item.image

    def view(self, padded: Sequence[int], spacing: tuple[float, ...] | None) -> View:
        """The slice at full resolution; `padded` is the size that a network sees."""
        size = tuple(self.image.shape[1:])
        return choose_view(size, tuple(padded), position=self.position, spacing=spacing, largest=10**6)


class ImageStacks:
    """Stacks of slices, in order, of a task (its cases of `split`), cases, or anything that `toolkit.extract` takes."""

    def __init__(self, source: Any, model: nn.Module, split: str = "test", activation: str | None = None) -> None:
        self.stacks: dict[str, list[Page]] = {}
        self.classes: dict[int, str] = {}
        self.items: dict[str, Any] = {}
        self.voxels = 1  # of the largest image
        for item, key, stack in _items(source, model, split):
            if key in self.items:  # of another task
                again = f" ({sum(one.startswith(f'{key} (') for one in self.items) + 2})"
                key, stack = f"{key}{again}", f"{stack}{again}"
            size = Page(item, key, None).image.shape[1:]
            positions: Sequence[int | None] = [None] if len(size) == 2 else range(size[0])
            self.stacks.setdefault(stack, []).extend(Page(item, key, position) for position in positions)
            self.items[key], self.voxels = item, max(self.voxels, math.prod(size))
            names = item.get("classes") if isinstance(item, dict) else getattr(item, "classes", None)
            self.classes = self.classes or dict(names or {})
        if not self.stacks:
            fix = f"Pass a task with cases in the split {split!r}, or split=..., cases or arrays."
            raise DataError("There are no images to explore.", fix=fix)
        predictor = Predictor(model, activation=activation)
        told, outputs = predictor.activation, 0
        if not told.regions and (told.kind == "sigmoid" or not self.classes):
            batch = next(iter(as_batches(list(self.items.values())[:1], model, batch_size=1)))
            with untouched(model, "eval"), torch.no_grad():
                outputs = predictor.one_pass(predictor.one_window(batch.image)).shape[1]
        self.overlapping = told.overlapping(outputs)  # each output is a region, drawn as its number plus 1
        self.classes = predictor.class_names({} if self.overlapping else self.classes)
        self.classes = self.classes or {i: f"class {i}" for i in range(max(2, outputs + self.overlapping))}

    def fullest(self, stack: str) -> int:
        """The slice with the most foreground in the reference, or the middle one."""
        counts: list[int] = []
        for _, same in itertools.groupby(self.stacks[stack], key=lambda page: page.key):
            pages = list(same)  # of one label, of which every look is a copy
            label = label_of(pages[0].item)
            places = [... if page.position is None else page.position for page in pages]
            counts += [0 if label is None else int((label[place] > 0).sum()) for place in places]
        return int(np.argmax(counts)) if any(counts) else len(counts) // 2

    def kept(self, most: int, bytes_a_voxel: int = 30) -> int:
        """How many results of such images to remember in about a gigabyte, at most so many."""
        return max(4, min(most, 10**9 // (bytes_a_voxel * self.voxels)))

    def foreground(self) -> list[tuple[int, str]]:
        """(index, name) of every class but the background."""
        return [(index, name) for index, name in sorted(self.classes.items()) if index > 0]


def trained_pair(*given: Any) -> tuple[dict[str, nn.Module], Any]:
    """A trained network that comes with the project and one of the same size to compare it with, by name; and cases.

    Plain networks come first; networks below their floor, and those whose data are not here, are left out. The cases are
    those of the first test patients of the site that they were trained on. What else is given has no network, an error.
    """
    if any(one is not None for one in given):
        fix = "Pass the network (or the features) too; without any argument a trained one opens on its own images."
        raise ConfigError("There are images, or a network to compare with, but none to explore.", fix=fix)
    table, tasks = list_trained(), list_tasks()
    table = table[table["above_floor"].astype(bool) & ~table["task"].isin(tasks.loc[~tasks["ready"], "name"])]
    if table.empty:
        raise ConfigError("No trained network is installed.", where="model", fix="Pass a network and images.")
    table = table.assign(first=~table["name"].str.endswith("/plain")).sort_values(["first", "seed", "name"])
    equal = (table[["task", "parameters", "seed"]] == table[["task", "parameters", "seed"]].iloc[0]).all(axis=1)
    pairs = table.loc[equal, ["name", "seed"]].head(2).to_numpy().tolist()
    models = {str(name): load_trained(str(name), int(seed)) for name, seed in pairs}
    record: Any = next(iter(models.values())).provenance
    cases = load_task(**record["task"]).cases("test", site=record["sites"])
    first = list(dict.fromkeys(case.volume or case.id for case in cases))[:PATIENTS]
    return models, [case for case in cases if (case.volume or case.id) in first]


def label_of(item: Any) -> np.ndarray | None:
    """Reference (*S) of an item, or None."""
    if _is_case(item):
        return np.asarray(item.label) if getattr(item, "has_label", True) else None
    label = item.get("label")
    return None if label is None else np.asarray(label)


def default_layers(model: nn.Module, example: Any) -> list[str]:
    """The blocks of a network: its outermost called modules, opened up while they are fewer than four."""
    table = list_layers(model, example)
    dims = 4 if table["shape"].map(len).max() < 5 else 5
    names = [
        n for n, shape in zip(table["name"], table["shape"], strict=True) if len(shape) in (3, dims) and "#" not in n
    ]

    def inside(outer: str) -> list[str]:
        below = [n for n in names if n.startswith(outer)]
        return [n for n in below if not any(n.startswith(f"{other}.") for other in below)]

    chosen = inside("")
    while len(chosen) < FEWEST_LAYERS:
        grown = list(chosen)
        for name in sorted(chosen, key=lambda one: -len([n for n in names if n.startswith(f"{one}.")])):
            children = inside(f"{name}.")
            if children and len(grown) - 1 + len(children) <= MOST_LAYERS:
                grown = [n for n in grown if n != name] + children
        if len(grown) == len(chosen):
            break
        chosen = grown
    return [name for name in names if name in chosen][:MOST_LAYERS]


def _is_case(item: Any) -> bool:
    return hasattr(item, "image") and hasattr(item, "id")


def _items(source: Any, model: nn.Module, split: str) -> Any:
    """(item, key, stack) of everything in a source."""
    if callable(getattr(source, "cases", None)):
        source = source.cases(split)
    if _is_case(source):
        source = [source]
    cases = isinstance(source, Sequence) and not isinstance(source, str) and all(_is_case(one) for one in source)
    if cases and defaults_of(model).files is None:  # else the network sees what it makes of the files
        for case in source:
            yield case, case.id, case.volume or case.id
        return
    for batch in as_batches(source, model, batch_size=1):
        item = {"image": batch.image[0].cpu(), "id": batch.ids[0], "spacing": batch.spacing[0]}
        if batch.label is not None:
            item["label"] = batch.label[0, 0].cpu()
        if batch.classes:
            item["classes"] = batch.classes
        yield item, batch.ids[0], batch.volumes[0]


CLOSEST = 1 / 16  # of the image that is seen at least
STEP = 1.25  # of the wheel


class ImageExplorer(Explorer):
    """Base of the explorers that show a slice; `lens` is what their tiles show of it."""

    def __init__(self, images: ImageStacks | None, **values: Any) -> None:
        super().__init__()
        self.lens: Lens = WHOLE
        self._ranges: dict[str, tuple[float, float, float, float]] = {}
        self.images: Any = images  # None: an explorer without a picture of its own
        if images is not None:
            stack = next(iter(images.stacks))
            self._values = {"case": stack, "slice": images.fullest(stack), "contour": 1}
            self._open()
        self._values |= values

    def image_controls(self) -> list[Control]:
        """Controls of the image itself, the first of every such explorer."""
        if self.images is None:
            return []
        stacks, group = self.images.stacks, "image"
        last = len(stacks[self._values["case"]]) - 1
        low, high, *_ = self._range()
        span, walk, grey = high - low, "also arrow up and down on the picture", "the value in middle grey"
        step, black_to_white = span / 200, "black to white"
        return [
            Control("case", "case", "choice", tuple((name, name) for name in stacks), group=group),
            Control("slice", "slice", "integer", low=0, high=last, hint=walk, group=group),
            Control("level", "level", "real", low=low, high=high, step=step, hint=grey, group=group),
            Control("window", "window", "real", low=step, high=span, step=step, hint=black_to_white, group=group),
            Control("contour", "contour width", "integer", low=1, high=5, group=group),
        ]

    def adapt(self, changed: set[str]) -> None:
        """See `Explorer`: another stack opens at its fullest slice, whole and in its own grey range."""
        if "case" in changed and self.images is not None:
            self._values["slice"] = self.images.fullest(self._values["case"])
            self._open()

    def actions(self) -> list[tuple[str, str, Callable[[], str]]]:
        """See `Explorer`: the way back from a zoom."""
        return super().actions() + [("Whole image", "expand", self._whole)] * (self.images is not None)

    def _whole(self) -> str:
        self.zoom(0)
        return "The whole image."

    def _open(self) -> None:
        low, high, dark, bright = self._range()
        self.lens = WHOLE
        self._values["level"] = (dark + bright) / 2
        self._values["window"] = min(max(bright - dark, (high - low) / 200), high - low)

    def _range(self) -> tuple[float, float, float, float]:
        """Lowest and highest value of the image, and what is shown black and white at first."""
        page = self.page()
        if page.key not in self._ranges:
            image = np.asarray(page.image, dtype=np.float32)
            values = image if len(image) == 3 else image[0]  # what `View.picture` shows
            low, high, dark, bright = (float(v) for v in np.nanpercentile(values, (0, 100, 0.5, 99.5)))
            high = high if high > low else low + 1.0
            self._ranges[page.key] = (low, high, *((dark, bright) if bright > dark else (low, high)))
        return self._ranges[page.key]

    def page(self) -> Page:
        stack = self.images.stacks[self._values["case"]]
        return stack[min(self._values["slice"], len(stack) - 1)]

    def shades(self, picture: np.ndarray) -> np.ndarray:
        """The picture in grey, (H, W, 3) uint8, by window and level."""
        half = self._values["window"] / 2
        return grey(picture, (self._values["level"] - half, self._values["level"] + half))

    def tile(
        self,
        canvas: Canvas,
        area: str,
        place: tuple[int, int],
        size: tuple[int, int],
        view: View,
        *,
        ground: np.ndarray,
        planes: dict[str, np.ndarray],
        heat: tuple[np.ndarray, tuple[float, float], float, str] | None = None,
        labels: np.ndarray | None = None,
        fill: float = 0.0,
    ) -> None:
        """Put a picture that can be zoomed, dragged and read: `place` is (left, top), `size` (height, width) in pixels.

        `ground` is (H, W, 3) uint8, `planes` the values under the cursor by name, each (h, w), `heat` a map over it
        with its limits, opacity and scale, `labels` (H, W) the classes to outline, `fill` the opacity of their colours
        inside.
        """
        pixels = enlarged(ground, size, self.lens) if heat is None else heated(ground, size, *heat, lens=self.lens)
        if labels is not None:
            pixels = outlined(pixels, labels, fill=fill, thickness=self._values["contour"], lens=self.lens)
        canvas.paste(pixels, *place)
        canvas.area(Area(area, *place, size[1], size[0]))
        canvas.planes[area] = {"": ground[..., 0], **planes}
        self._view_shown = view

    def _under(self, x: float, y: float) -> tuple[str, float, float] | None:
        """Area, and how far down and across its image a point of the picture lies; None beside all tiles."""
        canvas = self.compose()
        for area in reversed(canvas.areas):
            share = area.share(x, y)
            if share is not None and area.name in canvas.planes:
                top, left, height, width = self.lens
                return area.name, top + share[0] * height, left + share[1] * width
        return None

    def readout(self, x: float, y: float) -> str:
        """See `Explorer`: row, column, millimetres and every value there."""
        if (place := self._under(x, y)) is None:
            return ""
        area, down, across = place
        planes, view = self.compose().planes[area], self._view_shown
        rows, columns = planes[""].shape
        row, column = int(down * rows), int(across * columns)
        words = [f"row {row}, column {column}"]
        if view.mm is not None:
            words.append(f"{(row + 0.5) * view.mm * view.aspect:.1f} x {(column + 0.5) * view.mm:.1f} mm")
        for name, plane in planes.items():
            value = plane[int(down * plane.shape[0]), int(across * plane.shape[1])] if name else None
            if value is not None:
                words.append(f"{name} {self._named(name, value)}")
        return ", ".join(words)

    def _named(self, name: str, value: Any) -> str:
        if name in ("prediction", "reference") and np.ndim(value) == 0:
            return str(self.images.classes.get(int(value), int(value)))
        return " ".join(f"{one:.3g}" for one in np.atleast_1d(value))

    def turned(self, x: float, y: float, steps: float) -> None:
        if (place := self._under(x, y)) is not None:
            self.zoom(STEP**steps, place[1], place[2])

    def zoom(self, times: float, down: float = 0.5, across: float = 0.5) -> ImageExplorer:
        """Come so many times closer to a place of the image, which stays where it is on the page.

        Args:
            times: above 1 = closer; 0 = the whole image again.
            down: place along the height, from 0 to 1.
            across: place along the width.
        """
        top, left, height, width = self.lens
        side = 1.0 if times == 0 else min(1.0, max(CLOSEST, height / times))
        self._look(down - (down - top) / height * side, across - (across - left) / width * side, side)
        return self

    def dragged(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """See `Explorer`: the image follows the mouse."""
        before, after = self._under(*start), self._under(*end)
        if before is not None and after is not None and before[0] == after[0]:
            top, left, side, _ = self.lens
            self._look(top + before[1] - after[1], left + before[2] - after[2], side)

    def _look(self, top: float, left: float, side: float) -> None:
        lens = (min(max(top, 0.0), 1 - side), min(max(left, 0.0), 1 - side), side, side)
        if lens != self.lens:
            self.lens = lens
            self.changed()
