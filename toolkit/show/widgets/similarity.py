"""`similarity_explorer`: layers against layers, channels against channels, and the maps of a pair of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, LayerError, ResultError
from toolkit.explain.cam_maps import on_image
from toolkit.features.capture import capture
from toolkit.features.layout import to_maps
from toolkit.features.store import Features
from toolkit.features.untouched import untouched
from toolkit.inference.extract import extract
from toolkit.inference.inputs import as_batches
from toolkit.inference.network import Predictor
from toolkit.measure.layer_similarity import layer_similarity
from toolkit.measure.similarity import FORMS, channel_similarity
from toolkit.show.colours import FAINT
from toolkit.show.widgets.canvas import ACCENT, Area, Canvas, coloured, fitted
from toolkit.show.widgets.image_explorer import ImageExplorer, ImageStacks, default_layers, trained_pair
from toolkit.show.widgets.state import Control, Key, TimedResults

MEASURES = {"linear_cka": "linear CKA", "rbf_cka": "RBF CKA", "procrustes": "Procrustes", "rsa": "RSA"}
RSA_ROWS = 300  # it ranks every pair of rows
_SIDE, _LEFT, _NAMES, _MAPS = 270, 14, 84, 200


class SimilarityExplorer(ImageExplorer):
    """Explore how alike layers and channels are: a layer map, channel matrices, and the maps of a pair of channels.

    Use `.state`, `.set(...)` and `.compose()`; the last line of a cell shows it.

    Args:
        source: stored features with moments, or a network, whose features are then extracted from `cases`; None = a
            trained one that comes with the project, on cases of its task.
        cases: a task (its cases of `split`) or cases; with stored features they are only used for the maps.
        layers: of a network: names, globs or aliases; None = its outermost blocks.
        model: with stored features: the network they come from, for the maps.
        split: of a task.
        extraction: further arguments of `toolkit.extract`; the default takes 16 voxels per class and case.

    Raises:
        ConfigError: a network without cases.
        LayerError: a layer that does not exist, or no maps can be captured from the network.
    """

    title = "Similarity of layers and channels"
    arrows: ClassVar = {"Up": ("layer_a", -1), "Down": ("layer_a", 1), "Left": ("layer_b", -1), "Right": ("layer_b", 1)}

    def __init__(
        self,
        source: Features | nn.Module | None = None,
        cases: Any = None,
        *,
        layers: str | Sequence[str] | None = None,
        model: nn.Module | None = None,
        split: str = "test",
        extraction: Mapping[str, Any] | None = None,
    ) -> None:
        if source is None:
            trained, cases = trained_pair(cases, model)
            source = next(iter(trained.values()))
        self.model = source if isinstance(source, nn.Module) else model
        images = None if self.model is None or cases is None else ImageStacks(cases, self.model, split)
        if isinstance(source, nn.Module):
            if images is None:
                fix = "Pass a task or cases."
                raise ConfigError("A network needs cases.", where="similarity_explorer(cases=...)", fix=fix)
            items = list(images.items.values())
            chosen = default_layers(source, items[:1]) if layers is None else layers
            source = extract(source, items, chosen, **{"pool": "voxels", "samples": 16, **(extraction or {})})
        if len(source.layers) < 1:
            raise LayerError("The features hold no layer.")
        super().__init__(images, measure="linear_cka", form="cosine", pair_of="a", channel_i=0, channel_j=1)
        self.features = source
        self.memory = TimedResults(64, {"layers by rsa": 0.5})
        self.maps_memory = TimedResults(16 if images is None else images.kept(16, 400))
        self._values["layer_a"] = self._values["layer_b"] = source.layers[len(source.layers) // 2]
        self.adapt(set())

    def controls(self) -> list[Control]:
        layers = tuple((name, name) for name in self.features.layers)
        last = self._channels(self._pair_layer()) - 1
        measures = tuple((label, name) for name, label in MEASURES.items())
        alike, pair = "similarity", "pair of channels"
        return [
            *[control for control in self.image_controls() if control.name != "contour"],
            Control("measure", "layers by", "choice", measures, group=alike),
            Control("form", "channels by", "choice", tuple((name, name) for name in FORMS), group=alike),
            Control("layer_a", "layer A", "choice", layers, group=alike),
            Control("layer_b", "layer B", "choice", layers, group=alike),
            Control("pair_of", "pair from", "choice", (("layer A", "a"), ("layer B", "b")), group=pair),
            Control("channel_i", "channel i", "integer", low=0, high=last, group=pair),
            Control("channel_j", "channel j", "integer", low=0, high=last, group=pair),
        ]

    def adapt(self, changed: set[str]) -> None:
        """See `Explorer`: channels stay within the layer they are of."""
        super().adapt(changed)
        last = self._channels(self._pair_layer()) - 1
        for name in ("channel_i", "channel_j"):
            self._values[name] = min(self._values[name], last)

    def picked(self, area: str, row: int, column: int) -> None:
        """See `Explorer`: a cell of the layer map opens two layers, a cell of a channel matrix a pair of channels."""
        if area == "layers":
            self.set(layer_a=self.features.layers[row], layer_b=self.features.layers[column])
        elif area.startswith("channels "):
            side = area.removeprefix("channels ")
            alive = self.channels(side).channels
            self.set(pair_of=side).set(channel_i=int(alive[row]), channel_j=int(alive[column]))

    def readout(self, x: float, y: float) -> str:
        """See `Explorer`: also which layers or channels a cell compares, and how alike they are."""
        area, row, column = self.compose().hit(x, y) or ("", 0, 0)
        if not area.startswith(("layers", "channels ")):
            return super().readout(x, y)
        names, matrix = self.features.layers, self.layers().matrix
        if area != "layers":
            found = self.channels(area.removeprefix("channels "))
            names, matrix = found.channels.tolist(), found.matrices[self._values["form"]]
        return f"{names[row]}, {names[column]}: {float(matrix[row, column]):.3g}"

    def layers(self) -> Any:
        """The `LayerSimilarity` of the current measure, kept for later."""
        method = self._values["measure"]
        key = (f"layers by {method}",)
        return self.memory.get(key, lambda: layer_similarity(self.features, method=method, max_rows=RSA_ROWS))

    def channels(self, side: str) -> Any:
        """The `ChannelSimilarity` of layer "a" or "b", kept for later; it holds all forms."""
        layer = self._values[f"layer_{side}"]
        return self.memory.get(("channels", layer), lambda: channel_similarity(self.features, layer))

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        keys: list[tuple[TimedResults, Key]] = [(self.memory, (f"layers by {self._values['measure']}",))]
        keys += [(self.memory, ("channels", self._values[f"layer_{side}"])) for side in "ab"]
        return keys + ([(self.maps_memory, ("maps", self.page().key))] if self.images is not None else [])

    def _pair_layer(self) -> str:
        return str(self._values[f"layer_{self._values['pair_of']}"])

    def _channels(self, layer: str) -> int:
        return int(self.memory.get(("count", layer), lambda: self.features.rows(layer).shape[1]))

    def activations(self) -> tuple[Any, dict[str, Tensor]]:
        """(image batch, layer -> (C, *size) activations) of the current slice; all layers from one pass."""
        page, model = self.page(), self.model
        assert model is not None

        def run() -> tuple[Any, dict[str, Tensor]]:
            batch = next(iter(as_batches([page.item], model, batch_size=1)))
            predictor = Predictor(model, patch_size="whole")
            frame, names = predictor.frame(batch.image), self.features.layers
            with untouched(model, "eval") as network, torch.no_grad(), capture(network, names) as tape:
                predictor.run(frame.pad(batch.image.clone()))
            maps = {name: to_maps(tape[name], frame.target, name).float() for name in names}
            if frame.target != frame.size:
                maps = {name: on_image(one, frame.size, frame.padding) for name, one in maps.items()}
            return batch, {name: one[0].cpu() for name, one in maps.items()}

        return self.maps_memory.get(("maps", page.key), run)

    def draw(self) -> Canvas:
        canvas = Canvas(2 * _LEFT + _NAMES + 3 * (_SIDE + 44), 66 + _SIDE + 46 + (_MAPS + 20 if self.images else 0))
        values = self._values
        measure, rows = MEASURES[values["measure"]], self.layers().rows
        canvas.heading(
            f"{measure} of the layers ({rows} rows), {values['form']} similarity of the channels",
            "Click a cell of the layer map, then a cell of a channel matrix. Arrow keys move over the layer "
            "map. Only living channels are drawn.",
        )
        self._layer_map(canvas, _LEFT + _NAMES, 66)
        self._matrix(canvas, _LEFT + _NAMES + _SIDE + 44, 66, "a")
        if values["layer_a"] != values["layer_b"]:
            self._matrix(canvas, _LEFT + _NAMES + 2 * (_SIDE + 44), 66, "b")
        if self.images is not None:
            self._pair(canvas, 66 + _SIDE + 46)
        return canvas

    def _layer_map(self, canvas: Canvas, left: int, top: int) -> None:
        found, names = self.layers(), self.features.layers
        cell = max(1, _SIDE // len(names))
        side = cell * len(names)
        matrix = np.asarray(found.matrix, dtype=float)
        row, column = names.index(self._values["layer_a"]), names.index(self._values["layer_b"])
        words = f"A: {names[row]}, B: {names[column]}: {matrix[row, column]:.3f}"
        canvas.text(left, top - 18, words, size=12, bold=True, width=_SIDE + 20)
        canvas.paste(coloured(matrix, (0.0, 1.0), (side, side), "sequential"), left, top)
        for place, name in enumerate(names):
            canvas.text(left - 4, top + (place + 0.5) * cell, name, size=11, anchor="rm", width=_NAMES - 4)
        canvas.frame(left + column * cell, top + row * cell, cell, cell, ACCENT, 3)
        canvas.bar(left + side + 6, top, side, (0.0, 1.0), "sequential")
        canvas.text(left, top + side + 4, "columns in the same order; B is the column", size=11, colour=FAINT)
        canvas.area(Area("layers", left, top, side, side, len(names), len(names)))

    def _matrix(self, canvas: Canvas, left: int, top: int, side: str) -> None:
        try:
            found, form = self.channels(side), self._values["form"]
        except ResultError as error:  # fewer than two channels, as of a head of one output
            canvas.text(left, top - 18, f"{side.upper()}: {error.what}", size=12, width=_SIDE)
            return
        matrix = np.asarray(found.matrices[form], dtype=float)
        limits, scale = ((0.0, 1.0), "sequential") if form == "absolute" else ((-1.0, 1.0), "diverging")
        length = _SIDE // len(matrix) * len(matrix) if len(matrix) <= _SIDE else _SIDE
        words = f"{side.upper()}: {found.layer}, {len(matrix)} channels"
        canvas.text(left, top - 18, words, size=12, bold=True, width=_SIDE)
        canvas.paste(coloured(matrix, limits, (length, length), scale), left, top)
        canvas.bar(left + length + 6, top, length, limits, scale)
        mean = float(found.scores[form]["all"].nanmean())
        words = f"redundancy {mean:.3f}; {len(found.dead)} channels are zero everywhere"
        canvas.text(left, top + length + 4, words, size=11, colour=FAINT)
        canvas.area(Area(f"channels {side}", left, top, length, length, len(matrix), len(matrix)))
        if side == self._values["pair_of"]:
            alive = found.channels.tolist()
            if self._values["channel_i"] in alive and self._values["channel_j"] in alive:
                step = length / len(matrix)
                row, column = alive.index(self._values["channel_i"]), alive.index(self._values["channel_j"])
                x, y, cell = int(left + column * step), int(top + row * step), max(4, int(step))
                canvas.frame(x - 2, y - 2, cell + 4, cell + 4, ACCENT, 2)

    def _pair(self, canvas: Canvas, top: int) -> None:
        """The image and the maps of the two chosen channels, on one scale."""
        batch, tape = self.activations()
        page, layer = self.page(), self._pair_layer()
        view = page.view(batch.image.shape[2:], batch.spacing[0])
        picture = view.picture(batch.image[0].cpu())
        size = fitted(picture.shape[:2], view.aspect, _MAPS - 20)
        left = _LEFT + _NAMES
        canvas.text(left, top - 18, f"{page.key}", size=12)
        ground = self.shades(picture)
        self.tile(canvas, "image", (left, top), size, view, ground=ground, planes={"image": picture})
        pair = [tape[layer][self._values[name]] for name in ("channel_i", "channel_j")]
        flat = [one.flatten().double() for one in pair]
        norms = float(flat[0].norm() * flat[1].norm())
        cosine = float(flat[0] @ flat[1]) / norms if norms > 0 else float("nan")
        limit = max(float(one.abs().max()) for one in pair) or 1.0
        for place, (name, one) in enumerate(zip("ij", pair, strict=True), start=1):
            plane = view.of_layer(np.asarray(one, dtype=float))
            x = left + place * (size[1] + 60)
            words = f"{layer}, channel {name} = {self._values[f'channel_{name}']}"
            canvas.text(x, top - 18, words, size=12, width=size[1] + 56)
            heat = (plane, (-limit, limit), 1.0, "diverging")
            self.tile(canvas, f"map {name}", (x, top), size, view, ground=ground, planes={"map": plane}, heat=heat)
        x = left + 2 * (size[1] + 60)
        canvas.bar(x + size[1] + 6, top, size[0], (-limit, limit), "diverging")
        canvas.text(x + size[1] + 60, top, f"cosine on this image: {cosine:.3f}", size=12)
