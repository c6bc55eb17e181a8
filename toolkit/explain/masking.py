"""`mask_latent`: mask part of a latent code, decode, and see what the network depended on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, DataError, choose
from toolkit.explain.bypass import Bypass, Place, gradients
from toolkit.explain.mask_result import MaskedLatent
from toolkit.features.layout import channel_axis
from toolkit.features.masks import dropout_mask, targeted_mask
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import InputBatch
from toolkit.inference.layers import one_layer
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor, one_batch
from toolkit.inference.windows import Frame

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
    model: nn.Module,
    image: Any,
    scheme: str = "channel",
    fraction: float | tuple[float, float] = 0.3,
    *,
    soft: bool = True,
    seed: int = 0,
    skips: str = "keep",
    layer: str = "bottleneck",
    label: Any = None,
    mode: str = "eval",
    score: str = "signed",
    temperature: float | None = None,
    aliases: Mapping[str, str] | None = None,
    mask: Tensor | None = None,
    **passes: Unpack[Passes],
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
        model: any network.
        image: one image or several of one size: a case, array, path or dict; see `toolkit.extract`.
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
        aliases: overrides of aliases.
        mask: a multiplier of one's own that broadcasts to the code, for example (1, C, 1, 1) for channels; `scheme` and
            `fraction` then only apply to what goes around the layer (`skips="mask"`). Both codes of a fast/slow network
            get it.
        **passes: select, patch_size, overlap, divisor, precision and activation, see `toolkit.predict`. Every window's
            code is masked by itself, and the outputs are stitched; the masks stand one behind the other.

    Raises:
        ConfigError: unknown scheme, skips or score, a fraction outside 0 to 1, a temperature that is not positive, or a
            mask that does not fit the code.
        LayerError: a layer that does not exist, never runs, or that the output does not depend on; or several layers.
        DataError: no image, or images of several sizes.

    Example:
        >>> mask = tk.mask_latent(model, case, scheme="channel", fraction=0.5, skips="zero")
    """
    predictor = Predictor(model, **passes)
    network = predictor.model
    structured = callable(getattr(network, "encode", None)) and callable(getattr(network, "decode_segmentation", None))
    low, high = fraction if isinstance(fraction, Sequence) else (fraction, fraction)
    share = float(low + (high - low) * keyed_random("mask_latent fraction", seed).random())
    if temperature is None:
        temperature = getattr(network, "temperature", 2.0) if structured else 1.0
    around = "none" if structured else skips
    settings = _Settings(scheme, share, soft, seed, around, score, temperature, mask)
    choose("scheme", scheme, _SCHEMES, where="mask_latent(scheme=...)")
    choose("skips", skips, _SKIPS, where="mask_latent(skips=...)")
    if not 0 <= settings.fraction <= 1 or (scheme == "dropout" and settings.fraction == 1):
        what = f"fraction must be between 0 and 1 (dropout: below 1), not {settings.fraction}."
        raise ConfigError(what, where="mask_latent")
    batch = one_batch(image, predictor, label, "mask_latent")
    predictor.affordable("mask_latent", batch.image[:1], len(batch), held="masks", fixed=True)
    at = "codes" if structured else one_layer(predictor, layer, batch.image, aliases)
    frame = predictor.frame(batch.image)
    with untouched(model, mode), torch.inference_mode(False), torch.enable_grad():
        pieces = [
            _structured(predictor, piece, settings) if structured else _cut(predictor, piece, settings, at)
            for piece in _pieces(batch, frame)
        ]
    record = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "by_hand"}
    record |= {"layer": at, "mode": mode, **predictor.settings, **({} if mask is None else {"by_hand": True})}
    data = DataHash()
    data.update(batch.ids, batch.image, batch.label)
    made_by = provenance(model, data.hexdigest(), **record)
    return _result(predictor, batch, settings, _joined(pieces, frame), layer=at, bn_mode=mode, provenance=made_by)


@dataclasses.dataclass
class _Piece:
    """What the network sees in one pass."""

    image: Tensor  # (B, C, *S) of a size that it takes
    label: Tensor | None  # (B, 1, *S) or None; -1 = padding
    real: Tensor  # (B, 1, *S) bool, False where there is padding
    name: str  # "" or the number of the window, which keys the draws


