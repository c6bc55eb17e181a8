"""Explain: targets, Grad-CAM and masked latents."""
