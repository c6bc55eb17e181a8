"""Latent augmentation: the acceptance properties of its masks and of a trained network, each named by its number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import golden_case
from torch import Tensor

from toolkit.explain.mask_result import MaskedLatent
from toolkit.explain.masking import mask_latent
from toolkit.features.masks import dropout_mask, targeted_mask
from toolkit.methods.latent_augmentation.network import FastSlowNetwork, fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.training.step import TrainingStep

SHAPES = {"channel": (6, 1, 1), "spatial": (1, 3, 4)}


def gradient(seed: int = 0) -> Tensor:
    return torch.randn(5, 6, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(values: Tensor, axis: str) -> Tensor:
    """One score per channel, or per position, of every sample: the mean over the other axes."""
    return values.mean((2, 3)) if axis == "channel" else values.mean(1).flatten(1)


@pytest.mark.parametrize("axis", ["channel", "spatial"])
@pytest.mark.parametrize("fraction", [0.1, 0.34, 0.5])
def test_01_exactly_the_floor_of_n_times_p_entries_are_masked_in_every_sample(axis: str, fraction: float) -> None:
    entries = 6 if axis == "channel" else 12
    share = 0.5 * torch.rand(5, entries, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hard, soft = targeted_mask(gradient(), axis, fraction), targeted_mask(gradient(), axis, fraction, share)
    for mask in (hard.flatten(1), soft.flatten(1)):
        assert (mask != 1).sum(1).tolist() == [int(entries * fraction)] * 5
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    masked = soft[soft != 1]
    assert bool(((masked >= 0) & (masked < 0.5)).all())
    if fraction > 0.3:
        assert len({tuple(row.tolist()) for row in hard.flatten(1)}) > 1  # supports differ between samples


@pytest.mark.parametrize("axis", ["channel", "spatial"])
def test_02_shape_of_the_mask_and_every_masked_score_above_every_other(axis: str) -> None:
    mask = targeted_mask(gradient(2), axis, 0.5)
    assert mask.shape == (5, *SHAPES[axis])
    for row, score in zip(mask.flatten(1), scores(gradient(2), axis), strict=True):
        assert score[row == 0].min() > score[row == 1].max()


def test_03_ties_at_the_cut_reduce_the_count_and_less_than_one_entry_is_the_identity() -> None:
    arrays = golden_case("latent_augmentation", "mask_channel_ties_cut_inside").tensors()
    assert bool((targeted_mask(arrays["grad"], "channel", 0.34) == 1).all())
    values = torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0]).view(1, 5, 1, 1)
    # the cut falls between the two equal scores: only the one above both of them is masked
    assert targeted_mask(values, "channel", 0.4).flatten().tolist() == [0, 1, 1, 1, 1]
    assert targeted_mask(values, "channel", 0.6).flatten().tolist() == [0, 0, 0, 1, 1]
    for axis, entries in (("channel", 6), ("spatial", 12)):
        assert bool((targeted_mask(gradient(), axis, 0.99 / entries) == 1).all())


@pytest.mark.parametrize("axis", ["channel", "spatial"])
def test_04_scaling_the_loss_keeps_the_support_and_negating_it_reverses_the_ranking(axis: str) -> None:
    values = gradient(3)
    one = targeted_mask(values, axis, 0.5)
    for factor in (1e-6, 0.5, 1e6):
        assert torch.equal(targeted_mask(factor * values, axis, 0.5), one)
    # an even number of entries without ties: at one half the reversed ranking masks exactly the others
    assert torch.equal(targeted_mask(-values, axis, 0.5), 1 - one)


def test_07_dropout_keeps_or_doubles_whole_channels_and_keeps_the_mean() -> None:
    code = torch.rand(3, 40, 5, 5, generator=torch.Generator().manual_seed(4)) + 0.1
    draws = [code * dropout_mask(code, 0.5, torch.Generator().manual_seed(k)) for k in range(400)]
    first = draws[0]
    kept = (first != 0).flatten(2).all(2)
    assert torch.equal(kept, (first != 0).flatten(2).any(2))
    assert torch.equal(first[kept], 2 * code[kept])
    error = 4 * 0.5 / (400 * 3 * 40) ** 0.5  # four standard errors of a share
    assert np.mean([float((one != 0).float().mean()) for one in draws]) == pytest.approx(0.5, abs=error)
    mean = torch.stack(draws).mean(0)
    assert float((mean / code - 1).mean().abs()) < 2 * error


def trained_step(network: FastSlowNetwork) -> TrainingStep:
    return TrainingStep(network, FastSlowObjective(), [LatentAugmentation()])


def test_15_the_slow_network_reads_the_prediction_only() -> None:
    torch.manual_seed(0)
    network = fast_slow_network(1, 3, width=2).eval()
    one, two = (torch.rand(2, 1, 32, 32) for _ in range(2))
    with torch.no_grad():
        logits = network.decode_segmentation(network.decouple(network.encode(one)))
        before = network.refine(logits)
        # another image, other weights of the fast network, any number of calls: the same prediction, the same result
        network(two)
        for parameter in network.image_encoder.parameters():
            parameter.add_(1)
        for _ in range(3):
            assert torch.equal(network.refine(logits), before)
        assert not torch.equal(network.refine(logits + torch.randn_like(logits)), before)


def test_every_loss_of_a_cooperative_step_is_finite_from_the_first_step() -> None:
    images, labels = toy(4)
    torch.manual_seed(0)
    step = trained_step(fast_slow_network(1, 3, width=2))
    terms = [step({"image": images, "label": labels}, part=part).terms for part in range(2)]
    values = {name: float(value) for part in terms for name, value in part.items()}
    assert len(values) == 8
    assert all(np.isfinite(value) for value in values.values()), values


def toy(count: int, side: int = 48, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Discs within rings on a noisy ground: images (n, 1, side, side) in [0, 1], labels 0 to 2."""
    drawn = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    images, labels = [], []
    for _ in range(count):
        centre, inner = drawn.uniform(0.35, 0.65, 2) * side, drawn.uniform(0.10, 0.17) * side
        distance = np.sqrt(((grid - centre.reshape(2, 1, 1)) ** 2).sum(0))
        label = (distance < 1.7 * inner).astype(int) + (distance < inner)
        image = np.array([0.25, 0.45, 0.8])[label] + 0.06 * drawn.standard_normal((side, side))
        images.append(np.clip(image, 0, 1)[None])
        labels.append(label[None])
    return torch.tensor(np.array(images), dtype=torch.float32), torch.tensor(np.array(labels))


