"""Simulated MR artefacts on whole volumes: the corrupted test sets of the latent-augmentation paper ("ACDC-C").

The arithmetic is TorchIO's (below version 2); the parameters are drawn here, keyed by seed, artefact, volume and copy, so
that the same volume gets the same corruption in any order, and so that they can be read afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit import registry
from toolkit.data.case import Case
from toolkit.data.randomness import keyed_random
from toolkit.data.source import Pair, Source
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError, choose, library
from toolkit.registry import register

ARTEFACTS = ("bias", "ghosting", "motion", "spike")
SIDE = 192


def draw_artefact(name: str, *key: int | str) -> dict[str, Any]:
    """Parameters of one artefact, by the published ranges, as plain numbers.

    "bias": 20 coefficients U(-0.5, 0.5) of a polynomial of order 3. "ghosting": 4 to 10 ghosts along one of the three
    axes, intensity U(0.5, 1). "motion": two movements of U(-30, 30) degrees and U(-10, 10) voxels about all axes, at
    times 1/3 and 2/3, each moved by U(-0.1, 0.1). "spike": one spike anywhere in k-space, U(1, 3) times the maximum.
    """
    choose("artefact", name, ARTEFACTS)
    random = keyed_random("artefact", name, *key)
    if name == "bias":
        return {"order": 3, "coefficients": random.uniform(-0.5, 0.5, 20).tolist()}
    if name == "ghosting":
        ghosts, axis = int(random.integers(4, 11)), int(random.integers(3))
        return {"num_ghosts": ghosts, "axis": axis, "intensity": float(random.uniform(0.5, 1))}
    if name == "motion":
        return {
            "degrees": random.uniform(-30, 30, (2, 3)).tolist(),
            "translation": random.uniform(-10, 10, (2, 3)).tolist(),
            "times": (np.array([1, 2]) / 3 + random.uniform(-0.1, 0.1, 2)).tolist(),
        }
    return {"position": random.uniform(0, 1, 3).tolist(), "intensity": float(random.uniform(1, 3))}


def apply_artefact(stack: np.ndarray, name: str, parameters: Mapping[str, Any]) -> np.ndarray:
    """The artefact on a stack (slices, rows, columns) or (C, slices, rows, columns), float32, voxels taken as cubes."""
    torchio = library("torchio", "Simulated artefacts need", '"torchio<2"')
    if name == "bias":
        transform = torchio.BiasField(**parameters)
    elif name == "ghosting":
        transform = torchio.Ghosting(**parameters, restore=None)
    elif name == "motion":
        moves = {key: np.asarray(value, np.float32) for key, value in parameters.items()}
        transform = torchio.Motion(**moves, image_interpolation="linear")
    else:
        place = np.asarray(parameters["position"]).reshape(1, 3)
        transform = torchio.Spike(spikes_positions=place, intensity=parameters["intensity"])
    volume = torch.from_numpy(np.ascontiguousarray(stack, dtype=np.float32))
    changed = transform(volume if volume.ndim == 4 else volume.unsqueeze(0)).numpy()
    return np.asarray(changed.reshape(stack.shape), dtype=np.float32)


def slices_to_unit_range(stack: np.ndarray) -> np.ndarray:
    """Every slice (the last two axes) to [0, 1] by its own extremes; a constant slice becomes 0."""
    low, high = stack.min((-2, -1), keepdims=True), stack.max((-2, -1), keepdims=True)
    return (stack - low) / np.where(high > low, high - low, 1)


def corrupted(image: np.ndarray, name: str, parameters: Mapping[str, Any]) -> np.ndarray:
    """A volume (C, slices, rows, columns) with an artefact, as the published sets were made.

    The centre of `SIDE` x `SIDE` (padded where it is smaller), slices to [0, 1], the artefact on the whole stack, slices
    to [0, 1] again, back into zeros of the original size.
    """
    cut, offsets = crop_or_pad(image, (SIDE, SIDE))
    changed = slices_to_unit_range(apply_artefact(slices_to_unit_range(cut), name, parameters))
    return put_back(changed, offsets, image.shape[-2:])


def crop_or_pad(stack: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The centre (..., *size) of a stack (..., rows, columns), with zeros where it is smaller, and what `put_back` takes.

    The odd pixel goes before the image when padding and is cut after it when cropping. `put_back` takes the row and the
    column where the cut begins in the padded stack, and the padded stack's sides.
    """
    missing = [max(target - side, 0) for side, target in zip(stack.shape[-2:], size, strict=True)]
    padding = [(0, 0)] * (stack.ndim - 2) + [((extra + 1) // 2, extra // 2) for extra in missing]
    padded = np.pad(stack, padding)
    rows, columns = padded.shape[-2:]
    row, column = (rows - size[0]) // 2, (columns - size[1]) // 2
    return padded[..., row : row + size[0], column : column + size[1]], (row, column, rows, columns)


def put_back(cut: np.ndarray, offsets: tuple[int, int, int, int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `crop_or_pad`: the cut in a canvas of zeros of the original sides (..., *shape)."""
    row, column, rows, columns = offsets
    canvas = np.zeros((*cut.shape[:-2], rows, columns), cut.dtype)
    canvas[..., row : row + cut.shape[-2], column : column + cut.shape[-1]] = cut
    top, left = (rows - shape[0] + 1) // 2, (columns - shape[1] + 1) // 2
    return canvas[..., top : top + shape[0], left : left + shape[1]]


@dataclasses.dataclass(frozen=True, eq=False)
class ArtefactSource(Source):
    """A volume of another reader, corrupted; labels are unchanged."""

    inner: Source = dataclasses.field(default_factory=Source)  # what reads the clean volume
    artefact: str = ARTEFACTS[0]  # one of `ARTEFACTS`
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # drawn by `draw_artefact`

    def read_raw(self) -> Pair:
        """The corrupted volume, every slice in [0, 1]."""
        clean = self.inner.pair()
        if clean.image.ndim != 4:
            raise DataError("Artefacts need whole volumes, not single pictures.", where=self.where)
        return Pair(corrupted(clean.image, self.artefact, self.parameters), clean.label)

    @property
    def where(self) -> str:
        return f"{self.inner.where} + {self.artefact} {json.dumps(dict(self.parameters))}"

    def files(self) -> tuple[Path, ...]:
        return self.inner.files()

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()} + {self.artefact} {json.dumps(dict(self.parameters))}"


@register("task", "with_artefacts")
def with_artefacts(
    task: Task | Mapping[str, Any],
    artefacts: Sequence[str] = ARTEFACTS,
    *,
    copies: int = 3,
    split: str = "test",
    seed: int = 0,
) -> Task:
    """The volumes of one split under simulated MR artefacts, each artefact a site: for tables of robustness.

    Made when a case is read, with TorchIO. Every slice of a corrupted volume is in [0, 1]; where the task's rule gives
    that range too, it stays so, as published, otherwise the rule is applied to the corrupted volume. The parameters
    stand in each case's `source`. Subjects keep their names, so that intervals over patients count each once.

    Args:
        task: stacks of slices, or volumes; or its stored configuration.
        artefacts: of "bias", "ghosting", "motion", "spike"; see `draw_artefact`.
        copies: corruptions of every volume with every artefact (3 as published).
        split: whose volumes.
        seed: of the draws.

    Raises:
        ConfigError: no such artefact or split, fewer than one copy, or a split without cases.

    Example:
        >>> tk.with_artefacts(tk.load_task("phantom-cardiac"), ["bias", "spike"], copies=1).sites
        ('bias', 'spike')
    """
    base = task if isinstance(task, Task) else registry.build("task", dict(task))
    for name in artefacts or ("",):
        choose("artefact", name, ARTEFACTS, where="with_artefacts")
    if not (chosen := base.cases(split)):
        raise ConfigError(f"The split {split!r} of {base.name!r} has no cases.", where="with_artefacts")
    rule = "none" if base.normalisation.startswith(("range", "window:", "none")) else base.normalisation
    cases: list[Case] = []
    readers: dict[tuple[str, int, Source], ArtefactSource] = {}
    for name, copy, case in itertools.product(artefacts, range(copies), chosen):
        inner, volume = case.reader, f"{name}/{case.volume}_{copy}"
        if (name, copy, inner) not in readers:
            drawn = draw_artefact(name, seed, case.volume, copy)
            readers[name, copy, inner] = ArtefactSource(rule, inner.label_values, inner.classes, inner, name, drawn)
        reader = readers[name, copy, inner]
        own: dict[str, Any] = {"id": case.id.replace(case.volume, volume, 1), "volume": volume, "site": name}
        cases.append(dataclasses.replace(case, **own, reader=reader, source=reader.where))
    arguments = {"artefacts": list(artefacts), "copies": copies, "split": split, "seed": seed}
    recipe = registry.describe(base)
    config = None if recipe is None else {"name": "with_artefacts", "arguments": {"task": recipe, **arguments}}
    return base.restricted(cases, name=f"{base.name}_c", sites=tuple(artefacts), manifest=None, toolkit_config=config)
