"""How alike the channels of one layer are: cosine, Pearson and absolute similarity, and the redundancy score."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from toolkit.errors import ResultError, choose
from toolkit.features.memory import state_rows
from toolkit.features.store import Features
from toolkit.measure.pairing import moments_of
from toolkit.results import DataFrame, Result, as_table

FORMS = ("cosine", "pearson", "absolute")
PARTS = ("all", "first half", "second half")
_DEAD = 1e-12  # norm of a channel below which it has no direction
_CONSTANT = 1e-9  # share of a channel's energy about its mean below which it has no correlation


@dataclasses.dataclass(kw_only=True)
class ChannelSimilarity(Result):
    """Similarity of the channels of one layer, averaged over images.

    Attributes:
        layer: the layer's name ("" for a plain tensor).
        form: the form that `matrix` and `redundancy` show.
        matrices: per form, (C', C') over the living channels; an entry is the mean over the images in which both
            channels live, and NaN where there is none.
        scores: per form and part, the redundancy score of every image (n,), NaN with fewer than two channels.
        channels: indices of the living channels (C',): not dead in every image.
        dead: indices of channels that are zero everywhere in all images.
        dead_per_image: how many channels are zero everywhere in each image (n,).
    """

    layer: str
    form: str
    matrices: dict[str, Tensor]
    scores: dict[str, dict[str, Tensor]]
    channels: Tensor
    dead: Tensor
    dead_per_image: Tensor
    kind: ClassVar[str] = "channel similarity"

    @property
    def matrix(self) -> Tensor:
        """(C', C') similarity in the chosen form; the diagonal is 1."""
        return self.matrices[self.form]

    @property
    def redundancy(self) -> float:
        """Mean off-diagonal similarity, averaged over images, in the chosen form."""
        return float(self.scores[self.form]["all"].nanmean())

    def panel(self, count: int = 30, part: str = "all") -> Tensor:
        """The figure's matrix: the first `count` living channels (of a half), clipped to [0, 1].

        `part` is "all" (compare a shallow with a deep layer) or "first half" / "second half" (of one layer, in
        index order): the two readings of the paper's "shallow" and "deep" channels.

        Raises:
            ConfigError: no such part.
        """
        choose("part", part, PARTS)
        chosen = _halves(len(self.channels) + len(self.dead))
        keep = torch.isin(self.channels, chosen[part]).nonzero()[:count, 0]
        return self.matrix.index_select(0, keep).index_select(1, keep).clamp(0, 1)

    def table(self) -> DataFrame:
        """One row per form and part: redundancy, sd over images, images, channels, dead."""
        rows, counts = [], {"channels": len(self.channels), "dead": len(self.dead)}
        for form, parts in self.scores.items():
            for part, scores in parts.items():
                known = scores[torch.isfinite(scores)]
                row = {"layer": self.layer, "form": form, "part": part, "redundancy": float(scores.nanmean())}
                row |= {"sd": float(known.std()) if len(known) > 1 else math.nan, "images": len(known)}
                rows.append(row | counts)
        return as_table(rows)


def channel_similarity(features: Features | Tensor, layer: str = "", form: str = "cosine") -> ChannelSimilarity:
    """Similarity between the channels of one layer and its redundancy score (SelfReg-UNet, Fig. 1c).

    For an image with the map F (C, *S) and v_i channel i laid out flat, the cosine form is
    S_ij = <v_i, v_j> / (|v_i| |v_j|), the Pearson form the same after subtracting each channel's mean, the absolute
    form |S_ij|. Channels with |v_i| < 1e-12 are dropped and counted (Pearson also drops constant ones). The
    redundancy score is the mean of S_ij over i != j, averaged over images. The paper published no code for this
    figure: this definition is our reading of it. Features after a ReLU have S >= 0 by construction and look
    redundant for that reason alone: look at the Pearson form too.

    Args:
        features: stored features with second moments, or activations (B, C, *S).
        layer: which layer of the store.
        form: "cosine", "pearson" or "absolute"; all three are computed.

    Raises:
        LayerError: the store has no such layer.
        ResultError: no moments, NaN features, or fewer than two living channels.
        ConfigError: unknown form.

    Example:
        >>> similarity = tk.channel_similarity(features, "bottleneck", form="pearson")
    """
    choose("similarity form", form, FORMS)
    if isinstance(features, Features):
        state_rows("channel_similarity", [features], layer, kind="gram")
    gram, total, count, source = moments_of(features, layer)
    channels = gram.shape[-1]
    parts = _halves(channels)
    sums = {name: torch.zeros(channels, channels, dtype=torch.float64) for name in FORMS}
    seen = {name: torch.zeros_like(sums["cosine"]) for name in FORMS}
    scores: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in FORMS}
    alive_anywhere, dead_per_image = torch.zeros(channels, dtype=torch.bool), []
    for index in range(len(gram)):
        second, first = gram[index].double(), total[index].double()
        if not torch.isfinite(second).all():
            raise ResultError("The features hold NaN or infinite values.", where=f"{layer}, image {index}")
        living = second.diagonal() >= _DEAD**2
        alive_anywhere |= living
        dead_per_image.append(int((~living).sum()))
        for name, (matrix, valid) in _forms(second, first, float(count[index]), living).items():
            sums[name] += matrix
            seen[name] += valid[:, None] & valid[None, :]
            for part, members in parts.items():
                scores[name][part].append(_off_diagonal_mean(matrix, valid, members))
    keep = alive_anywhere.nonzero()[:, 0]
    if len(keep) < 2:
        raise ResultError(f"Only {len(keep)} of {channels} channels are not zero everywhere.", where=layer)
    return ChannelSimilarity(
        layer=layer,
        form=form,
        matrices={name: (sums[name] / seen[name])[keep][:, keep] for name in FORMS},
        scores={name: {p: torch.tensor(v, dtype=torch.float64) for p, v in s.items()} for name, s in scores.items()},
        channels=keep,
        dead=(~alive_anywhere).nonzero()[:, 0],
        dead_per_image=torch.tensor(dead_per_image),
        provenance={**source, "layer": layer, "measure": "channel similarity", "images": len(gram)},
    )


def _forms(second: Tensor, first: Tensor, count: float, living: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrix and valid channels of each form for one image; entries of invalid channels are 0."""
    cosine = _normalised(second, living)
    centred = second - torch.outer(first, first) / count
    varying = living & (centred.diagonal() > _CONSTANT * second.diagonal())
    pearson = _normalised(centred, varying), varying
    return {"cosine": (cosine, living), "pearson": pearson, "absolute": (cosine.abs(), living)}


def _normalised(matrix: Tensor, valid: Tensor) -> Tensor:
    scale = torch.where(valid, matrix.diagonal(), torch.ones(())).clamp_min(0).sqrt()
    result = matrix / scale[:, None] / scale[None, :]
    result = (result * (valid[:, None] & valid[None, :])).clamp(-1, 1)
    result.diagonal().copy_(valid.to(result.dtype))
    return result


def _off_diagonal_mean(matrix: Tensor, valid: Tensor, members: Tensor) -> float:
    index = members[valid[members]]
    number = len(index)
    if number < 2:
        return math.nan
    block = matrix.index_select(0, index).index_select(1, index)
    return float((block.sum() - block.diagonal().sum()) / (number * (number - 1)))


def _halves(channels: int) -> dict[str, Tensor]:
    every, middle = torch.arange(channels), channels // 2
    return {"all": every, "first half": every[:middle], "second half": every[middle:]}
