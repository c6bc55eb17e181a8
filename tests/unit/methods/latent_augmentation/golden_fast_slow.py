"""Reading the reference cases of the fast/slow network: arrays, and reference parameter names as ours."""

from __future__ import annotations

import re
from typing import Any

import torch
from golden_cases import golden_case
from torch import Tensor

_PAIR = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}


def read_case(case: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The arrays of a case, those of real numbers in `dtype` where it is given."""
    arrays = golden_case("latent_augmentation", case).tensors()
    return {n: a.to(dtype) if dtype and a.is_floating_point() else a for n, a in arrays.items()}


def entry(case: str) -> dict[str, Any]:
    return golden_case("latent_augmentation", case).entry


def our_name(name: str) -> str:
    """A reference name such as `image_encoder/general_encoder.down1.conv.0.weight` in our network."""
    module, _, rest = name.rpartition("/")
    rest = rest.removeprefix("general_encoder.")
    if rest.startswith("code_decoupler."):
        return rest.replace("code_decoupler.", "decoupler.")
    rest = re.sub(r"^inc\.(\d)\.", lambda m: f"stem.0.{_PAIR[m[1]]}.", rest)
    rest = re.sub(r"^(?:((?:down|up)\d\.))?conv\.(\d)\.", lambda m: f"{m[1] or ''}pair.{_PAIR[m[2]]}.", rest)
    rest = re.sub(r"^((?:down|up)\d\.)?(?:down|up)\.", r"\1resize.", rest)
    rest = rest.replace("conv_input.", "shortcut.")
    rest = re.sub(r"^final_conv\.(\d)\.", r"code.\1.", rest).replace("final_conv.", "head.")
    return f"{module}.{rest}" if module else rest


def weights(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dictionary in our names."""
    return {our_name(k.removeprefix("weights/")): v for k, v in case.items() if k.startswith("weights/")}


def buffers(case: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Buffers below `prefix` in our names."""
    return {our_name(k.removeprefix(prefix)): v for k, v in case.items() if k.startswith(prefix)}
