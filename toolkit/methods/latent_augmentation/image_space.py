"""Augmentations of the image itself, the baselines of latent-space augmentation: windows, random convolution, noise, bias.

Every function takes images (B, C, *S), 2D or 3D, and draws from the generator it is given; the results are constants.
Sources: multi-window masking and the comparison of all four, Chen et al., MICCAI 2021, and the authors' follow-up code;
adversarial noise, Miyato et al., arXiv 1704.03976; adversarial bias fields, Chen et al., MICCAI 2020, arXiv 2006.13322.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import ConfigError, choose
from toolkit.features.logits import interpolated
from toolkit.features.untouched import untouched
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.training.protocol import keyed_generator

KERNELS = (1, 3, 5, 7)


def _per_image(values: Tensor, image: Tensor) -> Tensor:
    """(B,) numbers as (B, 1, 1, ...)."""
    return values.reshape(-1, *[1] * (image.ndim - 1))


def unit_range(image: Tensor) -> Tensor:
    """Every image mapped linearly to [0, 1] by its own extremes; a constant image becomes 0."""
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    return (image - _per_image(low, image)) / _per_image((high - low).clamp_min(torch.finfo(image.dtype).tiny), image)


def window_mask(images: int, sides: Sequence[int], generator: torch.Generator) -> Tensor:
    """(images, 1, *sides) bool, True inside up to five random windows an image.

    Before each window an image stops with probability 0.05; window sides are uniform integers from a sixth to a third
    of the image's sides, positions uniform with a margin of 3.
    """
    mask = torch.zeros(images, 1, *sides, dtype=torch.bool)

    def uniform(low: int, high: int) -> int:
        return int(torch.randint(low, max(low, high) + 1, (), generator=generator))

    for index in range(images):
        for _ in range(5):
            if torch.rand((), generator=generator) < 0.05:
                break
            place: list[slice] = []
            for side in sides:
                length = uniform(max(1, side // 6), side // 3)
                margin = min(3, (side - length) // 2)
                start = uniform(margin, side - length - margin)
                place.append(slice(start, start + length))
            mask[index, 0][tuple(place)] = True
    return mask


def random_windows(image: Tensor, generator: torch.Generator, *, keep: bool | None = None) -> Tensor:
    """Random multi-window masking of (B, C, *S): uniform noise inside the windows, or everywhere but there.

    The published noise is U(0, 1); here it spans each image's own range, which is the same for images in [0, 1].
    `keep` True keeps the windows and replaces the rest ("out-painting"), False replaces the windows ("in-painting");
    None draws one of the two for the batch (how the paper mixed them is not documented).
    """
    outside = bool(torch.randint(2, (), generator=generator)) if keep is None else keep
    windows = window_mask(image.shape[0], image.shape[2:], generator).to(image.device, non_blocking=True)
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    noise = torch.rand(image.shape, generator=generator).to(image, non_blocking=True)
    noise = _per_image(low, image) + noise * _per_image(high - low, image)
    return torch.where(~windows if outside else windows, noise, image).detach()


def convolved(image: Tensor, kernel: Tensor, alpha: float | Tensor) -> Tensor:
    """The image mixed with a filtered copy: alpha * image + (1 - alpha) * (image cross-correlated with a kernel (C, C, k, k, ...), zero padding)."""
    sides = image.ndim - 2
    filtered = getattr(functional, f"conv{sides}d")(image, kernel.to(image), padding=(kernel.shape[-1] - 1) // 2)
    return alpha * image + (1 - alpha) * filtered


def random_convolution(image: Tensor, generator: torch.Generator) -> Tensor:
    """One random linear filter for the batch, mixed with the image, then every image to [0, 1].

    Kernel side uniform from 1, 3, 5, 7; weights normal with variance 1 / (C k^2) (k^3 in 3D); mixing share U(0, 1).
    """
    size = KERNELS[int(torch.randint(len(KERNELS), (), generator=generator))]
    channels, sides = image.shape[1], image.ndim - 2
    kernel = torch.randn(channels, channels, *[size] * sides, generator=generator) / math.sqrt(channels * size**sides)
    alpha = float(torch.rand((), generator=generator))
    return unit_range(convolved(image, kernel.to(image, non_blocking=True), alpha)).detach()


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax reference || softmax logits), mean over pixels and images."""
    target = _full(reference).log_softmax(1)
    return (target.exp() * (target - _full(logits).log_softmax(1))).sum(1).mean()


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _unit(direction: Tensor) -> Tensor:
    """Every sample divided by its L2 norm (a zero stays zero)."""
    norm = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction / _per_image(norm, direction)


