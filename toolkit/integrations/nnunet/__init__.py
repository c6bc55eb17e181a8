"""nnU-Net v2: trainer classes with a regularizer, and its results folders as networks of this toolkit."""

from pathlib import Path

EXTERNAL = Path(__file__).parent / "external"  # the folder to name in the variable nnUNet_extTrainer
