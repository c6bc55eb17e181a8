"""The two losses of SelfReg-UNet on single feature maps: semantic consistency and internal distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError, choose
from toolkit.training.protocol import fresh_generator
from toolkit.training.sampling import mean_of_all


def pool_to(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling of (B, C, *S) to `size`; the map itself if it has that size."""
    if tuple(feature.shape[2:]) == size:
        return feature
    return getattr(functional, f"adaptive_avg_pool{len(size)}d")(feature, size)


def _common_size(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    if student.ndim != teacher.ndim or student.ndim not in (3, 4, 5) or student.shape[0] != teacher.shape[0]:
        what = f"Student and teacher are one batch (B, C, *S), not {tuple(student.shape)} and {tuple(teacher.shape)}."
        raise ConfigError(what, fix="Reshape token sequences to channel-first maps first.")
    return tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))


def draw_channels(
    student: int, teacher: int, generator: torch.Generator | None = None, draw: str = "both"
) -> tuple[Tensor, Tensor]:
    """K = min(student, teacher) channel indices of each side, for so many channels.

    "both" draws each side without replacement and in random order (the authors' code); "student" keeps the teacher's
    order (the paper's figure) and draws on the teacher only if that has more channels. Without a (CPU) generator the
    draw is fresh; the global random state is never touched.
    """
    choose("draw", draw, ("both", "student"))
    generator = fresh_generator() if generator is None else generator
    count = min(student, teacher)
    if draw == "both":
        chosen = torch.randperm(student, generator=generator)[:count]
        return chosen, torch.randperm(teacher, generator=generator)[:count]
    larger = torch.randperm(max(student, teacher), generator=generator)[:count]
    in_order = torch.arange(count)
    return (larger, in_order) if student >= teacher else (in_order, larger)


def semantic_consistency(
    student: Tensor,
    teacher: Tensor,
    student_channels: Tensor | None = None,
    teacher_channels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared difference of drawn student channels to drawn channels of the detached teacher.

    The larger map is average-pooled to the smaller one, per axis. Computed in float32 (float64 stays).

    Args:
        student: (B, C, *S).
        teacher: (B, C', *S'); gets no gradient.
        student_channels: (K,) indices, K = min(C, C'); None draws them.
        teacher_channels: (K,) indices; None draws them.
        generator: of the draws.

    Raises:
        ConfigError: maps or channel lists that do not fit each other.

    Source: SelfReg-UNet, equation of L_SCR; channels drawn on both sides as in the authors' code.

    Example:
        >>> from toolkit.methods.selfreg import semantic_consistency
        >>> semantic_consistency(torch.ones(2, 4, 8, 8), torch.zeros(2, 6, 16, 16))
        tensor(1.)
    """
    size = _common_size(student, teacher)
    if student_channels is None or teacher_channels is None:
        drawn = draw_channels(student.shape[1], teacher.shape[1], generator)
        student_channels = drawn[0] if student_channels is None else student_channels
        teacher_channels = drawn[1] if teacher_channels is None else teacher_channels
    if student_channels.numel() != teacher_channels.numel():
        counts = f"{student_channels.numel()} student channels need as many teacher channels"
        raise ConfigError(f"{counts}, not {teacher_channels.numel()}.")
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        target = teacher.detach().to(dtype).index_select(1, teacher_channels.to(teacher.device, non_blocking=True))
        ours = pool_to(student.to(dtype), size).index_select(1, student_channels.to(student.device, non_blocking=True))
        return functional.mse_loss(ours, pool_to(target, size))


def expected_semantic_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Expectation of `semantic_consistency` over independent uniform draws on both sides, in closed form.

    The mean squared distance of every student channel to the teacher's channel mean, plus the teacher channels' own
    variance about it (a floor without gradient).
    """
    size = _common_size(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        target = pool_to(teacher.detach().to(dtype), size)
        centre = target.mean(dim=1, keepdim=True)
        ours = pool_to(student.to(dtype), size)
        return (ours - centre).square().mean() + (target - centre).square().mean()


def channel_score(features: Tensor) -> Tensor:
    """Score (C,) that orders the channels for internal distillation: mean of the L2-normalised maps; no graph."""
    with torch.no_grad():
        flat = features.flatten(2)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        share = flat.sum(dim=2) / flat.norm(dim=2).clamp_min(1e-12)
        return share.mean(dim=0) / flat.shape[2]


def internal_distillation(features: Tensor, order: str = "score", stop_gradient: str = "none") -> Tensor:
    """Mean squared difference between the first and the second half of a map's ordered channels.

    The k-th channel of the order is paired with the (k + C/2)-th; an odd C leaves out the middle channel, C = 1 gives
    0. The order is a constant for the gradient, which reaches both halves with opposite signs. Computed in float32
    (float64 stays). Differentiable once.

    Args:
        features: (B, C, *S).
        order: "score" (descending `channel_score`, under distributed training its mean over processes, ties by index; the
            authors' code) or "index" (the paper's text).
        stop_gradient: "none" or "top", which keeps the first half fixed.

    Raises:
        ConfigError: an unknown option.

    Source: SelfReg-UNet, equation of L_IFD; order and averaging as in the authors' code.

    Example:
        >>> from toolkit.methods.selfreg import internal_distillation
        >>> internal_distillation(torch.arange(4.0).reshape(1, 4, 1, 1), order="index")  # channels 0, 1 against 2, 3
        tensor(4.)
    """
    choose("order", order, ("score", "index"), where="internal_distillation")
    choose("stop_gradient", stop_gradient, ("none", "top"), where="internal_distillation")
    channels = features.shape[1]
    half = channels // 2
    with torch.autocast(features.device.type, enabled=False):
        values = features if features.dtype == torch.float64 else features.float()
        if half == 0:
            return values.sum() * 0.0
        if order == "score":
            ranking = mean_of_all(channel_score(values)).argsort(descending=True, stable=True)
        else:
            ranking = torch.arange(channels, device=values.device)
        halves = ranking[:half], ranking[channels - half :]
        distance: Tensor = _PairedDistance.apply(values, *halves, stop_gradient == "none")
    return distance


class _PairedDistance(torch.autograd.Function):
    """Mean of (x[:, top] - x[:, bottom])^2, keeping only the difference: half of what plain indexing keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: Tensor, bottom: Tensor, both: bool) -> Tensor:
        difference = x.index_select(1, top).sub_(x.index_select(1, bottom))
        ctx.save_for_backward(difference, top, bottom)
        ctx.channels, ctx.both = x.shape[1], both
        return difference.square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        difference, top, bottom = ctx.saved_tensors
        slope = difference * (2 * upstream / difference.numel())
        shape = (difference.shape[0], ctx.channels, *difference.shape[2:])
        complete = ctx.both and 2 * len(top) == ctx.channels
        gradient = slope.new_empty(shape) if complete else slope.new_zeros(shape)
        gradient.index_copy_(1, bottom, slope.neg())
        if ctx.both:
            gradient.index_copy_(1, top, slope)
        return gradient, None, None, None
