"""`mask_explorer`: mask a latent code by scheme or by hand, and watch image, segmentation, entropy and loss."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError
from toolkit.explain.masking import mask_latent
from toolkit.features.modules import unwrap
from toolkit.inference.volumes import one_map
from toolkit.show.colours import FAINT
from toolkit.show.widgets.canvas import ACCENT, Area, Canvas, coloured, fitted, grey
from toolkit.show.widgets.image_explorer import ImageExplorer, ImageStacks, trained_pair
from toolkit.show.widgets.state import Control, Key, TimedResults

SCHEMES = (("channels, targeted", "channel"), ("positions, targeted", "spatial"), ("channels, dropout", "dropout"))
SKIPS = (("keep the skip connections", "keep"), ("mask them too", "mask"), ("set them to zero", "zero"))
NORMS = (("running statistics", "eval"), ("statistics of this image", "train"))
_SIDE, _GAP, _LEFT = 215, 22, 14


class MaskExplorer(ImageExplorer):
    """Explore what a network depends on: mask its latent code by a scheme or by hand.

    Use `.state`, `.set(...)`, `.toggle(entry, ...)` and `.compose()`; the last line of a cell shows it. Beside the
    controls' values its state has `by_hand`: entry -> multiplier.

    Args:
        model: None = a trained one that comes with the project, on cases of its task; or any network; one with `encode`
            and `decode_segmentation` has its own codes masked.
        task_or_cases: a task (its cases of `split`), cases, or anything that `toolkit.mask_latent` takes.
        layer: where to mask a network without codes of its own.
        split: of a task.
        options: further arguments of `toolkit.mask_latent`: `score`, `temperature`, `aliases`.

    Raises:
        DataError: there are no images.
        LayerError: a layer that does not exist.
    """

    title = "Masked latent code"

    def __init__(
        self,
        model: nn.Module | None = None,
        task_or_cases: Any = None,
        *,
        layer: str = "bottleneck",
        split: str = "test",
        **options: Any,
    ) -> None:
        if model is None:
            trained, task_or_cases = trained_pair(task_or_cases)
            model = next(iter(trained.values()))
        images = ImageStacks(task_or_cases, model, split, options.get("activation"))
        super().__init__(images, scheme="channel", fraction=0.3, soft=True, seed=0, mode="eval", filled=False)
        self.model, self.layer, self.options = model, layer, options
        self.memory = TimedResults(images.kept(64, 60))
        self.by_hand: dict[int, float] = {}
        self.cursor: int | None = None
        network = unwrap(model)
        if not all(callable(getattr(network, name, None)) for name in ("encode", "decode_segmentation")):
            self._values["skips"] = "keep"  # a network with codes of its own has none
        with torch.no_grad():
            self.result()  # a wrong layer is reported here, not by the page

    def controls(self) -> list[Control]:
        highest = 0.95 if self._values["scheme"] == "dropout" else 1.0
        mask, network = "mask", "network and drawing"
        soft = "masked entries keep a random share below one half"
        controls = [
            *self.image_controls(),
            Control("scheme", "mask", "choice", SCHEMES, group=mask),
            Control("fraction", "fraction", "real", low=0, high=highest, step=0.05, group=mask),
            Control("seed", "seed", "integer", low=0, high=99, group=mask),
            Control("soft", "soft mask", "switch", hint=soft, group=mask),
            Control("mode", "batch norm", "choice", NORMS, group=network),
            Control("skips", "skips", "choice", SKIPS, group=network),
            Control("filled", "fill the classes", "switch", group=network),
        ]
        return [control for control in controls if control.name in self._values]

    def adapt(self, changed: set[str]) -> None:
        """See `Explorer`: a hand-made mask ends when the code or its scheme changes."""
        super().adapt(changed)
        if self._values["scheme"] == "dropout":
            self._values["fraction"] = min(self._values["fraction"], 0.95)
        same_code = {"filled", "level", "window", "contour", *(["slice"] * (self.page().position is not None))}
        if changed - same_code:
            self.by_hand = {}
        if "scheme" in changed:
            self.cursor = None

    def toggle(self, *entries: int) -> MaskExplorer:
        """Mask entries (channels, or positions in row-major order) that are kept, and keep those that are masked.

        Raises:
            IndexError: there is no such entry.
            ConfigError: the network sees the image in several windows, each with a code of its own.
        """
        multipliers = self.multipliers()
        if (windows := len(self.result(by_hand=False).mask)) > 1:
            fix = 'Pass mask_explorer(..., patch_size="whole") for one code of the whole image.'
            raise ConfigError(f"There are {windows} windows, each with a code of its own.", where="toggle", fix=fix)
        for entry in entries:
            if not 0 <= entry < len(multipliers):
                raise IndexError(f"There is no entry {entry}; the code has {len(multipliers)}.")
            now = self.by_hand.get(entry, float(multipliers[entry]))
            self.by_hand[entry] = 0.0 if now >= 1 else float(max(1.0, multipliers.max()))
        self.changed()
        return self

    def picked(self, area: str, row: int, column: int) -> None:
        """See `Explorer`: a click on the code masks or unmasks an entry."""
        entries = len(self.multipliers())
        entry = row * self._columns(entries) + column
        if area == "code" and entry < entries:
            self.cursor = entry
            self.toggle(entry)

    def pressed(self, key: str) -> None:
        """See `Explorer`: arrows move over the code, Enter or space masks and unmasks."""
        entries = len(self.multipliers())
        columns, cursor = self._columns(entries), self.cursor or 0
        moves = {"ArrowLeft": -1, "ArrowRight": 1, "ArrowUp": -columns, "ArrowDown": columns}
        if key in moves:
            target = cursor + moves[key] if self.cursor is not None else 0
            self.cursor = target if 0 <= target < entries else cursor
            self.changed()
        elif key in ("Enter", " "):
            self.cursor = cursor
            self.toggle(cursor)

    def result(self, by_hand: bool = True) -> Any:
        """The `MaskedLatent` of the current state, kept for later; of its scheme alone if not `by_hand`."""
        mask = self.mask() if by_hand and self.by_hand else None
        make = functools.partial(mask_latent, self.model, [self.page().item], mask=mask, **self._arguments())
        return self.memory.get(self._key(by_hand), make)

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        return [(self.memory, self._key(by_hand)) for by_hand in (False, True)]

    def _arguments(self) -> dict[str, Any]:
        own = {name: self._values[name] for name in ("scheme", "fraction", "soft", "seed", "mode")}
        return {**own, "skips": self._values.get("skips", "keep"), "layer": self.layer, **self.options}

    def _key(self, by_hand: bool) -> Key:
        arguments = tuple(sorted((name, repr(value)) for name, value in self._arguments().items()))
        return "mask", self.page().key, arguments, tuple(sorted(self.by_hand.items())) if by_hand else ()

    def mask(self) -> Tensor:
        """The multiplier of the code: the scheme's, with the entries that were clicked."""
        mask = self.result(by_hand=False).mask.clone()
        flat = mask.reshape(-1)
        for entry, value in self.by_hand.items():
            flat[entry] = value
        return flat.reshape(mask.shape)

    def multipliers(self) -> np.ndarray:
        """One multiplier per entry of the scheme's mask."""
        return np.asarray(self.result(by_hand=False).mask, dtype=float).ravel()

    def _columns(self, entries: int) -> int:
        """Entries in one row of the drawn code: a plane's own width, or of channels and volumes a grid nearly square."""
        shape = tuple(self.result(by_hand=False).mask.shape)
        if self._values["scheme"] == "spatial" and len(shape) == 4:
            return int(shape[-1])
        rows = max((d for d in range(1, int(entries**0.5) + 1) if entries % d == 0), default=1)
        return -(-entries // rows) if rows > 1 else -(-entries // max(1, int(entries**0.5)))

    def draw(self) -> Canvas:
        result, page = self.result(), self.page()
        view = page.view(result.input.shape[2:], getattr(page.item, "spacing", None))
        plane = view.picture(result.input[0])
        ground, size = self.shades(plane), fitted(plane.shape[:2], view.aspect, _SIDE)
        columns = 4 if result.image is not None else 3
        canvas = Canvas(2 * _LEFT + columns * (_SIDE + _GAP) + 30, 2 * (size[0] + 24) + 132)
        self._heading(canvas, result)
        most = max(float(one.max()) for one in result.entropy) or 1.0
        for row, name in enumerate(("clean", "masked")):
            top = 66 + row * (size[0] + 24)
            labels = view.plane(one_map(result.segmentation[row][0], len(view.size)))
            entropy = view.plane(result.entropy[row][0])
            planes: dict[str, np.ndarray] = {"image": plane, "prediction": labels, "entropy": entropy}
            put = functools.partial(self._put, canvas, size=size, view=view)
            fill = 0.5 if self._values["filled"] else 0.0
            put((1, top), f"{name}: segmentation", ground=ground, planes=planes, labels=labels, fill=fill)
            words, heat = f"{name}: entropy, mean {entropy.mean():.3f} bit", (entropy, (0.0, most), 0.85, "sequential")
            put((2, top), words, ground=ground, planes=planes, heat=heat)
            if result.image is not None:
                decoded = view.picture(result.image[row][0])
                put((3, top), f"{name}: decoded image", ground=grey(decoded), planes={"decoded": decoded})
        reference = (
            None if result.label is None else np.clip(view.plane(one_map(result.label[0], len(view.size))), 0, None)
        )
        planes = {"image": plane} if reference is None else {"image": plane, "reference": reference}
        title = f"{page.key}: {'image' if reference is None else 'reference'}"
        self._put(canvas, (0, 66), title, size, view=view, ground=ground, planes=planes, labels=reference)
        self._code(canvas, 66 + size[0] + 24, size, result)
        canvas.bar(_LEFT + columns * (_SIDE + _GAP) - _GAP + 6, 66, size[0], (0.0, most), "sequential")
        self._numbers(canvas, 66 + 2 * (size[0] + 24), result)
        return canvas

    def _heading(self, canvas: Canvas, result: Any) -> None:
        soft = "soft" if self._values["soft"] and self._values["scheme"] != "dropout" else "hard"
        scheme = {value: label for label, value in SCHEMES}[self._values["scheme"]]
        hand = f", {len(self.by_hand)} by hand" if self.by_hand else ""
        before, after = (float(one[0]) for one in result.loss)
        canvas.heading(
            f"{self._values['fraction']:.0%} of {result.layer}: {scheme}, {soft}{hand}",
            f"cross-entropy {before:.3f} clean, {after:.3f} masked ({after - before:+.3f}), against the "
            f"{result.against}; batch norm: {result.bn_mode}",
        )

    def _put(self, canvas: Canvas, at: tuple[int, int], title: str, size: tuple[int, int], **settings: Any) -> None:
        column, top = at
        left = _LEFT + column * (_SIDE + _GAP)
        canvas.text(left, top - 18, title, size=12, width=_SIDE + _GAP - 4)
        self.tile(canvas, f"tile {column} {top}", (left, top), size, **settings)

    def _code(self, canvas: Canvas, top: int, size: tuple[int, int], result: Any) -> None:
        """The multipliers of the code as a grid of cells that can be clicked."""
        values = np.asarray(result.mask, dtype=float).ravel()
        columns = self._columns(len(values))
        rows = -(-len(values) // columns)
        grid = np.full(rows * columns, np.nan)
        grid[: len(values)] = values
        cell = min(size[1] // columns, size[0] // rows)
        height, width = (rows * cell, columns * cell) if cell else size
        what = "positions" if self._values["scheme"] == "spatial" else "channels"
        share = float((values >= 1).mean())
        canvas.text(_LEFT, top - 18, f"code: {share:.0%} of {len(values)} {what} kept", size=12, width=_SIDE)
        limits = (0.0, max(1.0, float(values.max())))
        canvas.paste(coloured(grid.reshape(rows, columns), limits, (height, width), "sequential"), _LEFT, top)
        canvas.area(Area("code", _LEFT, top, width, height, rows, columns))
        marks: list[tuple[Any, ...]] = [(entry, 2, max(0, cell - 4), "white", 1) for entry in self.by_hand]
        marks += [(self.cursor, 0, cell, ACCENT, 2)] * (self.cursor is not None)
        for entry, inset, side, *style in marks:
            x, y = _LEFT + entry % columns * width // columns, top + entry // columns * height // rows
            canvas.frame(x + inset, y + inset, side, side, *style)

    def _numbers(self, canvas: Canvas, top: int, result: Any) -> None:
        """Voxels of every class, clean and masked, in one line each; and what the colours mean."""
        table = result.table()
        rows = table[table["class"] > 0]  # of overlapping regions: the regions, numbered from 1
        names = result.classes or self.images.classes
        key = [(int(index), str(names.get(index, index))) for index in rows["class"]]
        canvas.key(_LEFT, top - 2, key)
        counts = zip(key, rows["clean_voxels"], rows["masked_voxels"], strict=True)
        moved = [f"{name} {clean} to {masked}" for (_, name), clean, masked in counts]
        changed = float(table["changed"].iloc[0])
        words = f"voxels, clean to masked: {', '.join(moved)}; {changed:.1%} of the image changed"
        canvas.text(_LEFT, top + 16, words, size=12, colour=FAINT, width=canvas.size[0] - 2 * _LEFT)
        words = "Click a cell of the code to mask or keep it (arrow keys and Enter do the same). Dark cells are masked."
        canvas.text(_LEFT, top + 34, words, size=11, colour=FAINT, width=canvas.size[0] - 2 * _LEFT)
