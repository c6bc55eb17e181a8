"""Cross-entropy and soft Dice: the SelfReg-UNet base losses, hand-computed values, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import golden_case
from monai.losses import DiceLoss
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError, LayerError
from toolkit.training.segmentation import LossObjective, SegmentationObjective, focal_loss, soft_dice_loss


@pytest.mark.parametrize("case", ["seg_synapse", "seg_acdc", "seg_missing_classes"])
def test_selfreg_base_loss(case: str) -> None:
    found = golden_case("selfreg", case)
    settings = found.entry["hyperparameters"]
    data = {k.removeprefix(f"{case}__"): v for k, v in found.tensors().items() if k.startswith(f"{case}__")}
    weights = (settings["weight_ce"], settings["weight_dice"])
    objective = SegmentationObjective(*weights, include_background=True, squared=True, smooth=settings["smooth"])
    logits = data["logits"].clone().requires_grad_()
    terms = objective(logits, {"label": data["label"].unsqueeze(1)})
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(terms["cross_entropy"] / weights[0], data["loss_ce"], **close)
    torch.testing.assert_close(terms["dice"] / weights[1], data["loss_dice"], **close)
    total = terms["cross_entropy"] + terms["dice"]
    torch.testing.assert_close(total, data["loss_total"], **close)
    (gradient,) = torch.autograd.grad(total, logits)
    assert float((gradient - data["grad_total"]).abs().max()) <= 1e-5 * float(data["grad_total"].abs().max())


def certain(label: Tensor, classes: int, strength: float = 40.0) -> Tensor:
    return strength * torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()


def test_default_dice_by_hand() -> None:
    label = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 1]]])
    logits = torch.zeros(2, 3, 2, 2)
    # Every p is 1/3: class 1 has 3 pixels of 8, class 2 has 1.
    overlap, predicted = torch.tensor([1.0, 1 / 3]), 8 / 9
    expected = (1 - 2 * overlap / (predicted + torch.tensor([3.0, 1.0]))).mean()
    terms = SegmentationObjective()(logits, {"label": label.unsqueeze(1)})
    assert float(terms["dice"]) == pytest.approx(float(expected), abs=1e-5)
    assert float(terms["cross_entropy"]) == pytest.approx(math.log(3))


def test_image_by_image_dice_by_hand() -> None:
    label = torch.tensor([[[1, 1]], [[0, 0]]])
    logits = torch.zeros(2, 2, 1, 2)
    first, second = 1 - 2 * 1.0 / (1.0 + 2.0), 1 - 1e-5 / (1.0 + 1e-5)
    value = soft_dice_loss(logits, label, batch_dice=False)
    assert float(value) == pytest.approx((first + second) / 2, abs=1e-5)


def test_perfect_prediction_costs_nothing() -> None:
    label = torch.randint(0, 4, (2, 6, 5, 4), generator=torch.Generator().manual_seed(0))
    terms = SegmentationObjective()(certain(label, 4), {"label": label.unsqueeze(1)})
    assert all(float(term) < 1e-4 for term in terms.values())


@pytest.mark.parametrize("ignored", [255, 2])  # beyond the classes, and one of them
def test_ignored_pixels_are_in_no_sum(ignored: int) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3)).double()
    label = torch.randint(0, 2, (2, 4, 5), generator=torch.Generator().manual_seed(4))
    label[:, 1] = ignored
    there = label != ignored
    losses = []
    for index in (1, 2):
        p, y = logits.softmax(1)[:, index][there], (label[there] == index).double()
        losses.append(1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5))
    value = soft_dice_loss(logits, label, ignore_label=ignored)
    assert float(value) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)


def test_ignored_pixels_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 1, 8, 8), generator=generator)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    label[:, :, :4] = 255
    objective = SegmentationObjective(ignore_label=255, include_background=True)
    cropped = SegmentationObjective(include_background=True)(logits[:, :, 4:], {"label": label[:, :, 4:]})
    whole = objective(logits, {"label": label})
    for name, term in whole.items():
        torch.testing.assert_close(term, cropped[name])


def test_deep_supervision_weights_halve_and_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (2, 1, 4, 4), generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine, coarse = torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    objective = SegmentationObjective()
    both = objective([fine, coarse], {"label": label})
    alone = objective(fine, {"label": label}), objective(coarse, {"label": label[:, :, ::2, ::2]})
    for name, term in both.items():
        torch.testing.assert_close(term, (2 * alone[0][name] + alone[1][name]) / 3)
    assert objective.logits([fine, coarse]) is fine


def test_half_precision_logits_give_float32_terms() -> None:
    label = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    terms = SegmentationObjective()(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), {"label": label})
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_a_zero_weight_leaves_the_term_out() -> None:
    label = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    logits = torch.zeros(1, 2, 4, 4)
    assert list(SegmentationObjective(dice=0.0)(logits, {"label": label})) == ["cross_entropy"]
    assert list(SegmentationObjective(cross_entropy=0.0)(logits, {"label": label})) == ["dice"]


def test_focal_loss_is_monais() -> None:
    from monai.losses import FocalLoss

    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    label = torch.randint(0, 3, (2, 1, 6, 6), generator=generator)
    reference = FocalLoss(gamma=1.5, use_softmax=True, to_onehot_y=True, reduction="none")(logits, label)
    objective = SegmentationObjective(cross_entropy=0, dice=0, focal=2.0, focal_gamma=1.5)
    terms = objective(logits, {"label": label})
    torch.testing.assert_close(terms["focal"], 2 * reference.sum(1).mean())  # MONAI averages over the classes too
    none = SegmentationObjective(dice=0, focal=1.0, focal_gamma=0.0, class_weights=(0.2, 1, 3), ignore_label=2)
    both = none(logits, {"label": label})
    torch.testing.assert_close(both["focal"], both["cross_entropy"])


def test_class_weights_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    label = torch.tensor([0, 0, 0, 1]).view(1, 1, 1, 4)
    terms = SegmentationObjective(class_weights=(1, 5))(logits, {"label": label})
    assert float(terms["cross_entropy"]) == pytest.approx((3 * math.log(4) + 5 * math.log(4 / 3)) / 8)
    with pytest.raises(ConfigError, match="3 class weights were given for 2 outputs"):
        SegmentationObjective(class_weights=(1, 1, 1))(logits, {"label": label})
    with pytest.raises(ConfigError, match="one weight >= 0 a class"):
        SegmentationObjective(class_weights=(1, -1))


def test_bad_labels_and_weights_are_refused() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ConfigError, match="3 outputs"):
        SegmentationObjective()(logits, {"label": torch.full((1, 1, 4, 4), 3)})
    with pytest.raises(ConfigError, match="255"):
        SegmentationObjective()(logits, {"label": torch.full((1, 1, 4, 4), 255)})
    with pytest.raises(ConfigError, match=r"\(B, 1, \*S\)"):
        SegmentationObjective()(logits, {"label": torch.zeros(1, 4, 4, dtype=torch.long)})
    with pytest.raises(ConfigError, match="weights"):
        SegmentationObjective(cross_entropy=0, dice=0)


def test_rebuilt_from_its_description() -> None:
    original = SegmentationObjective(0.3, 0.7, include_background=True, squared=True, class_weights=(1, 2), focal=0.1)
    assert registry.build("objective", registry.describe(original)) == original


def test_a_mapping_is_trained_on_its_logits() -> None:
    torch.manual_seed(0)
    logits, batch = torch.randn(2, 3, 8, 8), {"label": torch.randint(0, 3, (2, 1, 8, 8))}
    objective = SegmentationObjective()
    expected = objective(logits, batch)
    found = objective({"hidden": torch.randn(2, 4), "logits": logits}, batch)
    assert {name: float(value) for name, value in found.items()} == {name: float(v) for name, v in expected.items()}
    assert objective.logits({"logits": logits}) is logits
    with pytest.raises(LayerError, match="No tensor can be the logits: hidden"):
        objective({"hidden": torch.randn(2, 4)}, batch)


def test_stacked_deep_supervision_is_that_of_a_list() -> None:
    torch.manual_seed(0)
    stacked, label = torch.randn(2, 3, 4, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    objective, batch = SegmentationObjective(), {"label": label, "image": torch.zeros(2, 1, 8, 8)}
    # a stack is finest first; of a list of one size the last head counts most
    listed = objective([stacked[:, 2], stacked[:, 1], stacked[:, 0]], batch)
    assert {k: float(v) for k, v in objective(stacked, batch).items()} == {k: float(v) for k, v in listed.items()}


@pytest.mark.parametrize("settings", [{"ignore_label": 0}, {"class_weights": (0.0, 1.0, 1.0)}])
def test_a_batch_without_any_pixel_that_counts_gives_nothing(settings: dict[str, Any]) -> None:
    """0 / 0 pixels: torch's mean is NaN, and one such patch (scribbles, slices of background) ended a training."""
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    terms = SegmentationObjective(focal=1.0, dice=0.0, **settings)(logits, {"label": torch.zeros(1, 1, 4, 4).long()})
    sum(terms.values()).backward()
    assert [float(value.detach()) for value in terms.values()] == [0.0, 0.0]
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), DiceLoss(sigmoid=True)])
def test_a_loss_with_a_sigmoid_takes_a_network_of_one_output(loss: nn.Module) -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4))
    objective = LossObjective(loss)
    torch.testing.assert_close(objective(logits, {"label": label})["loss"], loss(logits, label.float()))
    with pytest.raises(ConfigError, match=r"labels hold \[3\]"):
        objective(logits, {"label": torch.full_like(label, 3)})
    with pytest.raises(ConfigError, match="1 outputs"):
        LossObjective(nn.CrossEntropyLoss())(logits, {"label": torch.ones_like(label)})


