"""Whether each preset of the dispersive loss would do anything on given features: value, gradient, pairs in reach."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.methods.med_disseg.dispersion import PRESETS, dispersive_loss, pair_distances
from toolkit.methods.med_disseg.regularizer import ACTIVE_BAND
from toolkit.results import DataFrame, as_table


def preset_rows(features: Tensor, preset: str) -> Tensor:
    """The rows (B, D) that a preset disperses: the whole map or its mean over positions, by the preset's layout."""
    if features.ndim < 2 or features.shape[0] < 2:
        what = f"The dispersive loss needs features (B, C, *S) of two images or more, not {tuple(features.shape)}."
        raise ConfigError(what)
    pooled = PRESETS[preset].layout == "pooled" and features.ndim > 2
    return features.flatten(2).mean(dim=2) if pooled else features.flatten(1)


def preset_distances(features: Tensor, preset: str) -> Tensor:
    """Distances (B (B - 1) / 2,) between different images in units of tau, as the preset measures them."""
    rows = preset_rows(features.detach(), preset)
    settings = PRESETS[preset]
    distances = pair_distances(rows, None, settings.variant or "infonce_l2", preset)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return distances[upper[0], upper[1]] / settings.tau


def preset_check(features: Tensor) -> DataFrame:
    """Every preset of `toolkit.Dispersive` on one batch of features, with the settings its source trains with.

    Args:
        features: (B, C, *S) of a batch, or rows (B, D).

    Returns:
        One row a preset: layout, tau, numbers (D), loss, gradient_norm (at the features), smallest and median distance
        in units of tau, active_pairs (share of the pairs within 18.4 tau), status ("dead" with a gradient norm below
        1e-8, else "ok").

    Raises:
        ConfigError: fewer than two images.
    """
    rows = []
    for name, settings in PRESETS.items():
        leaf = features.detach().clone().requires_grad_()
        with torch.enable_grad():
            vectors = preset_rows(leaf, name)
            loss = dispersive_loss(vectors, settings.variant or "infonce_l2", settings.tau, name)
            (gradient,) = torch.autograd.grad(loss, leaf)
        distances = preset_distances(features, name)
        norm = float(gradient.norm())
        rows.append(
            {
                "preset": name,
                "layout": settings.layout,
                "tau": settings.tau,
                "numbers": vectors.shape[1],
                "loss": float(loss.detach()),
                "gradient_norm": norm,
                "smallest": float(distances.min()),
                "median": float(distances.median()),
                "active_pairs": float((distances < ACTIVE_BAND).float().mean()),
                "status": "dead" if norm < 1e-8 else "ok",
            }
        )
    return as_table(rows)
