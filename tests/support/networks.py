"""Small networks with the awkward habits that users' networks have."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from toolkit.models.load import tensors_of, weights_bytes


class Inplace(nn.Module):
    """Convolution and norm, then an in-place activation and an in-place addition, as in nnU-Net blocks."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        self.conv = convolution(1, 6, 3, padding=1)
        self.norm = norm(6)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.second = convolution(6, 6, 3, padding=1)
        self.head = convolution(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        y = self.second(x)
        y += x
        return self.head(F.relu(y, inplace=True))


class Reused(nn.Module):
    """One activation module and one convolution module, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.shared(x)
        x = self.act(self.shared(x))
        return self.head(x)


class Outputs(nn.Module):
    """Deep supervision: a list or a dict of outputs, low resolution first, and a block that returns a tuple."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            fine = self.fine(x).relu()
            return fine, self.coarse(fine).relu()

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.pair = self.Pair()
        self.low = nn.Conv2d(4, 3, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.high = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor] | dict[str, Tensor]:
        fine, coarse = self.pair(x)
        low, high = self.low(coarse), self.high(torch.cat((fine, self.up(coarse)), 1))
        return [low, high] if self.kind == "list" else {"low": low, "out": high}


class Tokens(nn.Module):
    """A patch transformer: tokens (B, L, C) with a class token, and a channel-last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.norm_last = nn.LayerNorm(8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.plain = nn.LayerNorm(8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_last(self.embed(x).movedim(1, -1)).movedim(-1, 1)
        size = x.shape[2:]
        x = torch.cat((self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        x = self.plain(self.block(x)[:, 1:])
        return F.interpolate(self.head(x.transpose(1, 2).unflatten(2, size)), scale_factor=4)


class Checkpointed(nn.Module):
    """A block under activation checkpointing, reentrant or not."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))


class Dropping(nn.Module):
    """Batch norm and dropout: statistics and random numbers that an analysis must not disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.drop(self.norm(self.conv(x)).relu())
        return self.head(torch.cat((skip, self.up(self.down(skip).relu())), 1))


class Awkward(nn.Module):
    """Every habit at once.

    In-place activations, a reused convolution, frozen layers, a checkpointed block, tokens with an attention map that is
    kept on the module, a block that returns a dict, and deep supervision: a stack in training mode, a list in a dict
    otherwise.
    """

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            fine = self.act(self.norm(self.conv(x)))
            return {"fine": fine, "coarse": F.max_pool2d(fine, 4)}

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.query = nn.Linear(6, 6)
            self.drop = nn.Dropout(0.1)
            self.kept: list[Tensor] = []

        def forward(self, tokens: Tensor) -> Tensor:
            query = self.query(self.norm(tokens))
            weights = (query @ tokens.transpose(1, 2) / 6**0.5).softmax(-1)
            self.kept.append(weights)
            self.last = weights
            return tokens + self.drop(weights @ tokens)

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.Stem()
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.attention = self.Attention()
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.ReLU(inplace=True))
        self.heads = nn.ModuleList(nn.Conv2d(6, 3, 1) for _ in range(2))
        for parameter in self.shared.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor | dict[str, list[Tensor]]:
        scales = self.stem(x)
        coarse = self.act(self.shared(self.act(self.shared(scales["coarse"]))))
        tokens = self.attention(coarse.flatten(2).transpose(1, 2))
        deep = tokens.transpose(1, 2).unflatten(2, coarse.shape[2:])
        fine = F.interpolate(deep, scale_factor=4)
        fine += scales["fine"]
        fine = checkpoint(self.block, fine, use_reentrant=False)
        low, high = self.heads[0](deep), self.heads[1](fine)
        if self.training:
            return torch.stack([high, F.interpolate(low, size=high.shape[2:])], dim=1)
        return {"logits": [low, high]}


class SelfHooking(nn.Module):
    """Adds hooks to itself at its first pass and remembers it, as transformers' SegFormer and DPT do; a dict of its own."""

    class Output(OrderedDict[str, Tensor]):
        """A mapping with attributes, as Hugging Face networks return it."""

        @property
        def logits(self) -> Tensor:
            return self["logits"]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()
        self.decode = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 3, 1)
        self.handles: list[RemovableHandle] = []
        self.hooked = False

    def forward(self, x: Tensor) -> SelfHooking.Output:
        if not self.hooked:
            self.handles += [self.conv.register_forward_hook(self.remember)]
            self.hooked = True
        seen: list[Tensor] = []
        self.seen = seen
        x = self.decode(self.act(self.norm(self.conv(x))))
        assert len(seen) == 1, f"the hook ran {len(seen)} times"
        return self.Output(logits=self.head(x))

    def remember(self, _: nn.Module, __: object, output: Tensor) -> None:
        self.seen.append(output)


def save_weights(model: nn.Module, file: Path) -> Path:
    """The model's parameters and buffers as a safetensors file."""
    file.write_bytes(weights_bytes(tensors_of(model)))
    return file
