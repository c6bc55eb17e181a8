"""The networks of `third_party.py`: random weights, small, 1 channel in, 3 classes out, images of 64x64 pixels.

Each entry is (library, build); a library that is not installed leaves its networks out, and the table says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES = 3


class Head(nn.Module):
    """A timm backbone, its last features brought to the image's size by one convolution."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.backbone = timm.create_model(name, pretrained=False, features_only=True, in_chans=1)
        self.head = nn.Conv2d(self.backbone.feature_info.channels()[-1], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.backbone(x)[-1])
        return nn.functional.interpolate(logits, size=x.shape[2:], mode="bilinear")


class Checkpointed(nn.Module):
    """A block that is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Conv2d(1, 8, 3, padding=1), reentrant
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)
        return self.head(self.up(x).relu())


def monai() -> dict[str, Callable[[], nn.Module]]:
    """MONAI's networks."""
    from monai.networks import nets

    kernels, strides, widths = [3] * 4, [1, 2, 2, 2], [8, 16, 16, 32]
    swin: dict[str, Any] = {"feature_size": 12, "spatial_dims": 2, "depths": (1,) * 4, "num_heads": (1, 2, 4, 8)}
    vit: dict[str, Any] = {"feature_size": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "spatial_dims": 2}
    next_: dict[str, Any] = {"spatial_dims": 2, "init_filters": 8, "in_channels": 1, "out_channels": CLASSES}
    return {
        "MONAI UNet": lambda: nets.UNet(2, 1, CLASSES, (8, 16, 32), (2, 2), num_res_units=1),
        "MONAI BasicUNet": lambda: nets.BasicUNet(2, 1, CLASSES, features=(8, 8, 16, 16, 32, 8)),
        "MONAI DynUNet, deep supervision": lambda: nets.DynUNet(
            2, 1, CLASSES, kernels, strides, strides[1:], filters=widths, deep_supervision=True, deep_supr_num=2
        ),
        "MONAI SegResNet": lambda: nets.SegResNet(2, 8, 1, CLASSES),
        "MONAI SegResNetDS": lambda: nets.SegResNetDS(2, 8, 1, CLASSES, blocks_down=(1, 2, 2), dsdepth=2),
        "MONAI UNETR": lambda: nets.UNETR(1, CLASSES, (64, 64), **vit),
        "MONAI SwinUNETR": lambda: nets.SwinUNETR(1, CLASSES, **swin),
        "MONAI AttentionUnet": lambda: nets.AttentionUnet(2, 1, CLASSES, (8, 16, 32), (2, 2)),
        "MONAI VNet": lambda: nets.VNet(2, 1, CLASSES),
        "MONAI HighResNet": lambda: nets.HighResNet(2, 1, CLASSES),
        "MONAI MedNeXt": lambda: nets.MedNeXt(
            **next_, encoder_expansion_ratio=2, decoder_expansion_ratio=2, bottleneck_expansion_ratio=2
        ),
        "MONAI UNet++": lambda: nets.BasicUNetPlusPlus(2, 1, CLASSES, features=(8, 8, 16, 16, 32, 8)),
    }


def wrapped() -> dict[str, Callable[[], nn.Module]]:
    """What people do to a network before they analyse it."""
    from toolkit.models.unet import unet

    def small() -> nn.Module:
        torch.manual_seed(0)
        return unet(1, CLASSES, channels=(8, 16, 32), norm="batch").eval()

    def quantised() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(small(), {nn.Conv2d, nn.Linear}, dtype=torch.qint8)

    def exported() -> nn.Module:
        return torch.export.export(small(), (torch.zeros(1, 1, 64, 64),)).module()

    def scripted() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(small(), torch.zeros(1, 1, 64, 64))

    return {
        "DataParallel": lambda: nn.DataParallel(small()),
        "compiled": lambda: torch.compile(small(), backend="eager"),
        "checkpointed": lambda: Checkpointed(reentrant=False),
        "checkpointed, reentrant": lambda: Checkpointed(reentrant=True),
        "quantised": quantised,
        "half": lambda: small().half(),
        "TorchScript": scripted,
        "exported": exported,
    }