def test_some_ignored_and_weighted_pixels_as_torch_counts_them() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 1, 4, 4))
    objective = SegmentationObjective(dice=0.0, ignore_label=2, class_weights=(0.2, 3.0, 1.0))
    expected = nn.functional.cross_entropy(logits, label[:, 0], torch.tensor([0.2, 3.0, 1.0]), ignore_index=2)
    torch.testing.assert_close(objective(logits, {"label": label})["cross_entropy"], expected)


def test_focal_loss_of_a_certain_pixel_has_a_gradient_for_any_exponent() -> None:
    """Lin et al. try 0.2 and 0.5; the slope of (1 - p)^gamma is infinite at p = 1, where the loss is 0."""
    logits = torch.tensor([[[[40.0, 1.0]], [[0.0, 0.0]]]], requires_grad=True)
    focal_loss(logits, torch.zeros(1, 1, 2).long(), gamma=0.5).backward()
    p = torch.tensor(1.0).sigmoid()
    slope = (1 - p) ** 0.5 * (0.5 * p * p.log() - (1 - p))  # of -(1 - p)^(1/2) log p along its logit
    torch.testing.assert_close(logits.grad[0, 0, 0], torch.stack([torch.zeros(()), slope / 2]))


def _rank(rank: int, folder: str) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(_shared_step(slice(rank, None, 2)), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def _shared_step(share: slice) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Cross-entropy of shares that count different numbers of pixels, and its gradient, by objective."""
    drawn = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=drawn)
    label = torch.randint(0, 4, (4, 1, 8, 8), generator=drawn)
    label[::2, :, :6] = 3  # ignored
    regions = torch.rand(4, 2, 8, 8, generator=drawn) > 0.5
    batch = {"image": image[share], "label": label[share]}
    steps = {}
    for name, weights, more in (("classes", (1.0, 2.0, 8.0), {}), ("regions", None, {"regions": regions[share]})):
        weight = torch.eye(3, dtype=torch.float64)[: 2 + (weights is not None)].requires_grad_()
        objective = SegmentationObjective(ignore_label=3, class_weights=weights)
        value = objective(torch.einsum("kc,bchw->bkhw", weight, batch["image"]), {**batch, **more})["cross_entropy"]
        value.backward()
        steps[name] = value.detach(), weight.grad
    return steps


@pytest.mark.slow
def test_two_processes_weigh_and_ignore_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, (value, gradient) in _shared_step(slice(None)).items():
        assert float(ranks[0][name][0]) == pytest.approx(float(value), rel=1e-12)
        averaged = (ranks[0][name][1] + ranks[1][name][1]) / 2  # as distributed data parallel does
        torch.testing.assert_close(averaged, gradient)
