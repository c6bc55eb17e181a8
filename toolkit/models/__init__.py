"""Networks: the plain U-Net and the papers' own, and safe loading of weights."""
