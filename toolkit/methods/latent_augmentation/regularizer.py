"""Latent-space augmentation: hard examples decoded from masked codes, and the loss on them (cooperative training).

Source: Chen et al., MICCAI 2021 (see README.md); defaults follow the later state of the authors' release.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.errors import ConfigError
from toolkit.features.masks import dropout_mask, targeted_mask
from toolkit.registry import register
from toolkit.training.protocol import Regularizer, StepContext

IMAGE_TERMS = ("hard_segmentation", "hard_reconstruction", "hard_shape_prediction")


@dataclasses.dataclass(frozen=True)
class HardExamples(Regularizer):
    """Base of the regularizers that make hard examples for the fast/slow network and pass them through it."""

    deferred: ClassVar[bool] = True
    tap: ClassVar[tuple[str, ...]] = ("image_code", "shape_code")  # of the standard pass
    requires: ClassVar[tuple[str, ...]] = ("encode", "decouple", "decode_image", "decode_segmentation", "refine")

    weight: float = 1.0
    _last: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _codes: list[Tensor] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def gradient_probes(self, context: StepContext) -> Sequence[Tensor]:
        """The standard pass's codes for the objective, the hard pass's codes for its own loss."""
        standard = [code for code in context.features.values() if code.requires_grad]
        own = [*self._codes]
        self._codes.clear()  # their graph is not held for longer
        return standard or own

    def weights(self, step: int) -> dict[str, float]:
        """One weight for all terms."""
        return dict.fromkeys(IMAGE_TERMS, self.weight)

    def _hard_terms(
        self, context: StepContext, *hard: Tensor | None, **options: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of `hard_pass` and its logits; its codes are where the gradient is compared."""
        terms, codes, logits = hard_pass(context, *hard, **options)  # type: ignore[arg-type]
        self._codes[:] = codes
        return terms, logits


