"""Med-DisSeg: the dispersive loss, the networks of both stages, and their objectives."""

from toolkit.methods.med_disseg.backbone import load_backbone, transfer_encoder
from toolkit.methods.med_disseg.dispersion import dispersive_loss
from toolkit.methods.med_disseg.network import (
    MedDisSeg,
    MedDisSegOutput,
    MedDisSegStageOne,
    med_disseg,
    med_disseg_stage_one,
)
from toolkit.methods.med_disseg.regularizer import Dispersive

__all__ = ["Dispersive", "MedDisSeg", "MedDisSegOutput", "MedDisSegStageOne", "dispersive_loss"]
__all__ += ["load_backbone", "med_disseg", "med_disseg_stage_one", "transfer_encoder"]
