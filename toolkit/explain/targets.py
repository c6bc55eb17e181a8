"""What a heat map explains: a score per image, as an object that names the class and the place.

Scores are sums of raw logits (before softmax), as in Grad-CAM for segmentation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import ConfigError, DataError, choose
from toolkit.inference.activation import Activation
from toolkit.inference.inputs import InputBatch
from toolkit.inference.network import Predictor


@dataclasses.dataclass
class TargetContext:
    """What a target may look at."""

    logits: Tensor  # (B, K, *S) of the network, K = 1 for a single foreground logit
    label: Tensor | None  # (B, 1, *S) reference; None without one
    classes: dict[int, str] | None  # class names by index, or None; regions of a sigmoid network are their own names
    ids: list[str]  # names of the images
    activation: Activation = dataclasses.field(default_factory=lambda: Activation(classes=2))  # what the logits mean

    @classmethod
    def of(cls, logits: Tensor, batch: InputBatch, predictor: Predictor) -> Self:
        return cls(logits, batch.label, batch.classes, batch.ids, predictor.activation)

    @property
    def overlapping(self) -> bool:
        """Whether every output is a region of its own."""
        return self.activation.overlapping(self.logits.shape[1])

    def channel(self, wanted: int | str) -> tuple[int, int]:
        """(class index, channel of the logits) of a class index or name; of regions both are the output's number."""
        outputs = self.logits.shape[1]
        number = outputs if self.overlapping else max(outputs, 2)
        names = dict(enumerate(self.activation.regions or {})) if self.overlapping else self.classes or {}
        named = next((index for index, name in names.items() if name == wanted), None)
        index = int(wanted) if isinstance(wanted, Integral) else named
        single = outputs == 1 and not self.overlapping
        if index is None or not 0 <= index < number or (single and index != 1):
            choices = ", ".join(f"{i}: {names.get(i, 'unnamed')}" for i in range(single, number))
            what = f"There is no class {wanted!r}: the network gives {outputs} channel{'s' * (outputs > 1)}."
            hint = "" if names else " Class names come with cases; arrays have indices only."
            raise ConfigError(what, where="target", fix=f"Use one of {choices}.{hint}")
        return index, 0 if single else index

    @functools.cached_property
    def prediction(self) -> Tensor:
        """(B, *S) labels, or (B, K, *S) masks of overlapping regions: those of `toolkit.predict`."""
        return self.activation.labels(self.logits.detach(), self.classes)

    def inside(self, index: int, where: str) -> Tensor:
        """(B, 1, *S) bool: where the prediction or the reference is this class or region."""
        if where == "prediction":
            labels = self.prediction
            return labels[:, index : index + 1] > 0 if self.overlapping else labels.unsqueeze(1) == index
        choose("inside", where, ("prediction", "reference"), where="target")
        if self.overlapping:
            return self.activation.targets(self.reference())[:, index : index + 1] > 0
        return self.reference() == index

    def reference(self) -> Tensor:
        if self.label is None:
            what = "This target needs a reference label and the input has none."
            fix = "Pass a case with a label or label=..., or use inside='prediction'."
            raise DataError(what, where=", ".join(self.ids[:4]), fix=fix)
        return self.label


class Target:
    """Base of all targets: `score` gives one number per image, and the mask of the voxels that count."""

    def score(self, context: TargetContext) -> tuple[Tensor, Tensor]:
        """(B,) scores with their graph, and the (B, 1, *S) bool mask of the region."""
        raise NotImplementedError

    def parts(self, context: TargetContext) -> list[Target]:
        """The targets whose maps are combined into one; normally just this one."""
        return [self]


@dataclasses.dataclass(frozen=True)
class _OfClass(Target):
    """Logits of one class, summed over the voxels of `mask`."""

    index: int | str

    def mask(self, context: TargetContext, index: int) -> Tensor:
        """(B, 1, *S) bool, the voxels that count."""
        raise NotImplementedError

    def score(self, context: TargetContext) -> tuple[Tensor, Tensor]:
        index, channel = context.channel(self.index)
        return _masked_sum(context.logits, channel, self.mask(context, index))


