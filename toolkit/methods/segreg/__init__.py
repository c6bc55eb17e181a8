"""SegReg: features aligned to a fixed Gaussian reference."""
