"""Reading the reference cases of the fast/slow network: arrays, and reference parameter names as ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PAIR = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}


def read_case(golden: Path, case: str) -> dict[str, Tensor]:
    with np.load(golden / "latent_augmentation" / f"{case}.npz") as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}


def entry(golden: Path, case: str) -> dict[str, Any]:
    manifest = json.loads((golden / "latent_augmentation" / "manifest.json").read_text())
    return next(c for c in manifest["cases"] if c["id"] == case)


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
