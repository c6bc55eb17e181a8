"""The step protocol carries a recipe of two stages: two views of an image first, then the trained encoder reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.segmentation import SegmentationObjective, soft_dice_loss
from toolkit.training.step import TrainingStep


class TwoViews(Objective):
    """The image must give the foreground and its complement the background, from one network."""

    name: ClassVar[str] = "two_views"

    def forward_pass(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Any:
        image = batch["image"]
        return model(torch.cat((image, 1 - image))).chunk(2)

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        foreground = (batch["label"][:, 0] > 0).long()
        first, second = outputs
        return {"image": soft_dice_loss(first, foreground), "complement": soft_dice_loss(second, 1 - foreground)}

    def logits(self, outputs: Any) -> Tensor:
        return outputs[0] if isinstance(outputs, tuple) else outputs


def batch(step: int) -> dict[str, Tensor]:
    """Discs (class 1) with a core (class 2) on a dim background."""
    generator = torch.Generator().manual_seed(step)
    centre = 8 + 4 * torch.rand(4, 2, 1, 1, generator=generator) - 2
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    distance = ((y - centre[:, :1]) ** 2 + (x - centre[:, 1:]) ** 2).sqrt()
    label = (distance < 5).long() + (distance < 2.5).long()
    return {"image": 0.1 + 0.4 * label.float() + 0.05 * torch.randn(4, 1, 16, 16, generator=generator), "label": label}


def train(network: nn.Module, objective: Objective, regularizers: list[Regularizer], stage: int) -> list[float]:
    step = TrainingStep(network, objective, regularizers, seed=stage)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    totals = []
    for number in range(40):
        optimizer.zero_grad()
        total = 0.0
        for part in range(step.parts(number)):
            loss = step(batch(number), part=part, step=number, stage=stage).total
            assert loss is not None
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        totals.append(total)
    return totals


def transfer(source: nn.Module, target: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Copy the parameters and buffers whose names begin so; what was copied."""
    chosen = {n: v for n, v in source.state_dict().items() if n.startswith(prefixes)}
    result = target.load_state_dict(chosen, strict=False)
    assert not result.unexpected_keys
    return sorted(chosen)


def test_two_stages_with_two_views_and_a_weight_transfer() -> None:
    torch.manual_seed(0)
    first, second = unet(1, 2, channels=(4, 8, 8)), unet(1, 3, channels=(4, 8, 8))
    seen: dict[str, Tensor] = {}

    class Watched(SegReg):
        def __call__(self, context: Any) -> dict[str, Tensor]:
            seen.update(context.features)
            assert context.stage == 0
            return super().__call__(context)

    losses = train(first, TwoViews(), [Watched(weight=0.01, tap="bottleneck", samples=256, directions=16)], stage=0)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert seen["bottleneck"].shape[0] == 8, "the tap sees both views of the batch of four"

    fresh = {n: v.clone() for n, v in second.state_dict().items()}
    copied = transfer(first, second, ("encoder.", "bottleneck."))
    state, source = second.state_dict(), first.state_dict()
    assert all(torch.equal(state[n], source[n]) for n in copied)
    assert all(torch.equal(state[n], fresh[n]) for n in state if n not in copied)
    assert any(not torch.equal(state[n], fresh[n]) for n in copied)

    losses = train(second, SegmentationObjective(), [], stage=1)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_regularizers_of_both_kinds_share_one_step() -> None:
    """SegReg on the fast/slow network beside the deferred cooperative part."""
    from toolkit.methods.latent_augmentation.network import fast_slow_network
    from toolkit.methods.latent_augmentation.objective import FastSlowObjective

    torch.manual_seed(0)
    network = fast_slow_network(1, 3, width=2)
    regularizers = SegReg(samples=256, directions=8) + LatentAugmentation()
    step = TrainingStep(network, FastSlowObjective(clip=False), regularizers)
    assert step.parts(0) == 2
    parts = []
    for number in range(2):
        part = step(batch(0), part=number, logging=True)
        assert part.total is not None
        part.total.backward()
        parts.append(part)
    assert "segreg/epps_pulley" in parts[0].terms
    assert all(name.startswith("latent_augmentation/") for name in parts[1].terms)
    assert all(
        float(part.gradients[owner]) > 0 for part, owner in zip(parts, ("segreg", "latent_augmentation"), strict=True)
    )
