"""`MaskedLatent`: what a network makes of an image when part of its latent code is masked."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.results import DataFrame, Result, as_table


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MaskedLatent(Result):
    """Outputs with the clean and with the masked code; pairs are (clean, masked).

    Attributes:
        input: (B, C, *S).
        image: decoded images (B, C, *S), or None if the network has no image decoder.
        segmentation: labels (B, *S) int64, or masks (B, K, *S) of overlapping regions.
        entropy: entropy of the class probabilities (B, *S) in bits, -sum q log2(q + 1e-7), q = softmax(logits / T).
        mask: multiplier of the code the segmentation is made from; per channel or per position of the code. With
            windows those of all windows, one behind the other.
        image_mask: multiplier of the code the image is made from, or None.
        label: (B, 1, *S) reference, (B, K, *S) masks of overlapping regions, or None.
        cases: names of the images.
        classes: class names by index.
        scheme: "channel", "spatial", "dropout", or "by hand" for a mask of one's own.
        fraction: share of the entries masked (dropout: probability), one value for the whole batch.
        soft: whether masked entries keep a random share below one half (dropout: no effect).
        skips: "keep", "mask", "zero", or "none" for a network without any.
        layer: where the code was masked.
        bn_mode: "eval" (running batch statistics) or "train" (statistics of these images); it decides whether a
            picture shows over- or under-segmentation.
        temperature: T above.
        against: what the targeted masks attack: the "reference" label, or the network's own clean "prediction".
        loss: mean cross-entropy of each image (B,) with what `against` names; None in results of earlier versions.
        spacing: mm per axis or None, per image; empty in results of earlier versions.
    """

    input: Tensor
    image: tuple[Tensor, Tensor] | None
    segmentation: tuple[Tensor, Tensor]
    entropy: tuple[Tensor, Tensor]
    mask: Tensor
    image_mask: Tensor | None
    label: Tensor | None
    cases: list[str]
    classes: dict[int, str]
    scheme: str
    fraction: float
    soft: bool
    skips: str
    layer: str
    bn_mode: str
    temperature: float
    against: str
    loss: tuple[Tensor, Tensor] | None = None
    spacing: list[tuple[float, ...] | None] = dataclasses.field(default_factory=list)
    kind: ClassVar[str] = "masked_latent"

    def table(self) -> DataFrame:
        """One row per image and foreground class, and one for all foreground.

        Columns: case, class, class_name, reference ("label", or "clean" without one), reference_voxels, clean_voxels,
        masked_voxels, ratio (masked / reference), over (voxels outside the reference / reference), under (voxels of
        the reference missed / reference), changed (share of the image whose class changed), entropy_clean and
        entropy_masked (mean bits), bn_mode. Ratios of an empty reference are NaN.
        """
        clean, masked = self.segmentation
        masks = clean.ndim == self.input.ndim
        reference = clean if self.label is None else self.label if masks else self.label[:, 0]
        if masks:  # of overlapping regions: region k is number k + 1
            numbers = torch.arange(1, clean.shape[1] + 1).reshape(-1, *[1] * (clean.ndim - 2))
            clean, masked, reference = (m * numbers for m in (clean, masked, reference))
        present = torch.cat([clean.flatten(), masked.flatten(), reference.flatten()]).unique().tolist()
        classes = sorted({int(index) for index in present if index > 0} | {i for i in self.classes if i > 0})
        rows: list[dict[str, Any]] = []
        for position, case in enumerate(self.cases):
            real = torch.ones_like(self.entropy[0][position], dtype=torch.bool)
            if self.label is not None:
                real = self.label[position, 0] >= 0
            differs = clean[position] != masked[position]
            common = {
                "changed": float((differs.any(0) if masks else differs)[real].float().mean()),
                "entropy_clean": float(self.entropy[0][position][real].mean()),
                "entropy_masked": float(self.entropy[1][position][real].mean()),
                "bn_mode": self.bn_mode,
            }
            for index in [*classes, -1]:
                planes = [
                    (m[position] > 0) if index < 0 else (m[position] == index) for m in (reference, clean, masked)
                ]
                planes = [plane.any(0) for plane in planes] if masks else planes
                name = "foreground" if index < 0 else str(self.classes.get(index, index))
                row = {"case": case, "class": index, "class_name": name}
                row["reference"] = "clean" if self.label is None else "label"
                rows.append(row | _counts(*(plane & real for plane in planes)) | common)
        return as_table(rows)

    def __repr__(self) -> str:
        told = f"skips {self.skips}, batch statistics {self.bn_mode}, {len(self.cases)} images"
        return f"MaskedLatent({self.scheme} {self.fraction:.0%} of {self.layer}, {told})"


def _counts(reference: Tensor, clean: Tensor, masked: Tensor) -> dict[str, float]:
    total = int(reference.sum())
    size = total if total else float("nan")
    return {
        "reference_voxels": total,
        "clean_voxels": int(clean.sum()),
        "masked_voxels": int(masked.sum()),
        "ratio": int(masked.sum()) / size,
        "over": int((masked & ~reference).sum()) / size,
        "under": int((reference & ~masked).sum()) / size,
    }
