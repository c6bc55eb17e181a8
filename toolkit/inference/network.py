"""`Predictor`: the one way in which a network meets an image."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from toolkit.arguments import checked
from toolkit.errors import ConfigError, DataError, LayerError, ToolkitError, ToolkitWarning, choose
from toolkit.features.logits import find_logits, full_size
from toolkit.features.memory import affordable_images
from toolkit.features.modules import failure_explained, own_precision, unwrap
from toolkit.features.untouched import untouched
from toolkit.inference.activation import Activation
from toolkit.inference.inputs import InputBatch, as_batches, joined
from toolkit.inference.memory import Passes, Regions, defaults_of, remember
from toolkit.inference.windows import Frame, frame_of, sides_of

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
_DIVISORS = (2, 4, 8, 16, 32, 64, 128)
_SAFE = 32  # sides that are multiples of this are not tried first
_SIZES: weakref.WeakKeyDictionary[nn.Module, set[tuple[int, ...]]] = weakref.WeakKeyDictionary()


class Predictor:
    """Runs a network on images of any size; the mode, hooks and gradients are the caller's matter.

    * Logits are found by `toolkit.features.logits.find_logits`, and checked to be numbers.
    * An image is padded on both ends with each channel's minimum, to multiples of the network's divisor and at least to
      its window. Results lie on the image's own grid.
    * An image larger than the window is cut as MONAI's sliding window does, with Gaussian weights.
    * The image takes the precision of the network; logits come back in float32.
    """

    @checked
    def __init__(self, model: nn.Module, *, regions: Regions | None = None, **passes: Unpack[Passes]) -> None:
        memory, patch_size = defaults_of(model), passes.get("patch_size")
        select, divisor = passes.get("select"), passes.get("divisor")
        self.model = unwrap(model)
        self.given = [name for name, value in passes.items() if value is not None]
        self.select = memory.select if select is None else select
        self.patch_size = memory.patch_size if patch_size is None else None
        if patch_size is not None and patch_size != "whole":
            self.patch_size = sides_of(patch_size)
        self.overlap = passes.get("overlap", 0.5)
        self.divisor = memory.divisor if divisor is None else divisor
        self.at_once: int | None = None  # images in a pass without gradients, once `affordable` has said it
        self.dtype = own_precision(self.model)
        self.autocast = _autocast_type(self.dtype, passes.get("precision"))
        activation = passes.get("activation") or memory.activation
        self.activation = Activation(activation, regions or memory.regions, memory.classes)

    @property
    def settings(self) -> dict[str, Any]:
        """What a result records of these."""
        return {"patch_size": self.patch_size, "overlap": self.overlap} if self.patch_size is not None else {}

    def frame(self, image: Tensor) -> Frame:
        """Where images (B, C, *S) lie in what the network takes; tries an odd size on the first of them if need be."""
        window = tuple(self.patch_size or image.shape[2:])
        fits = all(side % _SAFE == 0 for side in window) or window in _SIZES.get(self.model, set())
        if self.divisor is None and not fits:
            self.divisor = self._find_divisor(image)
        return frame_of(image, self.patch_size, self.divisor or 1, self.overlap)

    def one_window(self, image: Tensor) -> Tensor:
        """The images padded, in the network's precision; cut to their first window if they are too large for one pass."""
        frame = self.frame(image)
        x = frame.pad(image).to(self.dtype)
        return x if frame.tiling is None else x[frame.tiling.windows[0]].clone()

    def affordable(
        self, call: str, image: Tensor, wanted: int, *, held: str = "outputs", windows: int = 1, **options: Any
    ) -> int:
        """How many images like this one (1, C, *S), or of its windows, a pass may take; see `affordable_images`."""
        x = self.one_window(image)
        pieces = image.numel() / x.numel()
        wanted = max(wanted, windows) if pieces > 1 else wanted
        self.at_once = affordable_images(self.model, x, wanted, call=call, held=held, pieces=pieces, **options)
        return self.at_once

    def run(self, image: Tensor) -> Any:
        """What the network returns for images of a size that it takes."""
        kind = self.autocast
        autocast = contextlib.nullcontext() if kind is None else torch.autocast(image.device.type, dtype=kind)
        with failure_explained(self.model, image), autocast:
            return self.model(image.to(self.dtype) if image.is_floating_point() else image)

    def one_pass(self, image: Tensor) -> Tensor:
        """Logits (B, K, *S) in float32 of images of a size that the network takes."""
        return self.read(self.run(image), image)

    def read(self, output: Any, image: Tensor) -> Tensor:
        """The logits in an output, as `one_pass` gives them."""
        # sums of many half-precision logits would be coarse
        logits = full_size(find_logits(output, image, self.select).float(), image.shape[2:])
        values = logits.detach()
        if bool(torch.isnan(values.sum())) and bool(torch.isnan(values).any()):
            fix = "Look for diverged weights, or for values too large for half precision."
            raise DataError("The network's output holds NaN.", where=type(self.model).__name__, fix=fix)
        return logits

    def logits(self, image: Tensor, frame: Frame | None = None, *, at_once: int = 8) -> Tensor:
        """Logits (B, K, *S) in float32 on the own grid of images (B, C, *S), with a graph where gradients are recorded.

        The frame is of these images, or of the one whose perturbed copies they are; `at_once` windows share a pass.
        """
        frame = self.frame(image) if frame is None else frame
        padded, most = frame.pad(image), self.at_once or at_once
        if frame.tiling is not None:
            windows, size = frame.tiling.windows, max(1, min(at_once, most) // len(image))
            groups = (windows[start : start + size] for start in range(0, len(windows), size))
            passes = (self.one_pass(torch.cat([padded[window] for window in group])) for group in groups)
            return frame.crop(frame.tiling.stitched(part for logits in passes for part in logits.split(len(image))))
        if torch.is_grad_enabled() or self.model.training or self.at_once is None:
            return frame.crop(self.one_pass(padded))
        return frame.crop(torch.cat([self.one_pass(part) for part in padded.split(most)]))

    def class_names(self, classes: Mapping[int, str] | None) -> dict[int, str]:
        """Names of the labels of a prediction: the data's, or the regions', numbered from 1."""
        regions = self.activation.regions
        return dict(enumerate(["background", *regions])) if regions else dict(classes or {})

    def _find_divisor(self, image: Tensor) -> int | None:
        """The smallest divisor that the network takes; None if it needs none for this size."""
        failure: ToolkitError | None = None
        tried: set[tuple[int, ...]] = set()
        with untouched(self.model, "eval"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trial: the pass that counts warns again
            for divisor in (1, *_DIVISORS):
                frame = frame_of(image[:1], self.patch_size, divisor, self.overlap)
                x = frame.pad(image[:1])
                x = x if frame.tiling is None else x[frame.tiling.windows[0]]
                if tuple(x.shape) in tried:
                    continue
                tried.add(tuple(x.shape))
                try:
                    full_size(find_logits(self.run(x.clone()), x, self.select), x.shape[2:])
                except DataError as error:
                    failure = failure or error
                except LayerError as error:
                    if error.where != "output":
                        raise
                    failure = failure or error
                else:
                    break
            else:
                assert failure is not None
                raise failure
        if divisor == 1:
            _SIZES.setdefault(self.model, set()).add(tuple(x.shape[2:]))
            return None
        remember(self.model, divisor=divisor)
        what = f"{type(self.model).__name__} does not take images of size {tuple(image.shape[2:])}; they are padded to"
        what += f" multiples of {divisor}, which was found by trying. Pass divisor={divisor} or give it this attribute."
        warnings.warn(what, ToolkitWarning, stacklevel=3)
        return divisor


def one_batch(image: Any, predictor: Predictor, label: Any, call: str) -> InputBatch:
    """The images of a call that takes one image, or several of one size, as one batch."""
    batches = list(as_batches(image, predictor.model, batch_size=10**6, label=label))
    if len({batch.image.shape[1:] for batch in batches}) != 1:
        what = "There is no image." if not batches else "The images have several sizes."
        raise DataError(what, where=f"{call}(image=...)", fix="Pass one image, or several of one size.")
    return batches[0] if len(batches) == 1 else joined(batches, batches[0].image.device)  # some without a label


def _autocast_type(own: torch.dtype, precision: str | None) -> torch.dtype | None:
    if precision is None:
        return None
    choose("precision", precision, PRECISIONS, where="precision=...")
    wanted = PRECISIONS[precision]
    if wanted == own:
        return None
    if own != torch.float32 or wanted == torch.float64:
        what = f"A network with {str(own).removeprefix('torch.')} weights cannot be run in precision={precision!r}."
        fix = "Leave precision=None, or convert a copy: copy.deepcopy(model).float()."
        raise ConfigError(what, where="precision=...", fix=fix)
    return wanted