def hard_pass(
    context: StepContext,
    image_hat: Tensor,
    logits_hat: Tensor | None = None,
    *,
    freeze: bool = True,
    separate_training: bool = False,
    factor: float = 0.5,
) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Terms on a corrupted image (and on corrupted logits, which the slow network repairs), its two codes and logits.

    `freeze`: batch norm is neither updated nor trained here, except in the image decoder; `separate_training`: the
    slow network's loss does not reach the fast one; `factor`: of the squared reconstruction error. Source: Chen et al.
    2021, L_hard, as run by the later state of the authors' release.
    """
    network: Any = context.model
    image, label = context.batch["image"].float(), context.batch["label"][:, 0].long()
    with frozen_batch_norm(network) if freeze else contextlib.nullcontext():
        image_code = network.encode(image_hat)
        shape_code = network.decouple(image_code)
        logits = network.decode_segmentation(shape_code)
        repaired = None if logits_hat is None else network.refine(logits_hat)
        refined = network.refine(logits.detach() if separate_training else logits)
    # The image decoder alone is not frozen here: its statistics and affine parameters learn from hard images.
    reconstruction = network.decode_image(image_code)
    terms = {
        "hard_segmentation": functional.cross_entropy(logits.float(), label),
        "hard_reconstruction": factor * functional.mse_loss(reconstruction.float(), image),
        "hard_shape_prediction": functional.cross_entropy(refined.float(), label),
    }
    if repaired is not None:
        terms["hard_shape_corrupted"] = functional.cross_entropy(repaired.float(), label)
    return terms, [image_code, shape_code], logits


SCHEMES = ("dropout", "channel", "spatial")
PRESETS = ("final", "first", "literal")


@dataclasses.dataclass(frozen=True)
class Draw:
    """The random part of one masked code."""

    scheme: str  # "dropout", "channel" or "spatial", the same for the whole batch
    fraction: float  # share of the entries to mask (targeted), or the rate (dropout)
    # what masked entries are multiplied with: (B, entries) or one number; None for a hard mask
    factors: Tensor | float | None = None
    mask: Tensor | None = None  # the finished mask of the dropout scheme


@register("regularizer", "latent_augmentation")
@dataclasses.dataclass(frozen=True)
class LatentAugmentation(HardExamples):
    """L_hard on images and shapes decoded from masked codes of the same step; the codes are constants.

    Terms: `hard_segmentation`, `hard_reconstruction`, `hard_shape_prediction` on the image decoded from the masked
    image code, and `hard_shape_corrupted`: the slow network repairs the shape decoded from the masked shape code.
    Runs after the objective's graph has been freed, on any network with the methods it requires; use it with
    `FastSlowObjective`. Its gradient is compared with the objective's at the codes: the objective's at the standard
    pass's, its own at those of the hard pass. Diagnostics: each code's scheme, counted in `SCHEMES`, and the share of its
    mask that is below 1.

    Args:
        weight: of all four terms (1 in the method).
        image_schemes: drawn from uniformly for the image code; ("dropout", "channel", "spatial") in the method.
        shape_schemes: the same for the shape code; empty leaves `hard_shape_corrupted` out (the paper's ablation).
        max_fraction: P_max; the fraction is uniform below it, one draw a batch and code.
        random_fraction: False uses max_fraction itself.
        soft: masked entries keep a random share below 1/2 (True) or are zeroed.
        dropout_rate: rate of the dropout scheme.
        score: "signed" (the method), "negated", "absolute" or "product"; see `targeted_mask`.
        separate_training: the slow network's loss on the hard prediction does not reach the fast network.
        preset: "final"; "first" (no batch norm is frozen); "literal" (the paper's text: reconstruction factor 1,
            dropout rate uniform below max_fraction without rescaling, ties at the cut masked, one factor a mask).

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.LatentAugmentation())
    """

    name: ClassVar[str] = "latent_augmentation"

    image_schemes: Sequence[str] = SCHEMES
    shape_schemes: Sequence[str] = SCHEMES
    max_fraction: float = 0.5
    _: dataclasses.KW_ONLY
    random_fraction: bool = True
    soft: bool = True
    dropout_rate: float = 0.5
    score: str = "signed"
    separate_training: bool = False
    preset: str = "final"

    def __post_init__(self) -> None:
        unknown = (set(self.image_schemes) | set(self.shape_schemes)) - set(SCHEMES)
        if unknown or not self.image_schemes or self.preset not in PRESETS:
            what = f"Unknown schemes {sorted(unknown)}, no image scheme, or unknown preset {self.preset!r}."
            raise ConfigError(what, where="LatentAugmentation", fix=f"Schemes are {SCHEMES}, presets {PRESETS}.")
        if not 0 < self.max_fraction < 1 or not 0 <= self.dropout_rate < 1:
            raise ConfigError("LatentAugmentation needs 0 < max_fraction < 1 and 0 <= dropout_rate < 1.")

    def weights(self, step: int) -> dict[str, float]:
        terms = [*IMAGE_TERMS, "hard_shape_corrupted"] if self.shape_schemes else IMAGE_TERMS
        return dict.fromkeys(terms, self.weight)

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        self._last.clear()
        options = {"freeze": self.preset != "first", "factor": 1.0 if self.preset == "literal" else 0.5}
        hard = self.hard_examples(context)
        return self._hard_terms(context, *hard, separate_training=self.separate_training, **options)[0]

    def draw(self, which: str, code: Tensor, generator: torch.Generator) -> Draw:
        """The random part of masking one code ("image" or "shape"): scheme, then fraction, then factors."""
        schemes = tuple(self.image_schemes if which == "image" else self.shape_schemes)
        scheme = schemes[int(torch.randint(len(schemes), (), generator=generator))]
        literal = self.preset == "literal"
        fraction = self.max_fraction
        if self.random_fraction and (scheme != "dropout" or literal):
            fraction *= float(torch.rand((), generator=generator))
        if scheme == "dropout":
            rate = fraction if literal else self.dropout_rate
            mask = dropout_mask(code, rate, generator)
            return Draw(scheme, rate, mask=mask * (1 - rate) if literal else mask)
        if not self.soft:
            return Draw(scheme, fraction)
        if literal:
            return Draw(scheme, fraction, 0.5 * float(torch.rand((), generator=generator)))
        entries = code.shape[1] if scheme == "channel" else math.prod(code.shape[2:])
        return Draw(scheme, fraction, 0.5 * torch.rand(code.shape[0], entries, generator=generator))

    def mask(
        self,
        which: str,
        code: Tensor,
        decode: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """The mask of one code; a targeted one costs a normal pass of its decoder and the gradient at the code."""
        draw = self.draw(which, code, generator)
        if draw.mask is not None:
            mask = draw.mask.to(code)
        else:
            tracked = code.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss(decode(tracked)), tracked)
            options: dict[str, Any] = {"score": self.score, "code": code, "inclusive": self.preset == "literal"}
            mask = targeted_mask(gradient, draw.scheme, draw.fraction, draw.factors, **options)
        self._last[f"{which}_scheme"] = SCHEMES.index(draw.scheme)
        self._last[f"{which}_masked"] = (mask < 1).float().mean()
        return mask

    def hard_examples(self, context: StepContext) -> tuple[Tensor, Tensor | None]:
        """The corrupted image and the corrupted logits (None without shape schemes); constants."""
        network: Any = context.model
        image, label = context.batch["image"], context.batch["label"][:, 0].long()
        image_code, shape_code = (context.features[tap].detach() for tap in self.taps)
        # A power of two: exact, and keeps small gradients representable under half precision.
        scale = 2.0 ** math.floor(math.log2(image[0].numel()))

        def of_image(decoded: Tensor) -> Tensor:
            return scale * functional.mse_loss(decoded.float(), image.float())

        def of_shape(decoded: Tensor) -> Tensor:
            return scale * functional.cross_entropy(decoded.float(), label)

        mask = self.mask("image", image_code, network.decode_image, of_image, context.generator)
        with torch.no_grad(), self._frozen(network):
            image_hat = network.decode_image(image_code * mask).detach()
        if not self.shape_schemes:
            return image_hat, None
        mask = self.mask("shape", shape_code, network.decode_segmentation, of_shape, context.generator)
        with torch.no_grad(), self._frozen(network):
            return image_hat, network.decode_segmentation(shape_code * mask).detach()

    def _frozen(self, model: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.preset == "first" else frozen_batch_norm(model)


@contextlib.contextmanager
def frozen_batch_norm(modules: nn.Module | Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block every batch norm below `modules` is a fixed function of its batch.

    In training mode it normalises with the statistics of the batch (in evaluation mode with the running ones, as
    ever), leaves `running_mean`, `running_var` and `num_batches_tracked` alone, and gives no gradient to its weight
    and bias; the gradient to its input is the usual one, through the batch statistics. On leaving the block, also
    after an exception, the modules are as before. A synchronised batch norm uses its own device's statistics.

    Source: latent-space augmentation (Chen et al. 2021, later release): how hard examples are made and judged.
    """
    roots = [modules] if isinstance(modules, nn.Module) else list(modules)
    norms = {id(m): m for root in roots for m in root.modules() if isinstance(m, _BatchNorm)}
    before = {key: module.__dict__.get("forward") for key, module in norms.items()}
    try:
        for module in norms.values():
            module.__dict__["forward"] = functools.partial(_frozen_forward, module)
        yield
    finally:
        for key, module in norms.items():
            if before[key] is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before[key]


def _frozen_forward(module: _BatchNorm, x: Tensor) -> Tensor:
    module._check_input_dim(x)
    from_batch = module.training or module.running_mean is None
    return functional.batch_norm(
        x,
        None if from_batch else module.running_mean,
        None if from_batch else module.running_var,
        None if module.weight is None else module.weight.detach(),
        None if module.bias is None else module.bias.detach(),
        training=from_batch,
        eps=module.eps,
    )
