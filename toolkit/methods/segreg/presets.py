"""Named settings of SegReg. The loss is our inference from the paper's public parts, and so are these settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# The specification's section 2.10. A two-sided grid of 5 points on [-3, 3] is the folded one with 3 points.
_COMMON: dict[str, Any] = {"samples": 4096, "directions": 256, "sampling": "uniform", "pooling": "pooled"}
_LITE: dict[str, Any] = {**_COMMON, "directions": 4096, "points": 3, "scaled": True, "convex": True}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "segreg_default": {**_COMMON, "tap": "head_input", "weight": 0.1},
        "segreg_preact": {**_COMMON, "tap": "pre_activation", "weight": 0.1},
        "segreg_litessl": {**_LITE, "tap": "head_input", "weight": 0.05},
        # the control: the weight per row instead of the N-scaled statistic's own
        "segreg_litessl_control": {**_LITE, "tap": "head_input", "weight": 0.05 / 4096},
        "segreg_sw": {**_COMMON, "tap": "pre_activation", "divergence": "sliced_wasserstein", "weight": 0.1},
        "segreg_kl": {**_COMMON, "tap": "pre_activation", "divergence": "gaussian_kl", "weight": 0.05},
        "segreg_classcond": {
            **_COMMON,
            "tap": "head_input",
            "divergence": "class_conditional",
            "sampling": "class_balanced",
            "weight": 0.1,
        },
        "baseline": {**_COMMON, "tap": "head_input", "weight": 0.0},
    }
)
