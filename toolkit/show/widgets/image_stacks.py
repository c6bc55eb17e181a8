"""The images of an explorer, by stack and slice, whatever form they came in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.data.catalogue import list_tasks, load_task
from toolkit.errors import ConfigError, DataError
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import as_batches
from toolkit.inference.layers import layers as list_layers
from toolkit.inference.network import Predictor
from toolkit.show.slices import View, choose_view
from toolkit.training.trained import list_trained, load_trained

FEWEST_LAYERS, MOST_LAYERS, PATIENTS = 4, 14, 4


@dataclasses.dataclass(frozen=True)
class Page:
    """One slice: the item that the network takes, and where the slice lies in it."""

    item: Any  # a case or a dict with "image"
    key: str  # name of the item, unique among the images
    position: int | None  # index along the first axis of a volume; None for a 2D item


class ImageStacks:
    """Stacks of slices, in order, of a task (its cases of `split`), cases, or anything that `toolkit.extract` takes."""

    def __init__(self, source: Any, model: nn.Module, split: str = "test") -> None:
        self.stacks: dict[str, list[Page]] = {}
        self.classes: dict[int, str] = {}
        self.items: dict[str, Any] = {}
        for item, key, stack, size in _items(source, model, split):
            pages = self.stacks.setdefault(stack, [])
            positions: Sequence[int | None] = [None] if len(size) == 2 else range(size[0])
            pages += [Page(item, key, position) for position in positions]
            self.items[key] = item
            names = item.get("classes") if isinstance(item, dict) else getattr(item, "classes", None)
            self.classes = self.classes or dict(names or {})
        if not self.stacks:
            raise DataError("There are no images to explore.", fix="Pass a task, cases or arrays.")
        self.classes = self.classes or _numbered_classes(model, next(iter(self.stacks.values()))[0].item)

    def fullest(self, stack: str) -> int:
        """The slice with the most foreground in the reference, or the middle one."""
        pages = self.stacks[stack]
        counts = []
        for page in pages:
            label = label_of(page.item)
            plane = None if label is None else label if page.position is None else label[page.position]
            counts.append(0 if plane is None else int((plane > 0).sum()))
        return int(np.argmax(counts)) if any(counts) else len(pages) // 2

    def foreground(self) -> list[tuple[int, str]]:
        """(index, name) of every class but the background."""
        return [(index, name) for index, name in sorted(self.classes.items()) if index > 0]


def trained_pair() -> tuple[dict[str, nn.Module], Any]:
    """A trained network that comes with the project and one of the same size to compare it with, by name; and cases.

    Plain networks come first; networks below their floor, and those whose data are not here, are left out. The cases are
    those of the first test patients of the site that they were trained on.
    """
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


def view_of(page: Page, padded: Sequence[int], spacing: tuple[float, ...] | None) -> View:
    """The slice of an image as a `View`, at full resolution."""
    return choose_view(
        tuple(image_of(page.item).shape[1:]), tuple(padded), position=page.position, spacing=spacing, largest=10**6
    )


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
    order = {name: place for place, name in enumerate(names)}

    def inside(outer: str) -> list[str]:
        below = [n for n in names if n.startswith(f"{outer}.")]
        return [n for n in below if not any(n.startswith(f"{other}.") for other in below)]

    chosen = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    while len(chosen) < FEWEST_LAYERS:
        grown = list(chosen)
        for name in sorted(chosen, key=lambda one: -len([n for n in names if n.startswith(f"{one}.")])):
            children = inside(name)
            if children and len(grown) - 1 + len(children) <= MOST_LAYERS:
                grown = [n for n in grown if n != name] + children
        if len(grown) == len(chosen):
            break
        chosen = grown
    return sorted(chosen, key=lambda name: order[name])[:MOST_LAYERS]


def _is_case(item: Any) -> bool:
    return hasattr(item, "image") and hasattr(item, "id")


def image_of(item: Any) -> Any:
    """Image (C, *S) of an item."""
    if isinstance(item, dict):
        return item["image"]
    return item.image_array() if hasattr(item, "image_array") else item.image


def _items(source: Any, model: nn.Module, split: str) -> Any:
    """(item, key, stack, spatial size) of everything in a source."""
    if callable(getattr(source, "cases", None)):
        source = source.cases(split)
    if _is_case(source):
        source = [source]
    if isinstance(source, Sequence) and not isinstance(source, str) and all(_is_case(one) for one in source):
        for case in source:
            yield case, case.id, case.volume or case.id, tuple(image_of(case).shape[1:])
        return
    for batch in as_batches(source, model, batch_size=1):
        item = {"image": batch.image[0].cpu(), "id": batch.ids[0], "spacing": batch.spacing[0]}
        if batch.label is not None:
            item["label"] = batch.label[0, 0].cpu()
        if batch.classes:
            item["classes"] = batch.classes
        yield item, batch.ids[0], batch.volumes[0], batch.size


def _numbered_classes(model: nn.Module, item: Any) -> dict[int, str]:
    batch = next(iter(as_batches([item], model, batch_size=1)))
    predictor = Predictor(model)
    with untouched(predictor.model, "eval"), torch.no_grad():
        outputs = predictor.one_pass(predictor.one_window(batch.image)).shape[1]
    return {index: f"class {index}" for index in range(max(2, outputs))}
