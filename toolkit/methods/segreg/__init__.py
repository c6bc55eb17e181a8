"""SegReg: features aligned to a fixed Gaussian reference."""

from toolkit.features.epps_pulley import sliced_epps_pulley
from toolkit.methods.segreg.regularizer import SegReg

__all__ = ["SegReg", "sliced_epps_pulley"]