@dataclasses.dataclass(frozen=True)
class ClassSum(_OfClass):
    """Logits of one class, summed over the whole image.

    Args:
        index: class index or name.

    Example:
        >>> cam = tk.grad_cam(model, image[None], "bottleneck", tk.ClassSum(2))
    """

    def mask(self, context: TargetContext, index: int) -> Tensor:
        return torch.ones_like(context.logits[:, :1], dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class Region(_OfClass):
    """Logits of one class, summed where the prediction (or the reference) is that class.

    Args:
        index: class index or name.
        inside: "prediction" or "reference".

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.1", tk.Region("LV", inside="reference"))
    """

    inside: str = "prediction"

    def mask(self, context: TargetContext, index: int) -> Tensor:
        return context.inside(index, self.inside)


@dataclasses.dataclass(frozen=True)
class BoundaryBand(_OfClass):
    """Logits of one class, summed over the band around its boundary.

    Args:
        index: class index or name.
        width: half width of the band in voxels (a square or cubic neighbourhood).
        inside: whose boundary, "prediction" or "reference".

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.1", tk.BoundaryBand("LV", width=1))
    """

    width: int = 2
    inside: str = "prediction"

    def mask(self, context: TargetContext, index: int) -> Tensor:
        region = context.inside(index, self.inside)
        return _dilate(region, self.width) & _dilate(~region, self.width)


@dataclasses.dataclass(frozen=True)
class ErrorRegion(_OfClass):
    """Logits of one class, summed where prediction and reference disagree about it.

    Args:
        index: class index or name.
        kind: "all", "missed" (in the reference only) or "spurious" (in the prediction only).

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.1", tk.ErrorRegion("RV", kind="all"))
    """

    kind: str = "all"

    def mask(self, context: TargetContext, index: int) -> Tensor:
        predicted, true = context.inside(index, "prediction"), context.inside(index, "reference")
        regions = {"all": predicted ^ true, "missed": true & ~predicted, "spurious": predicted & ~true}
        choose("kind", self.kind, regions, where="ErrorRegion")
        return regions[self.kind]


@dataclasses.dataclass(frozen=True)
class LesionComponent(_OfClass):
    """Logits of one class, summed over one connected component of it.

    Args:
        index: class index or name.
        component: 0 = the largest component of each image, 1 = the second largest, ...
        inside: "prediction" or "reference".

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.1", tk.LesionComponent("LV", component=0))
    """

    component: int = 0
    inside: str = "prediction"

    def mask(self, context: TargetContext, index: int) -> Tensor:
        region = context.inside(index, self.inside)
        return torch.stack([_component(image[0], self.component)[None] for image in region])


@dataclasses.dataclass(frozen=True)
class Voxel(Target):
    """Logit of one class at one voxel.

    Args:
        position: index along every spatial axis of the image.
        index: class index or name; None = the class predicted there, per image.

    Example:
        >>> result = tk.attribute(model, case, "saliency", tk.Voxel((16, 16), "LV"))
    """

    position: Sequence[int]
    index: int | str | None = None

    def score(self, context: TargetContext) -> tuple[Tensor, Tensor]:
        size = context.logits.shape[2:]
        position = tuple(int(i) for i in self.position)
        if len(position) != len(size) or any(not 0 <= i < side for i, side in zip(position, size, strict=True)):
            raise ConfigError(f"There is no voxel {position} in an image of size {tuple(size)}.", where="Voxel")
        mask = torch.zeros_like(context.logits[:, :1], dtype=torch.bool)
        place: Any = (slice(None), slice(None), *position)
        mask[place] = True
        if self.index is not None:
            return _masked_sum(context.logits, context.channel(self.index)[1], mask)
        return context.logits[place].amax(1), mask


@dataclasses.dataclass(frozen=True)
class NormalisedClassSum(Target):
    """One map of all foreground classes, each stretched to [0, 1] before the sum, so that small organs weigh as much.

    Source: SelfReg-UNet Fig. 1b as its authors' code draws it: the score of each class is summed over the reference;
    its map is rectified, scaled to [0, 1], resized to the image and scaled again; the sum is divided by its maximum.
    Maps are therefore of the image's size and between 0 and 1; classes absent from an image add nothing.

    Args:
        classes: class indices or names; None = all but the background.
        inside: "reference" (the authors') or "prediction".

    Example:
        >>> cam = tk.grad_cam(model, case, "decoder.*", tk.NormalisedClassSum())
    """

    classes: tuple[int | str, ...] | None = None
    inside: str = "reference"

    def score(self, context: TargetContext) -> tuple[Tensor, Tensor]:
        """The sum of the parts' scores, and the union of their regions."""
        scores, masks = zip(*(part.score(context) for part in self.parts(context)), strict=True)
        return torch.stack(scores).sum(0), torch.stack(masks).any(0)

    def parts(self, context: TargetContext) -> list[Target]:
        """One `Region` per class."""
        outputs = context.logits.shape[1]
        wanted = self.classes or (range(outputs) if context.overlapping else range(1, max(outputs, 2)))
        return [Region(index, self.inside) for index in wanted]


def as_target(value: Target | int | str) -> Target:
    """A target, or a class index or name as `ClassSum`."""
    if isinstance(value, Target):
        return value
    if isinstance(value, (Integral, str)) and not isinstance(value, bool):  # NumPy's integers are not int
        return ClassSum(value if isinstance(value, str) else int(value))
    fix = "Use ClassSum(2), Region('LV'), Voxel((40, 52)), ... or a class."
    raise ConfigError(f"{value!r} is not a target.", fix=fix)


def _masked_sum(logits: Tensor, channel: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    plane = logits[:, channel : channel + 1]
    return torch.where(mask, plane, torch.zeros_like(plane)).flatten(1).sum(1), mask


def _dilate(mask: Tensor, width: int) -> Tensor:
    pool = F.max_pool3d if mask.ndim == 5 else F.max_pool2d if mask.ndim == 4 else F.max_pool1d
    return pool(mask.float(), 2 * width + 1, stride=1, padding=width) > 0


def _component(mask: Tensor, rank: int) -> Tensor:
    from scipy import ndimage

    labelled, number = ndimage.label(mask.cpu().numpy())
    if rank >= number:
        return torch.zeros_like(mask)
    sizes = torch.bincount(torch.from_numpy(labelled).flatten().long(), minlength=number + 1)[1:]
    chosen = int(sizes.argsort(descending=True, stable=True)[rank]) + 1
    return torch.from_numpy(labelled == chosen).to(mask.device)