def _pieces(batch: InputBatch, frame: Frame) -> Iterator[_Piece]:
    image = frame.pad(batch.image.detach().clone())
    label = None if batch.label is None else frame.pad(batch.label, -1)
    real = frame.pad(torch.ones_like(batch.image[:, :1]), 0.0) > 0
    if frame.tiling is None:
        yield _Piece(image, label, real, "")
        return
    for number, window in enumerate(frame.tiling.windows):
        yield _Piece(image[window].clone(), None if label is None else label[window], real[window], f"/{number}")


@dataclasses.dataclass
class _Outputs:
    clean: Tensor
    masked: Tensor
    mask: Tensor
    image: tuple[Tensor, Tensor] | None = None
    image_mask: Tensor | None = None


def _joined(pieces: Sequence[_Outputs], frame: Frame) -> _Outputs:
    """The pieces' outputs on the image's grid, stitched if they are windows; their masks one behind the other."""

    def grid(tensors: Sequence[Tensor]) -> Tensor:
        return frame.crop(tensors[0] if frame.tiling is None else frame.tiling.stitched(tensors))

    images = [piece.image for piece in pieces if piece.image is not None]
    masks = [piece.image_mask for piece in pieces if piece.image_mask is not None]
    return _Outputs(
        grid([piece.clean for piece in pieces]),
        grid([piece.masked for piece in pieces]),
        torch.cat([piece.mask for piece in pieces]),
        (grid([pair[0] for pair in images]), grid([pair[1] for pair in images])) if images else None,
        torch.cat(masks) if masks else None,
    )


def _cut(predictor: Predictor, piece: _Piece, settings: _Settings, layer: str) -> _Outputs:
    """Mask one layer of any network, and what goes around it as asked."""
    x, bypass = piece.image, Bypass(predictor, layer)
    logits = bypass.record(x.requires_grad_().clone())
    size = tuple(x.shape[2:])
    at_code, at_rest = gradients(mean_loss(*losses(predictor, logits, logits, piece.label, piece.real)), bypass)
    code = bypass.code
    assert code is not None
    mask = _code_mask(code.detach(), at_code, settings, size, layer + piece.name)

    def change(place: Place, tensor: Tensor) -> Tensor:
        if settings.skips == "zero":
            return torch.zeros_like(tensor)
        if settings.skips == "mask" and place in at_rest and tensor.ndim > 2:
            name = str(place) + piece.name
            return tensor.detach() * _mask(tensor.detach(), at_rest[place], settings, size, name)
        return tensor.detach()

    with torch.no_grad():
        masked = bypass.replay(x.detach(), code.detach() * mask, change)
    return _Outputs(logits.detach(), masked, mask)


def _structured(predictor: Predictor, piece: _Piece, settings: _Settings) -> _Outputs:
    """Mask the image code and the shape code of a fast/slow network, independently of each other."""
    network: Any = predictor.model
    size, x = tuple(piece.image.shape[2:]), piece.image.to(predictor.dtype)
    with torch.no_grad():
        image_code = network.encode(x)
        shape_code = network.decouple(image_code) if callable(getattr(network, "decouple", None)) else image_code
    code = shape_code.detach().clone().requires_grad_()
    logits = predictor.read(network.decode_segmentation(code.clone()), x)
    (gradient,) = torch.autograd.grad(mean_loss(*losses(predictor, logits, logits, piece.label, piece.real)), code)
    mask = _code_mask(code.detach(), gradient, settings, size, "shape code" + piece.name)
    with torch.no_grad():
        masked = predictor.read(network.decode_segmentation(code.detach() * mask), x)
    outputs = _Outputs(logits.detach(), masked, mask)
    if callable(getattr(network, "decode_image", None)):
        code = image_code.detach().clone().requires_grad_()
        decoded = network.decode_image(code.clone())
        (gradient,) = torch.autograd.grad(F.mse_loss(decoded, x), code)
        outputs.image_mask = _code_mask(code.detach(), gradient, settings, size, "image code" + piece.name)
        with torch.no_grad():
            outputs.image = decoded.detach(), network.decode_image(code.detach() * outputs.image_mask)
    return outputs


