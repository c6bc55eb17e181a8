"""`Case`: one network-sized item of a task (a slice in 2D, a volume in 3D) with its voxels read on demand."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from toolkit.data.geometry import Geometry
from toolkit.data.source import Source
from toolkit.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One item. Images come normalised as the task says; `model(case.image[None])` is all it takes.

    Attributes:
        id: unique in the task, for example `patient006_ED/slice03`.
        site: domain it comes from.
        split: `train`, `val` or `test`.
        subject: person, animal or field of view; one subject is in one split only.
        volume: stack this slice belongs to (equal to `id` for volumes and single images); metrics are per volume.
        position: index of the slice within the volume, or None.
        group: pathology group, or None.
        classes: class names by index, 0 = background.
        spacing: voxel spacing in mm along the axes of `image`, or None if it is not known.
        slice_spacing: distance of neighbouring slices of the stack in mm, or None.
        affine: 4x4 voxel-to-world matrix in mm of the source volume in the axes it was read in, or None.
        source: file path(s) or recipe.
        reader: what reads the volume.
        index: which slice of the volume that is read, or None for all of it.
        geometry: how to write a result back in the file's own axes, or None.
        relabel: new class of every stored class (joined tasks), or None.
    """

    id: str
    site: str
    split: str
    subject: str
    volume: str
    _: dataclasses.KW_ONLY
    position: int | None
    group: str | None
    classes: dict[int, str]
    spacing: tuple[float, ...] | None
    slice_spacing: float | None
    affine: np.ndarray | None
    source: str
    reader: Source = dataclasses.field(repr=False)
    index: int | None = None
    geometry: Geometry | None = dataclasses.field(default=None, repr=False)
    relabel: tuple[int, ...] | None = None

    @property
    def image(self) -> Tensor:
        """Normalised image (C, *S), float32; a copy that may be changed.

        Raises:
            DataError: the file is missing, damaged, or not what the task says.
        """
        return torch.from_numpy(np.array(self.image_array()))

    @property
    def label(self) -> Tensor:
        """Class indices (*S), uint8; a copy that may be changed.

        Raises:
            DataError: the case has no label, or the file is damaged.
        """
        return torch.from_numpy(np.array(self.label_array()))

    @property
    def has_label(self) -> bool:
        """Whether a reference label exists (the volume is read to know)."""
        return self.reader.pair().label is not None

    def image_array(self) -> np.ndarray:
        """Normalised image (C, *S), float32, as a read-only view of the volume in memory."""
        image = self.reader.pair().image
        return image if self.index is None else image[:, self._checked_index(image.shape[1])]

    def label_array(self) -> np.ndarray:
        """Class indices (*S), uint8, read-only.

        Raises:
            DataError: the case has no label.
        """
        label = self.reader.pair().label
        if label is None:
            raise DataError(f"The case {self.id!r} has no label.", where=self.source, fix="Use cases that have one.")
        if self.index is not None:
            label = label[self._checked_index(label.shape[0])]
        return label if self.relabel is None else np.asarray(self.relabel, dtype=np.uint8)[label]

    def _checked_index(self, slices: int) -> int:
        if self.index is None or not 0 <= self.index < slices:
            what = f"The case {self.id!r} is slice {self.index} of a stack that has {slices}."
            fix = "The file and the index table of the data set disagree: check it with task.verify()."
            raise DataError(what, where=self.source, fix=fix)
        return self.index
