"""SelfReg-UNet: blocks taught by the last decoder block, and half of a block's channels by the other half."""

from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.terms import internal_distillation, semantic_consistency

__all__ = ["SelfReg", "internal_distillation", "semantic_consistency"]
