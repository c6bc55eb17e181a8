"""Every target's region and score on a context that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.explain.targets import (
    BoundaryBand,
    ClassSum,
    ErrorRegion,
    LesionComponent,
    NormalisedClassSum,
    Region,
    Target,
    TargetContext,
    Voxel,
    as_target,
)
from toolkit.inference.activation import Activation


def context(single: bool = False) -> TargetContext:
    """9x9: predicted class 1 in a 4x4 square and a 2x2 square; the reference is the 4x4 square moved by one."""
    prediction = torch.zeros(9, 9, dtype=torch.int64)
    prediction[1:5, 1:5], prediction[6:8, 6:8] = 1, 1
    label = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    label[0, 0, 1:5, 2:6] = 1
    value = torch.arange(81.0).reshape(9, 9) / 81
    logits = torch.stack([torch.where(prediction == 0, 2.0, -1.0), value, torch.full((9, 9), -5.0)])[None]
    if single:
        logits = torch.where(prediction == 1, 1.0, -1.0)[None, None]
    return TargetContext(logits, label, {0: "background", 1: "LV", 2: "RV"}, ["a"])


def value_at(mask: Tensor) -> float:
    return float((torch.arange(81.0).reshape(9, 9) / 81)[mask].sum())


@pytest.mark.parametrize(
    ("target", "voxels"),
    [
        (ClassSum("LV"), 81),
        (Region(1), 20),
        (Region("LV", inside="reference"), 16),
        (ErrorRegion(1), 12),
        (ErrorRegion(1, "missed"), 4),
        (ErrorRegion(1, "spurious"), 8),
        (LesionComponent(1), 16),
        (LesionComponent(1, component=1), 4),
        (LesionComponent(1, component=2), 0),
        (Voxel((2, 3), 1), 1),
        (BoundaryBand(1, width=1, inside="reference"), 12 + 20),
        (Region(2), 0),
    ],
)
def test_regions_and_scores(target: Target, voxels: int) -> None:
    here = context()
    score, mask = target.score(here)
    assert int(mask.sum()) == voxels
    if target != Region(2):
        assert float(score) == pytest.approx(value_at(mask[0, 0]), rel=1e-5)


def test_a_voxel_explains_the_class_predicted_there() -> None:
    here = context()
    assert float(Voxel((0, 0)).score(here)[0]) == 2.0
    assert float(Voxel((2, 2)).score(here)[0]) == pytest.approx(20 / 81)
    with pytest.raises(ConfigError, match="no voxel"):
        Voxel((9, 0)).score(here)
    with pytest.raises(ConfigError, match="no voxel"):
        Voxel((1, 1, 1)).score(here)


def test_a_single_foreground_logit_is_class_one() -> None:
    here = context(single=True)
    score, mask = Region(1).score(here)
    assert (int(mask.sum()), float(score)) == (20, 20.0)
    with pytest.raises(ConfigError, match="1: LV"):
        ClassSum(0).score(here)


def test_all_classes_are_parts_of_the_normalised_sum() -> None:
    here = context()
    assert NormalisedClassSum().parts(here) == [Region(1, "reference"), Region(2, "reference")]
    assert NormalisedClassSum(("RV",)).parts(here) == [Region("RV", "reference")]
    assert int(NormalisedClassSum().score(here)[1].sum()) == 16


def test_wrong_targets_are_refused() -> None:
    here = context()
    for target, message in (
        (lambda: ClassSum("atrium"), "0: background, 1: LV, 2: RV"),
        (lambda: Region(1, inside="truth"), "prediction, reference"),
        (lambda: ErrorRegion(1, "half"), "missed, spurious"),
        (lambda: BoundaryBand(1, width=0), "at least 1 voxel|from 1 to"),
    ):
        with pytest.raises(ConfigError, match=message):
            target().score(here)
    assert as_target("LV") == ClassSum("LV")
    with pytest.raises(ConfigError, match="not a target"):
        as_target(1.5)  # type: ignore[arg-type]


def test_regions_in_3d() -> None:
    logits = torch.zeros(1, 2, 5, 5, 5)
    logits[0, 1, 1:4, 1:4, 1:4] = 1
    here = TargetContext(logits, None, None, ["v"])
    assert int(Region(1).score(here)[1].sum()) == 27
    assert int(BoundaryBand(1, width=1).score(here)[1].sum()) == 125 - 1
    assert int(LesionComponent(1).score(here)[1].sum()) == 27


def test_overlapping_regions_are_scored_by_their_own_outputs() -> None:
    label = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
    logits = torch.tensor([[[-1.0, 2.0], [3.0, -4.0]], [[-1.0, -1.0], [-1.0, 5.0]]])[None]
    regions = Activation(None, {"whole": (1, 2, 3), "core": (3,)})
    here = TargetContext(logits, label, {0: "background", 1: "a", 2: "b", 3: "c"}, ["a"], regions)
    for target, score, voxels in (
        (ClassSum("whole"), 0.0, 4),
        (Region("whole"), 5.0, 2),
        (Region("whole", inside="reference"), 1.0, 3),
        (Region("core", inside="reference"), 5.0, 1),
        (Region(1), 5.0, 1),
        (ErrorRegion("whole", "missed"), -4.0, 1),
        (NormalisedClassSum(), 6.0, 3),
    ):
        found, mask = target.score(here)
        assert (float(found), int(mask.sum())) == (score, voxels), target
    with pytest.raises(ConfigError, match="0: whole, 1: core"):
        Region("a").score(here)