Trained = tuple[FastSlowNetwork, dict[str, Tensor], dict[str, float]]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The standard training of the method on 32 drawn images: network, images with labels, the last step's terms."""
    images, labels = toy(32, side=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fast_slow_network(1, 3, width=4).train()
    step = TrainingStep(network, FastSlowObjective(), [])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    terms: dict[str, float] = {}
    for index in range(260):
        rows = torch.arange(8).add(8 * index) % 32
        part = step({"image": images[rows], "label": labels[rows]}, step=index)
        assert part.total is not None
        optimizer.zero_grad()
        part.total.backward()
        optimizer.step()
        terms = {name.removeprefix("fast_slow/"): float(value) for name, value in part.terms.items()}
    return network, {"image": images, "label": labels[:, 0]}, terms


def masked(trained: Trained, scheme: str, fraction: float, soft: bool = True, mode: str = "train") -> MaskedLatent:
    """All images in one batch: with mode "train" its statistics are the batch's."""
    return mask_latent(trained[0], trained[1], scheme, fraction, soft=soft, mode=mode)


def loss(result: MaskedLatent, which: int = 1) -> float:
    assert result.loss is not None
    return float(result.loss[which].mean())


def entropy(result: MaskedLatent, which: int = 1) -> float:
    return float(result.entropy[which].mean())


@pytest.mark.slow
def test_18_training_sanity(trained: Trained) -> None:
    last = trained[2]
    assert last["segmentation"] < 0.2
    assert last["shape_label"] < 0.2
    assert last["reconstruction"] < 0.01


@pytest.mark.slow
def test_18_masks_make_a_trained_network_less_certain_and_wrong(trained: Trained) -> None:
    """Measured: entropy 0.35 bits clean, at one half 0.43 (channel), 0.44 (spatial), 0.38 (dropout); loss 0.07 to 0.42."""
    for scheme in ("channel", "spatial"):
        soft = [masked(trained, scheme, fraction) for fraction in (0.3, 0.5)]
        hard = [masked(trained, scheme, fraction, soft=False) for fraction in (0.3, 0.5)]
        assert entropy(soft[0], 0) < entropy(soft[0]) < entropy(soft[1]), scheme
        for one, other in zip(soft, hard, strict=True):
            assert loss(one, 0) < loss(one) < loss(other), scheme
    dropout = masked(trained, "dropout", 0.5)
    assert loss(dropout) > loss(dropout, 0)
    rise = {scheme: entropy(masked(trained, scheme, 0.5)) for scheme in ("channel", "spatial", "dropout")}
    assert rise["dropout"] == min(rise.values()), "dropout raises the entropy least"
    assert rise["dropout"] > entropy(dropout, 0)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [True, False])
def test_19_over_or_under_segmentation_depends_on_the_batch_norm_mode(trained: Trained, soft: bool) -> None:
    """The specification measured 1.07 with batch and 0.51 with running statistics (hard: 1.15, 0.24).

    Here 1.10 and 0.56 on one processor, up to 0.85 on another: which side of 1 is the property, the size is luck.
    """
    found = {}
    for mode in ("train", "eval"):
        one = masked(trained, "channel", 0.5, soft=soft, mode=mode)
        assert one.bn_mode == mode
        table = one.table()
        counts = table[table["class_name"] == "foreground"][["masked_voxels", "reference_voxels"]].sum()
        found[mode] = float(counts["masked_voxels"] / counts["reference_voxels"])
    assert found["train"] > 1.0
    assert found["eval"] < 0.9
