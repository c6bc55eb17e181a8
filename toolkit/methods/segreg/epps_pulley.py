"""The sliced Epps-Pulley statistic, kept in the features room so that losses and measurements share one computation."""

from __future__ import annotations

from toolkit.features.epps_pulley import (
    epps_pulley_by_direction,
    null_expectation,
    quadrature,
    sliced_epps_pulley,
    statistic_and_gradient,
    unit_directions,
)

__all__ = [
    "epps_pulley_by_direction",
    "null_expectation",
    "quadrature",
    "sliced_epps_pulley",
    "statistic_and_gradient",
    "unit_directions",
]