def adversarial_noise(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    generator: torch.Generator,
    *,
    reference: Tensor | None = None,
    size: float = 0.1,
    probe: float = 1e-6,
) -> Tensor:
    """One power iteration towards the noise that changes the prediction most, added and clipped to the batch's range.

    `size`, its length, scales a direction of unit norm over the whole image (B, C, *S), so the change of one pixel is
    tiny (about size / H); `probe` is the length of the probing step. `reference`: logits that the prediction is
    compared with; default `predict(image)`. With that default and float32 images, choose `probe` near 1: below
    rounding the probed image is the image, and the search is blind.
    """
    image = image.detach()
    reference = _constant(predict, image) if reference is None else reference.detach()
    start = _unit(torch.randn(image.shape, generator=generator).to(image, non_blocking=True))
    with torch.enable_grad():
        moved = start.requires_grad_()
        (direction,) = torch.autograd.grad(_divergence(reference, predict(image + probe * moved)), moved)
    return (image + size * _unit(direction)).clamp(image.min(), image.max()).detach()


def bias_field(control_points: Tensor, sides: Sequence[int], *, size: float = 0.4) -> Tensor:
    """Smooth factors (B, 1, *sides): exp of a cubic B-spline through log-space control points (B, 1, *grid).

    The grid is `control_grid(sides)`, its knots lie half an image apart; the spline is made at half resolution,
    interpolated linearly to `sides`, exponentiated, and clipped to [1 - size, 1 + size]. As published, one point more
    than the image needs stands at either end, one less than a cubic spline reaches: towards the border the field fades
    to 1.
    """
    field, half = control_points, [side // 2 for side in sides]
    strides = [_knot_distance(side) for side in sides]
    for axis, (stride, count) in enumerate(zip(strides, half, strict=True), start=2):
        kernel = _spline_kernel(stride).to(field, non_blocking=True)
        lines = field.movedim(axis, -1)
        shape = lines.shape
        spread = functional.conv_transpose1d(
            lines.reshape(-1, 1, shape[-1]), kernel.reshape(1, 1, -1), stride=stride, padding=(len(kernel) - 1) // 2
        )
        excess = count - (stride * -(-count // stride) - (stride - 1))  # pixels beyond the inner knots
        first = stride - (excess // 2 + excess % 2)
        spread = spread[..., first : first + count]
        field = spread.reshape(*shape[:-1], count).movedim(-1, axis)
    return interpolated(field, sides).exp().clamp(1 - size, 1 + size)


def control_grid(sides: Sequence[int]) -> tuple[int, ...]:
    """Number of control points along each axis for an image of these sides."""
    return tuple(-(-(side // 2) // _knot_distance(side)) + 2 for side in sides)


def _knot_distance(side: int) -> int:
    return max(1, side // 4)


def _spline_kernel(stride: int) -> Tensor:
    """Cubic B-spline sampled at 1 / stride: a box of `stride` ones, three times smoothed by the same box."""
    kernel = box = torch.ones(1, 1, stride, dtype=torch.float64)
    for _ in range(3):
        kernel = functional.conv1d(kernel, box, padding=stride - 1) / stride
    return kernel.flatten()


def ascended(control_points: Tensor, gradient: Tensor, *, step: float = 1.0, size: float = 0.4) -> Tensor:
    """Control points after one step along the unit gradient of every sample, clipped to [log(1 - size), log(1 + size)]."""
    return (control_points + step * _unit(gradient)).clamp(math.log(1 - size), math.log(1 + size))


def contour_distance(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean over foreground classes of the mean squared difference of the two maps' Sobel responses, averaged over axes."""
    maps = [_full(value).softmax(1)[:, 1:] for value in (logits, reference)]
    edges = [_sobel(value) for value in maps]
    return torch.stack([functional.mse_loss(a, b) for a, b in zip(*edges, strict=True)]).mean()


def _sobel(maps: Tensor) -> list[Tensor]:
    """Derivative [-1, 0, 1] along each axis, smoothed by [1, 2, 1] along the others; zero padding."""
    sides, channels = maps.ndim - 2, maps.shape[1]
    slope, smooth = (torch.tensor(line).to(maps, non_blocking=True) for line in ([-1.0, 0.0, 1.0], [1.0, 2.0, 1.0]))
    responses = []
    for axis in range(sides):
        kernel = maps.new_ones([1] * sides)
        for other in range(sides):
            line = slope if other == axis else smooth
            kernel = kernel * line.reshape([-1 if k == other else 1 for k in range(sides)])
        kernel = kernel.expand(channels, 1, *kernel.shape)
        responses.append(getattr(functional, f"conv{sides}d")(maps, kernel, padding=1, groups=channels))
    return responses


def prediction_distance(logits: Tensor, reference: Tensor, contour: float = 0.0) -> Tensor:
    """KL(reference || logits), mean over pixels, plus `contour` times `contour_distance`."""
    distance = _divergence(reference, logits)
    return distance + contour * contour_distance(logits, reference) if contour else distance


def adversarial_bias(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    generator: torch.Generator,
    *,
    reference: Tensor | None = None,
    size: float = 0.4,
    contour: float = 0.5,
) -> Tensor:
    """The image (B, C, *S), without negative values, under a smooth bias field that an ascent step made harder.

    The field stays in [1 - size, 1 + size]; `contour` weighs the contours in the distance that is ascended, to
    `reference` (default `predict(image)`).
    """
    image, sides = image.detach(), image.shape[2:]
    reference = _constant(predict, image) if reference is None else reference.detach()
    low, high = math.log(1 - size), math.log(1 + size)
    start = torch.rand(image.shape[0], 1, *control_grid(sides), generator=generator).to(image, non_blocking=True)
    with torch.enable_grad():
        points = (low + (high - low) * start).requires_grad_()
        logits = predict(image * bias_field(points, sides, size=size))
        (gradient,) = torch.autograd.grad(prediction_distance(logits, reference, contour), points)
    return (image * bias_field(ascended(points.detach(), gradient, size=size), sides, size=size)).detach()


def _constant(predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    with torch.no_grad():
        return predict(image).detach()


def checked_size(size: float, name: str, limit: float = math.inf) -> None:
    """A positive size below `limit`."""
    if not 0 < size < limit:
        raise ConfigError(f"size must lie between 0 and {limit}, not {size}.", where=name)


RANDOM = {"random_windows": random_windows, "random_convolution": random_convolution}
ADVERSARIAL = ("adversarial_noise", "adversarial_bias")


def augment_image(
    image: Tensor, method: str, model: nn.Module | None = None, *, seed: int = 0, **passes: Unpack[Passes]
) -> Tensor:
    """The image (B, C, *S) under one of the image-space baselines; the same seed gives the same result.

    Args:
        image: 2D or 3D batch, in [0, 1] (random convolution returns that range, bias fields need no negative values).
        method: "random_windows", "random_convolution", or, searched against a network, "adversarial_noise" or
            "adversarial_bias".
        model: network of any size of image; needed by the adversarial methods, which search against its prediction in
            evaluation mode and leave it as it was. The probe of adversarial noise is 1 here (1e-6 in training), because
            the prediction it is compared with is that of the very same mode.
        seed: of the draws.
        **passes: select, patch_size, overlap, divisor, precision of that prediction, see `toolkit.predict`; activation
            plays no part.

    Raises:
        ConfigError: no such method, an image without batch and channel axes, or no model where one is needed.

    Example:
        >>> tk.augment_image(torch.rand(2, 1, 32, 32), "adversarial_noise", model, seed=1).shape
        torch.Size([2, 1, 32, 32])
    """
    choose("image-space augmentation", method, (*RANDOM, *ADVERSARIAL), where="augment_image")
    if image.ndim not in (4, 5):
        what = f"Expected (B, C, H, W) or (B, C, D, H, W), not {tuple(image.shape)}."
        raise ConfigError(what, where="augment_image", fix="Add the batch and channel axes.")
    generator = keyed_generator(seed, "augment_image", method)
    if method in RANDOM:
        return RANDOM[method](image.float(), generator)
    if model is None:
        raise ConfigError(f"{method!r} is searched against a network.", where="augment_image", fix="Pass model=...")
    predictor = Predictor(model, **passes)
    with untouched(model, mode="eval"), torch.autocast(image.device.type, enabled=False):
        logits = functools.partial(predictor.logits, frame=predictor.frame(image))
        if method == "adversarial_noise":
            return adversarial_noise(logits, image.float(), generator, probe=1.0)
        return adversarial_bias(logits, image.float(), generator)
