"""What logits mean: exclusive classes (softmax), overlapping regions (sigmoid), or one foreground output."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from toolkit.errors import ConfigError, ToolkitWarning, choose
from toolkit.inference.memory import Regions


@dataclasses.dataclass(frozen=True)
class Activation:
    """How logits (B, K, *S) become labels, probabilities and targets.

    * Several outputs are exclusive classes, 0 the background: softmax.
    * "sigmoid": every output is its own yes or no, as in nnU-Net's region-based training; `regions` says which classes
      of the label each of them covers.
    * One output is the logit of class 1, if somebody says so: `activation="sigmoid"`, a network trained here, or data
      of exactly two classes. A regression network is not thresholded by accident.
    """

    kind: str | None = None  # "softmax", "sigmoid" or None
    regions: Regions | None = None  # name -> classes, one entry an output
    classes: int | None = None  # number of classes that the network was trained on here, if it was

    def __post_init__(self) -> None:
        if self.kind is not None:
            choose("activation", self.kind, ("softmax", "sigmoid"), where="activation=...")
        if self.regions and self.kind == "softmax":
            raise ConfigError("Overlapping regions need sigmoid outputs, not a softmax.", where="regions=...")
        if self.regions and self.kind is None:
            object.__setattr__(self, "kind", "sigmoid")

    def overlapping(self, outputs: int) -> bool:
        """Whether the outputs are regions that may overlap."""
        return bool(self.regions) or (self.kind == "sigmoid" and outputs > 1)

    def labels(self, logits: Tensor, classes: Mapping[int, str] | None = None) -> Tensor:
        """Class indices (B, *S), or masks (B, K, *S) of overlapping regions; uint8, or int16 above 256 classes."""
        outputs = logits.shape[1]
        if self.overlapping(outputs):
            return (logits > 0).to(torch.uint8)
        if outputs == 1:
            self._check_single(logits, classes)
            return (logits[:, 0] > 0).to(torch.uint8)
        wide = torch.uint8 if outputs <= 256 else torch.int16 if outputs <= 2**15 else torch.int32
        return logits.max(1).indices.to(wide)  # the first of equals, and several times faster than argmax

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K, *S) softmax over the classes, or the sigmoid of each output."""
        if logits.shape[1] == 1 or self.overlapping(logits.shape[1]):
            return logits.sigmoid()
        return logits.softmax(1)

    def targets(self, label: Tensor) -> Tensor:
        """(B, K, *S) float masks of the regions in a label (B, 1, *S); negative labels belong to none."""
        if not self.regions:
            what = "The outputs overlap, and which classes of the label each covers is not known."
            fix = 'Declare them: tk.load_task(..., regions={"whole tumour": (1, 2, 3)}) or evaluate(..., regions=...).'
            raise ConfigError(what, where='activation="sigmoid"', fix=fix)
        classes = [torch.tensor(list(c)).to(label.device, non_blocking=True) for c in self.regions.values()]
        return torch.cat([torch.isin(label, each) for each in classes], 1).float()

    def check(self, outputs: int, classes: Mapping[int, str]) -> None:
        """Refuse a network whose outputs are not those of the data."""
        if self.regions:
            if outputs != (count := len(self.regions)):
                what = f"The network has {outputs} outputs, the task {count} regions: {', '.join(self.regions)}."
                raise ConfigError(what, fix="Give the network one output per region.")
            return
        wanted = max(classes, default=0) + 1
        if self.overlapping(outputs):
            what = f"The network's {outputs} outputs overlap (sigmoid), the task has {wanted} exclusive classes."
            raise ConfigError(what, fix="Declare the task's regions, or use a network with a softmax.")
        if outputs != wanted and not (outputs == 1 and wanted == 2):
            own = f"{outputs} output{'s' * (outputs > 1)}"
            fix = "Give the network one output per class, or declare regions if its outputs overlap."
            raise ConfigError(f"The network has {own}, the task {wanted} classes, background included.", fix=fix)

    def _check_single(self, logits: Tensor, classes: Mapping[int, str] | None) -> None:
        if self.kind == "softmax":
            raise ConfigError("A softmax of one output is 1 everywhere.", where="activation=...", fix='Use "sigmoid".')
        if self.kind is None and 2 not in (self.classes, None if classes is None else len(classes)):
            what = "The network has one output, and nothing says that it is a logit; a regression is not thresholded."
            fix = 'Pass activation="sigmoid" if it is a logit (of probabilities take the sigmoid off the network); '
            fix += 'its raw values are tk.predict(..., output="logits").'
            raise ConfigError(what, where="activation=...", fix=fix)
        if float(logits.min()) >= 0 and 0 < float(logits.max()) <= 1:
            what = "The network's one output channel lies between 0 and 1, like a probability. It is read as a logit, "
            what += "so every voxel above 0 counts as foreground: take the sigmoid off the network."
            warnings.warn(what, ToolkitWarning, stacklevel=2)
