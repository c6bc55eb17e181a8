"""The two networks of Med-DisSeg: blocks, ResNet-50 encoder, decoder parts and the stages themselves."""

from toolkit.methods.med_disseg.backbone import load_backbone, transfer_encoder
from toolkit.methods.med_disseg.network import (
    MedDisSeg,
    MedDisSegOutput,
    MedDisSegStageOne,
    med_disseg,
    med_disseg_stage_one,
)

__all__ = [
    "MedDisSeg",
    "MedDisSegOutput",
    "MedDisSegStageOne",
    "load_backbone",
    "med_disseg",
    "med_disseg_stage_one",
    "transfer_encoder",
]
