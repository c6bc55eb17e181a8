"""The folder of this file is what `nnUNet_extTrainer` names: nnU-Net looks for its trainers by class name here."""

from toolkit.integrations.nnunet.trainers import nnUNetTrainerDispersive, nnUNetTrainerSegReg, nnUNetTrainerSelfReg

__all__ = ["nnUNetTrainerDispersive", "nnUNetTrainerSegReg", "nnUNetTrainerSelfReg"]
