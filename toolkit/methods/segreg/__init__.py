"""SegReg: features aligned to a fixed Gaussian reference."""

from toolkit.features.epps_pulley import null_expectation, sliced_epps_pulley, unit_directions
from toolkit.methods.segreg.regularizer import SegReg

__all__ = ["SegReg", "null_expectation", "sliced_epps_pulley", "unit_directions"]
