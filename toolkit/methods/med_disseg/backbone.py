"""The ResNet-50 encoder of Med-DisSeg: from scratch, or from a weights file that the user supplies."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from toolkit.errors import CheckpointError
from toolkit.models.load import named_tensors

ENCODER = ("layer0", "layer1", "layer2", "layer3")
_STEM = {"conv1.": "layer0.0.", "bn1.": "layer0.1.", "layer1.": "layer1.1."}
_UNUSED = ("layer4.", "fc.")


def encoder_blocks(in_channels: int, width: int = 64) -> dict[str, nn.Sequential]:
    """Blocks 1-4 as `layer0` … `layer3`: the ResNet-50 stem and its first three stages (the last one is unused).

    Outputs have width, 4, 8 and 16 times the width channels at 1/2, 1/4, 1/8 and 1/16 of the input's sides.
    Convolutions start from He's normal initialisation (fan out).
    """
    from monai.networks.nets.resnet import ResNetBottleneck

    stem = nn.Sequential(
        nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
    stages, inputs = [], width
    for k, (units, stride) in enumerate(((3, 1), (4, 2), (6, 2))):
        outputs = 4 * (own := width * 2**k)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        first = ResNetBottleneck(inputs, own, 2, stride, shortcut)
        stages.append(nn.Sequential(first, *(ResNetBottleneck(outputs, own, 2) for _ in range(units - 1))))
        inputs = outputs
    blocks = (stem, nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), stages[0]), *stages[1:])
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return dict(zip(ENCODER, blocks, strict=True))


def load_backbone(
    model: nn.Module, weights: str | os.PathLike[str] | Mapping[str, Tensor], sha256: str | None = None
) -> list[str]:
    """Put ResNet-50 weights into the encoder of a Med-DisSeg network; nothing is ever downloaded.

    Args:
        model: a stage-1 or stage-2 network of width 64 with 1 or 3 image channels.
        weights: file (safetensors or PyTorch) or state dictionary with the usual ResNet names (`conv1.weight`,
            `bn1.*`, `layer1.0.conv1.weight`, …). The fourth stage and the classifier are left out.
        sha256: of the file, all of it or at least its first 8 digits (names such as `resnet50-0676ba61.pth` carry
            those); None = the file is not checked against anything but names and shapes.

    Returns:
        The encoder tensors that were filled: all of them.

    Raises:
        CheckpointError: unreadable file, another hash, or tensors that are missing or of another shape; nothing is
            changed then.

    Example:
        >>> filled = tk.load_backbone(tk.med_disseg_stage_one(), "resnet50-0676ba61.pth", sha256="0676ba61")
    """
    tensors, where = named_tensors(weights, sha256)
    renamed = {}
    for name, value in tensors.items():
        if not name.startswith(_UNUSED):
            prefix = next((prefix for prefix in _STEM if name.startswith(prefix)), "")
            renamed[_STEM.get(prefix, "") + name.removeprefix(prefix)] = value
    return copy_encoder(model, renamed, where)


def transfer_encoder(
    stage_one: nn.Module | str | os.PathLike[str] | Mapping[str, Tensor], stage_two: nn.Module
) -> list[str]:
    """Start stage 2 from stage 1: copy the tensors named layer0 … layer3, buffers included, and nothing else.

    Args:
        stage_one: the trained stage-1 network, its weights file or its state dictionary (released checkpoints too).
        stage_two: the network to fill, in place.

    Returns:
        The names that were copied.

    Raises:
        CheckpointError: an encoder tensor is missing or has another shape; nothing is changed then.

    Example:
        >>> one, two = tk.med_disseg_stage_one(1, encoder_width=4), tk.med_disseg(1, width=16, encoder_width=4)
        >>> copied = tk.transfer_encoder(one, two)
    """
    if isinstance(stage_one, nn.Module):
        return copy_encoder(stage_two, stage_one.state_dict(), type(stage_one).__name__)
    return copy_encoder(stage_two, *named_tensors(stage_one))


def copy_encoder(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Copy every encoder tensor by name, all or none."""
    own = {k: v for k, v in model.state_dict().items() if k.split(".", 1)[0] in ENCODER}
    counters = {k for k in own if k.endswith("num_batches_tracked")}  # older files lack them
    missing = [k for k in own if k not in tensors and k not in counters]
    wrong = [k for k, v in own.items() if k in tensors and tensors[k].shape != v.shape]
    if missing or wrong or not own:
        listed = ", ".join(missing[:5] or wrong[:5]) or "the network has no layer0 … layer3"
        what = f"These weights do not fill the encoder: {len(missing)} tensors missing, {len(wrong)} of another shape."
        fix = "Give those of a ResNet-50 (or of stage 1) for a network of encoder_width 64 and RGB or grey images."
        raise CheckpointError(what, where=f"{where}: {listed}", fix=fix)
    copied = [k for k in own if k in tensors]
    for name in copied:
        own[name].copy_(tensors[name])
    return copied
