"""`mask_latent`: mask part of a latent code, decode, and see what the network depended on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, DataError, LayerError
from toolkit.explain.bypass import Bypass, Place, gradients
from toolkit.explain.frozen import check_logits, label_at
from toolkit.explain.mask_result import MaskedLatent
from toolkit.features.inputs import InputBatch, as_batches
from toolkit.features.layout import channel_axis
from toolkit.features.masks import dropout_mask, targeted_mask
from toolkit.features.memory import Limit, affordable_batch
from toolkit.features.modules import unwrap
from toolkit.features.names import resolve
from toolkit.features.outputs import in_own_precision, main_output
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.untouched import untouched

_SCHEMES = ("channel", "spatial", "dropout")
_SKIPS = ("keep", "mask", "zero")


@dataclasses.dataclass(frozen=True)
class _Settings:
    scheme: str
    fraction: float
    soft: bool
    seed: int
    skips: str
    score: str
    temperature: float
    by_hand: Tensor | None = dataclasses.field(default=None, repr=False)


def mask_latent(
    net: nn.Module,
    image: Any,
    scheme: str = "channel",
    fraction: float | tuple[float, float] = 0.3,
    soft: bool = True,
    seed: int = 0,
    skips: str = "keep",
    layer: str = "bottleneck",
    *,
    label: Any = None,
    mode: str = "eval",
    score: str = "signed",
    temperature: float | None = None,
    taps: Mapping[str, str] | None = None,
    mask: Tensor | None = None,
) -> MaskedLatent:
    """Mask part of a latent code and decode it; the network is left untouched.

    Works on any network at any named layer, and on a network with `encode`, `decode_segmentation` and perhaps
    `decouple` and `decode_image` (fast/slow network), whose image code and shape code are masked independently.
    Targeted masks attack the entries with the largest mean gradient of the cross-entropy with the label (the image
    code: of the squared error with the image). Source: Chen et al. 2021, latent-space data augmentation.

    In a network with skip connections the code is not the only way to the output, so masking it may change little:
    `skips` says what happens to everything that goes around the layer.

    The same call gives the same bits. Other images in the batch, or another number of threads, round an image's own
    gradient and output differently (about 1e-6 in float32), and two scores that are equal to that precision may then
    change places at the mask's cut. With `mode="train"` the other images matter for good: they set the statistics.

    Args:
        net: any network.
        image: one image or several of one size: a case, array, path or dict; see `features.inputs.as_batches`.
        scheme: "channel" or "spatial" (targeted), or "dropout" (random channels, survivors scaled by 1/(1 - fraction)).
        fraction: share of the entries to mask, 0 to 1; (low, high) draws it uniformly, once for all images.
        soft: masked entries keep a random share in [0, 0.5) instead of 0 (not for dropout).
        seed: of all draws, which are keyed by it.
        skips: "keep", "mask" (each with a mask of its own, same scheme and fraction) or "zero".
        layer: layer name or alias; not used for a network with `decode_segmentation`.
        label: label map(s) for bare arrays or paths; without any label the clean prediction takes its place.
        mode: "eval" (running batch statistics) or "train" (those of these images).
        score: ranking of the targeted masks: "signed" (the method's), "negated", "absolute" or "product".
        temperature: of the probabilities in the entropy; None = a fast/slow network's own
            (the paper's is 2), and 1 for others.
        taps: overrides of aliases.
        mask: a multiplier of one's own that broadcasts to the code, for example (1, C, 1, 1) for channels; `scheme` and
            `fraction` then only apply to what goes around the layer (`skips="mask"`). Both codes of a fast/slow network
            get it.

    Raises:
        ConfigError: unknown scheme, skips or score, a fraction outside 0 to 1, a temperature that is not positive, or a
            mask that does not fit the code.
        LayerError: a layer that does not exist, never runs, or that the output does not depend on; or several layers.
        DataError: no image, or images of several sizes.
    """
    network = unwrap(net)
    structured = callable(getattr(network, "encode", None)) and callable(getattr(network, "decode_segmentation", None))
    settings = _Settings(
        scheme,
        _drawn_fraction(fraction, seed),
        soft,
        seed,
        "none" if structured else skips,
        score,
        temperature if temperature is not None else getattr(network, "temperature", 2.0) if structured else 1.0,
        mask,
    )
    _check(settings, skips)
    batch = _one_batch(image, net, label)
    at = "codes" if structured else _one_layer(net, layer, batch, taps)
    with untouched(net, mode), torch.inference_mode(False), torch.enable_grad():
        x = batch.image.detach().clone()
        reached = _structured(network, x, batch, settings) if structured else _cut(network, x, batch, settings, at)
    return _result(net, batch, settings, at, mode, reached)


def _one_layer(net: nn.Module, layer: str, batch: InputBatch, taps: Mapping[str, str] | None) -> str:
    names = resolve(net, layer, batch.image, taps)
    if len(names) != 1:
        raise LayerError(f"{layer!r} matches {len(names)} layers.", fix=f"Name one: {', '.join(names[:8])}.")
    return names[0]


@dataclasses.dataclass
class _Outputs:
    clean: Tensor
    masked: Tensor
    mask: Tensor
    image: tuple[Tensor, Tensor] | None = None
    image_mask: Tensor | None = None


def _cut(network: nn.Module, x: Tensor, batch: InputBatch, settings: _Settings, layer: str) -> _Outputs:
    """Mask one layer of any network, and what goes around it as asked."""
    bypass = Bypass(network, layer)
    logits = bypass.record(x.requires_grad_().clone())
    check_logits(logits, batch)
    size = tuple(x.shape[2:])
    at_code, at_rest = gradients(_segmentation_loss(logits, batch.label), bypass)
    code = bypass.code
    assert code is not None
    mask = _code_mask(code.detach(), at_code, settings, size, layer)

    def change(place: Place, tensor: Tensor) -> Tensor:
        if settings.skips == "zero":
            return torch.zeros_like(tensor)
        if settings.skips == "mask" and place in at_rest and tensor.ndim > 2:
            return tensor.detach() * _mask(tensor.detach(), at_rest[place], settings, size, str(place))
        return tensor.detach()

    with torch.no_grad():
        masked = bypass.replay(x.detach(), code.detach() * mask, change)
    return _Outputs(logits.detach(), masked, mask)


def _structured(network: Any, x: Tensor, batch: InputBatch, settings: _Settings) -> _Outputs:
    """Mask the image code and the shape code of a fast/slow network, independently of each other."""
    size, x = tuple(x.shape[2:]), in_own_precision(network, x)
    with torch.no_grad():
        image_code = network.encode(x)
        shape_code = network.decouple(image_code) if callable(getattr(network, "decouple", None)) else image_code
    code = shape_code.detach().clone().requires_grad_()
    logits = main_output(network.decode_segmentation(code.clone()))
    check_logits(logits, batch)
    (gradient,) = torch.autograd.grad(_segmentation_loss(logits, batch.label), code)
    mask = _code_mask(code.detach(), gradient, settings, size, "shape code")
    with torch.no_grad():
        masked = main_output(network.decode_segmentation(code.detach() * mask))
    outputs = _Outputs(logits.detach(), masked, mask)
    if callable(getattr(network, "decode_image", None)):
        code = image_code.detach().clone().requires_grad_()
        decoded = network.decode_image(code.clone())
        (gradient,) = torch.autograd.grad(F.mse_loss(decoded, x), code)
        outputs.image_mask = _code_mask(code.detach(), gradient, settings, size, "image code")
        with torch.no_grad():
            outputs.image = decoded.detach(), network.decode_image(code.detach() * outputs.image_mask)
    return outputs


def _code_mask(code: Tensor, gradient: Tensor, settings: _Settings, size: tuple[int, ...], name: str) -> Tensor:
    """The mask given by hand if there is one, else that of the scheme.

    Raises:
        ConfigError: the mask given does not broadcast to the code.
    """
    if settings.by_hand is None:
        return _mask(code, gradient, settings, size, name)
    mask = settings.by_hand.detach().to(code)
    fits = mask.ndim == code.ndim and all(m in (1, c) for m, c in zip(mask.shape, code.shape, strict=True))
    if not fits:
        raise ConfigError(
            f"A mask of shape {tuple(mask.shape)} does not fit the code {tuple(code.shape)}.",
            where="mask_latent(mask=...)",
            fix="Every axis of the mask has the code's size, or 1.",
        )
    if not bool(torch.isfinite(mask).all()):
        raise ConfigError("The mask holds NaN or infinite values.", where="mask_latent(mask=...)")
    return mask


def _mask(code: Tensor, gradient: Tensor, settings: _Settings, size: tuple[int, ...], name: str) -> Tensor:
    """Multiplier of a code in its own layout; draws are keyed by the seed and the code's name."""
    axis = channel_axis(code, size)
    first, slope = code.movedim(axis, 1), gradient.movedim(axis, 1)
    random = keyed_random("mask_latent", settings.seed, name)
    if settings.scheme == "dropout":
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        return dropout_mask(first, settings.fraction, generator).movedim(1, axis)
    entries = first.shape[1] if settings.scheme == "channel" else first.shape[2:].numel()
    uniform = torch.from_numpy(random.random((len(first), entries))).to(first)
    annealing = 0.5 * uniform if settings.soft else None
    mask = targeted_mask(slope, settings.scheme, settings.fraction, annealing, score=settings.score, code=first)
    return mask.movedim(1, axis)


def _segmentation_loss(logits: Tensor, label: Tensor | None) -> Tensor:
    """Cross-entropy with the label at the logits' size, or with the network's own prediction."""
    return _cross_entropy(logits, label, "mean")


def _losses(logits: Tensor, label: Tensor | None, clean: Tensor) -> Tensor:
    """(B,) mean cross-entropy of each image, with the label or with the clean prediction."""
    if label is None:
        label = (clean > 0).long() if clean.shape[1] == 1 else clean.max(1, keepdim=True).indices
    each = _cross_entropy(logits, label, "none").flatten(1)  # 0 where padded
    if label.shape[2:] != logits.shape[2:]:
        return each.mean(1)
    return each.sum(1) / (label.flatten(1) >= 0).sum(1).clamp_min(1)


def _cross_entropy(logits: Tensor, label: Tensor | None, reduction: str) -> Tensor:
    if label is None:
        wanted = (logits > 0).long() if logits.shape[1] == 1 else logits.max(1, keepdim=True).indices
    elif label.shape[2:] != logits.shape[2:]:
        wanted = F.interpolate(label.float(), size=logits.shape[2:], mode="nearest-exact").long()
    else:
        wanted = label
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    if int(wanted.max()) >= logits.shape[1]:
        raise DataError(
            f"The label holds class {int(wanted.max())}, the network gives {logits.shape[1]} classes.",
            fix="Use the label of the task that the network was trained on, or no label.",
        )
    wanted = wanted[:, 0].clamp_min(-1)  # -1 is padding, and other negative values mark voxels to ignore
    return F.cross_entropy(logits.float(), wanted, ignore_index=-1, reduction=reduction)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    return (logits.float() / temperature).softmax(1)


def entropy_map(probabilities: Tensor) -> Tensor:
    """Entropy in bits (B, *S) of class probabilities (B, K, *S): -sum q log2(q + 1e-7), as Chen et al. drew it."""
    return -(probabilities * torch.log2(probabilities + 1e-7)).sum(1)


def _result(
    net: nn.Module, batch: InputBatch, settings: _Settings, layer: str, mode: str, outputs: _Outputs
) -> MaskedLatent:
    data = DataHash()
    data.update(batch.ids, batch.image, batch.label)

    def shown(tensor: Tensor) -> Tensor:
        return _without_padding(tensor.detach().cpu(), batch)

    pair = (outputs.clean, outputs.masked)
    segmentation = tuple(shown(_probabilities(logits, 1.0).max(1).indices) for logits in pair)
    entropy = tuple(shown(entropy_map(_probabilities(logits, settings.temperature))) for logits in pair)
    image, label = outputs.image, label_at(batch.label, outputs.clean)
    by_hand = settings.by_hand
    record = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "by_hand"}
    return MaskedLatent(
        input=shown(batch.image),
        image=None if image is None else (shown(image[0]), shown(image[1])),
        segmentation=(segmentation[0], segmentation[1]),
        entropy=(entropy[0], entropy[1]),
        mask=outputs.mask.cpu(),
        image_mask=None if outputs.image_mask is None else outputs.image_mask.cpu(),
        label=None if label is None else shown(label),
        cases=batch.ids,
        classes=dict(batch.classes or {}),
        scheme=settings.scheme if by_hand is None else "by hand",
        fraction=settings.fraction if by_hand is None else float((by_hand < 1).float().mean()),
        soft=settings.soft,
        skips=settings.skips,
        layer=layer,
        bn_mode=mode,
        temperature=settings.temperature,
        against="prediction" if batch.label is None else "reference",
        loss=(
            _losses(outputs.clean, batch.label, outputs.clean).cpu(),
            _losses(outputs.masked, batch.label, outputs.clean).cpu(),
        ),
        provenance=provenance(
            net, data.hexdigest(), layer=layer, mode=mode, **record, **({} if by_hand is None else {"by_hand": True})
        ),
    )


def _without_padding(tensor: Tensor, batch: InputBatch) -> Tensor:
    """Cut maps of the padded image's size back to the image; maps of another size stay as they are."""
    spatial = batch.image.shape[2:]
    if tensor.shape[-len(spatial) :] != spatial:
        return tensor
    place: Any = (..., *(slice(side) for side in batch.sizes[0]))
    return tensor[place]


def _one_batch(image: Any, net: nn.Module, label: Any) -> InputBatch:
    batches = list(as_batches(image, net, batch_size=10**6, label=label))
    if len(batches) != 1:
        what = "There is no image to mask." if not batches else "The images have several sizes."
        raise DataError(what, where="mask_latent(image=...)", fix="Pass one image, or several of one size.")
    image = batches[0].image
    affordable_batch(net, image[:1], len(image), Limit("mask_latent", 2.0, fixed=True))
    return batches[0]


def _drawn_fraction(fraction: float | tuple[float, float], seed: int) -> float:
    if isinstance(fraction, Real):
        return float(fraction)
    if not isinstance(fraction, (tuple, list)) or len(fraction) != 2:
        raise ConfigError(
            f"fraction={fraction!r} is neither a number nor a range.",
            where="mask_latent",
            fix="Write 0.3 or (0.1, 0.5).",
        )
    low, high = fraction
    return float(low + (high - low) * keyed_random("mask_latent fraction", seed).random())


def _check(settings: _Settings, skips: str) -> None:
    if settings.scheme not in _SCHEMES:
        raise ConfigError(
            f"Unknown scheme {settings.scheme!r}.", where="mask_latent", fix=f"Use {', '.join(_SCHEMES)}."
        )
    if skips not in _SKIPS:
        raise ConfigError(f"Unknown skips {skips!r}.", where="mask_latent", fix=f"Use {', '.join(_SKIPS)}.")
    if not settings.temperature > 0:
        raise ConfigError(f"temperature must be above 0, not {settings.temperature}.", where="mask_latent")
    if not 0 <= settings.fraction <= 1 or (settings.scheme == "dropout" and settings.fraction == 1):
        raise ConfigError(
            f"fraction must be between 0 and 1 (dropout: below 1), not {settings.fraction}.", where="mask_latent"
        )