def smp() -> dict[str, Callable[[], nn.Module]]:
    """segmentation_models_pytorch."""
    import segmentation_models_pytorch as smp

    options: dict[str, Any] = {"encoder_weights": None, "in_channels": 1, "classes": CLASSES}
    auxiliary = {"classes": 2, "pooling": "avg"}
    return {
        "smp U-Net": lambda: smp.Unet("tu-resnet18", **options),
        "smp DeepLabV3+": lambda: smp.DeepLabV3Plus("tu-resnet18", **options),
        "smp Segformer": lambda: smp.Segformer("mit_b0", **options),
        "smp Segformer, auxiliary head": lambda: smp.Segformer("mit_b0", **options, aux_params=auxiliary),
    }


def hugging_face() -> dict[str, Callable[[], nn.Module]]:
    """Networks of the transformers package, from their configurations."""
    import transformers as hf

    def segformer() -> nn.Module:
        sizes: dict[str, Any] = {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1] * 4,
            "num_attention_heads": [1, 2, 3, 4],
        }
        return hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(num_channels=1, num_labels=CLASSES, decoder_hidden_size=32, **sizes)
        )

    def upernet() -> nn.Module:
        backbone = hf.ConvNextConfig(
            num_channels=1,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1] * 4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        return hf.UperNetForSemanticSegmentation(
            hf.UperNetConfig(
                backbone_config=backbone,
                hidden_size=16,
                num_labels=CLASSES,
                auxiliary_in_channels=24,
                auxiliary_channels=8,
            )
        )

    def dpt() -> nn.Module:
        return hf.DPTForSemanticSegmentation(
            hf.DPTConfig(
                num_channels=1,
                num_labels=CLASSES,
                image_size=64,
                patch_size=8,
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=64,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 16, 24, 32],
                fusion_hidden_size=16,
            )
        )

    def mask2former() -> nn.Module:
        backbone = hf.SwinConfig(
            num_channels=1,
            image_size=64,
            embed_dim=12,
            depths=[1] * 4,
            num_heads=[1, 2, 3, 4],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        return hf.Mask2FormerForUniversalSegmentation(
            hf.Mask2FormerConfig(
                backbone_config=backbone,
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                encoder_layers=1,
                dim_feedforward=32,
                decoder_layers=2,
                num_attention_heads=4,
                num_queries=8,
                num_labels=CLASSES,
            )
        )

    return {
        "transformers SegFormer": segformer,
        "transformers UperNet": upernet,
        "transformers DPT": dpt,
        "transformers Mask2Former": mask2former,
    }


def timm() -> dict[str, Callable[[], nn.Module]]:
    """A backbone of timm with a head of one's own."""
    import timm  # noqa: F401

    return {"timm ResNet-18 + head": lambda: Head("resnet18")}


def nnunet() -> dict[str, Callable[[], nn.Module]]:
    """nnU-Net's networks."""
    from dynamic_network_architectures.architectures import unet

    common: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 4,
        "features_per_stage": [8, 16, 16, 32],
        "conv_op": nn.Conv2d,
        "kernel_sizes": 3,
        "strides": [1, 2, 2, 2],
        "num_classes": CLASSES,
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d,
        "norm_op_kwargs": {"affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    return {
        "nnU-Net PlainConvUNet": lambda: unet.PlainConvUNet(n_conv_per_stage=2, **common),
        "nnU-Net ResidualEncoderUNet": lambda: unet.ResidualEncoderUNet(n_blocks_per_stage=1, **common),
    }


LIBRARIES: dict[str, Callable[[], dict[str, Callable[[], nn.Module]]]] = {
    "monai": monai,
    "torch": wrapped,
    "segmentation_models_pytorch": smp,
    "transformers": hugging_face,
    "timm": timm,
    "nnunetv2": nnunet,
}