def _code_mask(code: Tensor, gradient: Tensor, settings: _Settings, size: tuple[int, ...], name: str) -> Tensor:
    """The mask given by hand if there is one, else that of the scheme."""
    if settings.by_hand is None:
        return _mask(code, gradient, settings, size, name)
    mask = settings.by_hand.detach().to(code)
    fits = mask.ndim == code.ndim and all(m in (1, c) for m, c in zip(mask.shape, code.shape, strict=True))
    if not fits:
        what = f"A mask of shape {tuple(mask.shape)} does not fit the code {tuple(code.shape)}."
        raise ConfigError(what, where="mask_latent(mask=...)", fix="Every axis of the mask has the code's size, or 1.")
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


def _result(
    predictor: Predictor, batch: InputBatch, settings: _Settings, outputs: _Outputs, **known: Any
) -> MaskedLatent:
    clean, masked = outputs.clean, outputs.masked
    by_hand, image, label = settings.by_hand, outputs.image, batch.label
    segmentation = [predictor.activation.labels(logits, batch.classes).long().cpu() for logits in (clean, masked)]
    entropy = [entropy_of(predictor, logits, settings.temperature).cpu() for logits in (clean, masked)]
    loss = []
    for logits in (clean, masked):
        each, real = losses(predictor, logits, clean, label, torch.ones_like(clean[:, :1], dtype=torch.bool))
        loss.append((each.flatten(1).sum(1) / real.flatten(1).sum(1).clamp_min(1)).cpu())
    if label is not None and predictor.activation.overlapping(clean.shape[1]):
        label = predictor.activation.targets(label).long()
    return MaskedLatent(
        input=batch.image.detach().cpu(),
        image=None if image is None else (_full(image[0]), _full(image[1])),
        segmentation=(segmentation[0], segmentation[1]),
        entropy=(entropy[0], entropy[1]),
        mask=_full(outputs.mask),
        image_mask=None if outputs.image_mask is None else _full(outputs.image_mask),
        label=None if label is None else label.cpu(),
        cases=batch.ids,
        classes=predictor.class_names(batch.classes),
        scheme=settings.scheme if by_hand is None else "by hand",
        fraction=settings.fraction if by_hand is None else float((by_hand < 1).float().mean()),
        soft=settings.soft,
        skips=settings.skips,
        temperature=settings.temperature,
        against="prediction" if batch.label is None else "reference",
        loss=(loss[0], loss[1]),
        spacing=list(batch.spacing),
        **known,
    )


def _full(values: Tensor) -> Tensor:
    """On the CPU, half precisions in float32, which figures and arrays take."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).cpu()


def losses(
    predictor: Predictor, logits: Tensor, clean: Tensor, label: Tensor | None, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, *S) with the label, or with the clean prediction; and where it counts (B, *S) bool."""
    if label is not None:
        real = real & (label >= 0)  # negative labels mark voxels to ignore
    if predictor.activation.overlapping(logits.shape[1]):
        wanted = (clean.detach() > 0).float() if label is None else predictor.activation.targets(label)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        return torch.where(real[:, 0], each, torch.zeros_like(each)), real[:, 0]
    classes = predictor.activation.labels(clean.detach(), {0: "", 1: ""}).long() if label is None else label[:, 0]
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    if int(classes.max()) >= logits.shape[1]:
        what = f"The label holds class {int(classes.max())}, the network gives {logits.shape[1]} classes."
        raise DataError(what, fix="Use the label of the task that the network was trained on, or no label.")
    classes = torch.where(real[:, 0], classes, torch.full_like(classes, -1))
    return F.cross_entropy(logits, classes, ignore_index=-1, reduction="none"), real[:, 0]


def mean_loss(each: Tensor, real: Tensor) -> Tensor:
    """Mean over the voxels that count."""
    return each.sum() / real.sum().clamp_min(1)


def entropy_of(predictor: Predictor, logits: Tensor, temperature: float) -> Tensor:
    """(B, *S) bits; of overlapping regions the mean of the outputs' own."""
    logits = logits / temperature
    if predictor.activation.overlapping(logits.shape[1]):
        yes = logits.sigmoid().unsqueeze(2)
        return torch.stack([entropy_map(torch.cat((p, 1 - p), 1)) for p in yes.unbind(1)]).mean(0)
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    return entropy_map(logits.softmax(1))


def entropy_map(probabilities: Tensor) -> Tensor:
    """Entropy in bits (B, *S) of class probabilities (B, K, *S): -sum q log2(q + 1e-7), as Chen et al. drew it."""
    return -(probabilities * torch.log2(probabilities + 1e-7)).sum(1)
