"""`cam_explorer`: where a network looks, by case, slice, layer, class, target and method; two networks side by side."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import nn

from toolkit.errors import ConfigError, DataError
from toolkit.explain import attribute as attribution
from toolkit.explain.attribute import attribute
from toolkit.explain.cam_maps import METHODS as CAM_METHODS
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import BoundaryBand, ClassSum, Region, Target
from toolkit.inference.layers import layer_names
from toolkit.inference.memory import Passes
from toolkit.inference.volumes import one_map
from toolkit.show.colours import FAINT
from toolkit.show.compose_explain import METHOD_NAMES
from toolkit.show.slices import View
from toolkit.show.widgets.canvas import ACCENT, Area, Canvas, fitted, heated
from toolkit.show.widgets.image_explorer import ImageExplorer, ImageStacks, default_layers, trained_pair
from toolkit.show.widgets.state import Control, Key, TimedResults

INPUT_METHODS = tuple(name for name in attribution.METHODS if name != "layer_conductance")
TARGETS = (
    ("inside the prediction", "prediction"),
    ("inside the reference", "reference"),
    ("whole image", "image"),
    ("boundary of the prediction", "boundary"),
)
NAMES = {**METHOD_NAMES, **{name: name.replace("_", " ").capitalize() for name in INPUT_METHODS}}
SCALES = (("own scale for each map", "layer"), ("one shared scale", "shared"))
SLOW = 2.0  # s; what takes longer says so in the list of methods
_LARGE, _SMALL, _GAP, _LEFT, _WIDTH = 290, 104, 12, 14, 980
_NO_COLOUR = 1e30  # a range in which every value is the middle


@dataclasses.dataclass(frozen=True)
class Maps:
    """What one network says about one slice, cut to 2D."""

    view: View  # the slice
    picture: np.ndarray  # (H, W) or (H, W, 3) image
    contours: np.ndarray  # (H, W) label map: the network's prediction
    reference: np.ndarray | None  # (H, W) label map, or None
    maps: dict[str, np.ndarray]  # layer (or "input") -> (h, w) raw signed map
    status: dict[str, str]  # layer -> "ok" or what is wrong
    limits: dict[str, float]  # layer -> largest absolute value over the whole map (in a volume: of all its slices)


class CamExplorer(ImageExplorer):
    """Explore class activation maps and captum's attributions: every block of a network, slice by slice.

    All layers' maps of a case and target come from one pass and are kept, so that walking along the layers and slices
    is quick. captum's perturbing methods (occlusion, feature ablation, integrated gradients) take longer the first time.
    Use `.state`, `.set(...)` and `.compose()`; the last line of a cell shows it.

    Args:
        model: any network; None = two trained ones that come with the project (`toolkit.list_trained`), on their task.
        task_or_cases: a task (its cases of `split`), cases, or anything that `toolkit.grad_cam` takes.
        compare: a second network, or {name: network}, shown beside the first.
        layers: names, globs or aliases of the strip; None = the outermost blocks of each network.
        name: what to call the first network.
        split: of a task.
        attribution_options: further arguments of `toolkit.attribute`, for example {"steps": 64, "window": 8}.
        options: further arguments of `toolkit.grad_cam`; how the network is run, as `patch_size`, holds for both.

    Raises:
        DataError: there are no images.
        LayerError: a layer that does not exist.
        ConfigError: more than one network to compare with, or no trained network where none is given.
    """

    title = "Class activation maps"
    arrows: ClassVar = {"Left": ("layer", -1), "Right": ("layer", 1), "Up": ("slice", 1), "Down": ("slice", -1)}

    def __init__(
        self,
        model: nn.Module | None = None,
        task_or_cases: Any = None,
        compare: nn.Module | Mapping[str, nn.Module] | None = None,
        *,
        layers: str | Sequence[str] | None = None,
        name: str = "network",
        split: str = "test",
        attribution_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if model is None:
            trained, task_or_cases = trained_pair(task_or_cases, compare)
            (name, model), *rest = trained.items()
            compare = dict(rest) or None
        self.models: dict[str, nn.Module] = {name: model}
        if compare is not None:
            others = dict(compare) if isinstance(compare, Mapping) else {"compared network": compare}
            if len(others) != 1 or name in others:
                what = "Compare with exactly one network of another name."
                raise ConfigError(what, where="cam_explorer(compare=...)")
            self.models |= others
        images = ImageStacks(task_or_cases, model, split, options.get("activation"))
        super().__init__(images, target="prediction", opacity=1.0, scale="layer", contours=True)
        self.options, self.attribution_options = options, dict(attribution_options or {})
        example, aliases = [next(iter(self.images.items.values()))], options.get("aliases")
        self.layers = {
            key: default_layers(one, example) if layers is None else layer_names(one, layers, example, aliases)
            for key, one in self.models.items()
        }
        # captum's methods pass the network many times: they are announced from the first time on
        self._guessed = set(INPUT_METHODS)
        guesses: dict[Any, float] = {(name, method): 1.0 for name in self.models for method in INPUT_METHODS}
        self.memory = TimedResults(images.kept(200), guesses)
        first = next(iter(self.layers.values()))
        self._values.update(layer=first[len(first) // 2], target_class=self.images.foreground()[-1][0])
        self._values["method"] = "hires_cam"  # the mean gradient of Grad-CAM cancels before a norm: blank panels

    def controls(self) -> list[Control]:
        classes = tuple((name, index) for index, name in self.images.foreground())
        strip = tuple((name, name) for name in next(iter(self.layers.values())))
        methods = tuple((f"{NAMES[name]}{self._duration(name)}", name) for name in (*CAM_METHODS, *INPUT_METHODS))
        asked, drawn = "explanation", "drawing"
        walk = "also a click on the strip, arrow left and right on the picture"
        return [
            *self.image_controls(),
            Control("target_class", "class", "choice", classes, group=asked),
            Control("target", "target", "choice", TARGETS, group=asked),
            Control("method", "method", "choice", methods, hint="the last ones are captum's", group=asked),
            Control("layer", "layer", "choice", strip, hint=walk, group=asked),
            Control("opacity", "opacity", "real", low=0, high=1, step=0.05, group=drawn),
            Control("scale", "colours", "choice", SCALES, group=drawn),
            Control("contours", "contours", "switch", group=drawn),
        ]

    def _duration(self, method: str) -> str:
        """What the list of methods says of one that takes long: its last time, or a guess from the passes it makes."""
        every = self.memory.seconds
        seconds, one = (sum(every.get((name, kind), 0.0) for name in self.models) for kind in (method, "maps"))
        if method in self._guessed and one:
            sides = np.array(self.page().image.shape[1:])
            many = 4 * float(np.prod(sides / self.attribution_options.get("window", 16)))
            seconds = one * {"occlusion": many, "feature_ablation": many, "integrated_gradients": 16}.get(method, 1)
        return f" (slow: about {seconds:.0f} s)" if seconds >= SLOW else ""

    def picked(self, area: str, row: int, column: int) -> None:
        """See `Explorer`: a click on the strip chooses the layer."""
        if area.startswith("layer:"):
            self.set(layer=area.removeprefix("layer:"))

    def target(self) -> Target:
        index, where = self._values["target_class"] - self.images.overlapping, self._values["target"]
        if where == "image":
            return ClassSum(index)
        return BoundaryBand(index) if where == "boundary" else Region(index, where)

    def result(self, name: str) -> Any:
        """The `GradCamResult` or `AttributionResult` of one network; all layers come from one pass, kept for later.

        Raises:
            DataError: the region is empty on this item.
        """
        model, method, items, target = self.models[name], self._values["method"], [self.page().item], self.target()

        def explained() -> Any:
            if method not in INPUT_METHODS:
                return grad_cam(model, items, self.layers[name], target, method=method, **self.options)
            self._guessed.discard(method)
            passes = {name: self.options[name] for name in Passes.__annotations__ if name in self.options}
            options = {"steps": 16, "window": 16, **passes, **self.attribution_options}
            return attribute(model, items, method, target, **options)

        return self.memory.get(self._key(name), explained)

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        return [(self.memory, self._key(name)) for name in self.models]

    def _key(self, name: str) -> Key:
        method = self._values["method"]
        kind = (name, method if method in INPUT_METHODS else "maps")  # all CAM methods take about as long
        return kind, self.page().key, repr(self.target()), method

    def maps(self, name: str) -> Maps:
        """The result of one network, cut to the current slice.

        Raises:
            DataError: the region is empty on this item.
        """
        result, page = self.result(name), self.page()
        view, raw = page.view(result.padded_size, result.spacing[0]), result.maps
        status = {layer: words[0] for layer, words in result.status.items()}
        label = result.label if result.prediction.ndim < result.image.ndim else None  # its numbers are no regions
        planes = {
            layer: view.coarse(np.asarray(one[0, 0], dtype=float), lambda layer=layer: result.resized(layer)[0, 0])
            for layer, one in raw.items()
        }
        contours = view.plane(one_map(result.prediction[0], len(view.size)))
        reference = None if label is None else np.clip(view.plane(label[0, 0]), 0, None)
        ends = {layer: 0.0 if status[layer] == "cancelled" else float(one.abs().max()) for layer, one in raw.items()}
        limits = {layer: end if end or status[layer] == "cancelled" else 1.0 for layer, end in ends.items()}
        return Maps(view, view.picture(result.image[0]), contours, reference, planes, status, limits)

    def draw(self) -> Canvas:
        results: dict[str, Maps | str] = {}
        for name in self.models:
            try:
                results[name] = self.maps(name)
            except (DataError, ConfigError) as error:
                results[name] = str(error).splitlines()[0]
        canvas = Canvas(_WIDTH, 66 + _LARGE + len(self.models) * (_SMALL + 44))
        self._heading(canvas)
        shown = [one for one in results.values() if isinstance(one, Maps)]
        self._image(canvas, shown[0] if shown else None)
        shared = max((limit for one in shown for limit in one.limits.values()), default=1.0)
        for place, (name, one) in enumerate(results.items()):
            self._main(canvas, place, name, one, shared)
            self._strip(canvas, 66 + _LARGE + place * (_SMALL + 44), name, one, shared)
        return canvas

    def _heading(self, canvas: Canvas) -> None:
        state = self._values
        words = {value: label for label, value in TARGETS}[state["target"]]
        name = self.images.classes[state["target_class"]]
        canvas.text(_LEFT, 6, f"{NAMES[state['method']]} of {name}, {words}", size=15, bold=True)
        reading = "Raw signed maps at their own resolution: red raises the score, blue lowers it."
        canvas.text(_LEFT, 26, reading, size=12, colour=FAINT)
        canvas.key(640, 26, self.images.foreground())

    def _image(self, canvas: Canvas, one: Maps | None) -> None:
        if one is None:
            canvas.text(_LEFT, 100, "Nothing to show for this slice.", colour=FAINT)
            return
        size = fitted(one.picture.shape[:2], one.view.aspect, _LARGE)
        labels = one.contours if one.reference is None else one.reference
        which = "prediction" if one.reference is None else "reference"
        canvas.text(_LEFT, 46, f"{self.page().key}{one.view.note}: {which}", size=12, width=_LARGE)
        planes, outline = {"image": one.picture, which: labels}, labels if self._values["contours"] else None
        shades = self.shades(one.picture)
        self.tile(canvas, "image", (_LEFT, 64), size, one.view, ground=shades, planes=planes, labels=outline)

    def _main(self, canvas: Canvas, place: int, name: str, one: Maps | str, shared: float) -> None:
        left = _LEFT + (place + 1) * (_LARGE + 30)
        if isinstance(one, str):
            canvas.text(left, 46, name, size=12, bold=True, width=_LARGE)
            for line, words in enumerate(textwrap.wrap(one, 42)[:8]):
                canvas.text(left, 70 + 18 * line, words, size=12, colour="#a33")
            return
        layer = self._layer(name, one)
        limit = self._limit(one, layer, shared)
        size = fitted(one.picture.shape[:2], one.view.aspect, _LARGE - 42)
        status = one.status.get(layer, "ok")
        words = {"ok": "", "cancelled": " (cancelled by a norm: choose HiResCAM)"}.get(status, f" ({status})")
        canvas.text(left, 46, f"{name}: {layer}{words}", size=12, bold=True, width=_LARGE)
        planes = {"image": one.picture, "map": one.maps[layer], "prediction": one.contours}
        heat = (one.maps[layer], (-limit, limit), self._values["opacity"], "diverging_overlay")
        drawn: dict[str, Any] = {"heat": heat, "labels": one.contours if self._values["contours"] else None}
        ground, place_ = self.shades(one.picture), (left, 64)
        self.tile(canvas, f"map of {name}", place_, size, one.view, ground=ground, planes=planes, **drawn)
        if limit != _NO_COLOUR:
            canvas.bar(left + size[1] + 6, 64, size[0], (-limit, limit), "diverging_overlay")
        shape = "x".join(map(str, one.maps[layer].shape))
        canvas.text(left, 66 + size[0], f"prediction outlined; map of {shape}", size=11, colour=FAINT)

    def _strip(self, canvas: Canvas, top: int, name: str, one: Maps | str, shared: float) -> None:
        if isinstance(one, str) or len(one.maps) < 2:
            return
        canvas.text(_LEFT, top, name, size=12, bold=True)
        layers = list(one.maps)
        side = min(_SMALL, (_WIDTH - 2 * _LEFT) // max(len(layers), 1) - _GAP)
        size, ground = fitted(one.picture.shape[:2], one.view.aspect, side), self.shades(one.picture)
        for place, layer in enumerate(layers):
            left = _LEFT + place * (side + _GAP)
            limit = self._limit(one, layer, shared)
            opacity, limits = self._values["opacity"], (-limit, limit)
            canvas.paste(heated(ground, size, one.maps[layer], limits, opacity, lens=self.lens), left, top + 18)
            text = "cancelled" if one.status.get(layer) == "cancelled" else layer
            canvas.text(left, top + 20 + size[0], text, size=11, width=side + _GAP - 2)
            if layer == self._layer(name, one):
                canvas.frame(left, top + 18, size[1], size[0], ACCENT, 3)
            if layer in self.layers[next(iter(self.layers))]:
                canvas.area(Area(f"layer:{layer}", left, top + 18, size[1], size[0] + 16))

    def _limit(self, one: Maps, layer: str, shared: float) -> float:
        """End of the colour range; a cancelled map has none and is left blank."""
        if one.status.get(layer) == "cancelled":
            return _NO_COLOUR
        return shared if self._values["scale"] == "shared" else one.limits[layer]

    def _layer(self, name: str, one: Maps) -> str:
        """The chosen layer; in a network of other names the one at the same place of the strip."""
        chosen, first = self._values["layer"], next(iter(self.layers.values()))
        if chosen in one.maps:
            return str(chosen)
        names = list(one.maps)
        return names[min(first.index(chosen) * len(names) // len(first), len(names) - 1)]
