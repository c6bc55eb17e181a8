"""SelfReg-UNet: semantic consistency and internal distillation."""
