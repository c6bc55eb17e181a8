"""What made a result: weights, data, parameters, versions; cheap enough to be written under every figure."""

from __future__ import annotations

import hashlib
import platform
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.features.modules import device_of, unwrap

_WEIGHTS: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = weakref.WeakKeyDictionary()
FLOOR = 0.75  # mean Dice below which a network counts as untrained
# attributes of a network that the toolkit has trained
_TRAINED_WITH, _SCORED = "toolkit_trained_with", "toolkit_scored"


def mark_trained_with(model: nn.Module, regularizers: Iterable[str]) -> None:
    """Remember on the network which regularizers it is trained with, so that every later result can say so."""
    earlier = getattr(unwrap(model), _TRAINED_WITH, [])
    added = [name for name in regularizers if name not in earlier]
    if added:
        setattr(unwrap(model), _TRAINED_WITH, [*earlier, *added])


def mark_scored(model: nn.Module, dice: float, patients: int, **record: Any) -> None:
    """Remember the network's test score, so that figures can say what it had learnt; it ends with the next change of a weight.

    Dice is the mean of so many test patients of the sites it was trained on; the record holds name, steps, seed, sites,
    split (test where nothing is said) and floor, which a network that has learnt exceeds (0.75 where nothing is said).
    """
    scored = {"floor": FLOOR, **record, "dice": float(dice), "patients": int(patients)}
    setattr(unwrap(model), _SCORED, (weights_hash(model), scored))


def score_of(model: nn.Module) -> dict[str, Any]:
    """What `mark_scored` remembered; nothing if a weight has changed since."""
    weights, scored = getattr(unwrap(model), _SCORED, ("", {}))
    return dict(scored) if weights == weights_hash(model) else {}


def provenance(model: nn.Module | None = None, data: str | None = None, **parameters: Any) -> dict[str, Any]:
    """A JSON-able record of a computation on data of this hash.

    Keys: model, weights (sha256), trained_with (its regularizers, if the toolkit trained it), network (name, steps,
    seed and test score, where they are known), data, parameters, versions, threads, device.
    """
    record: dict[str, Any] = {}
    if model is not None:
        record["model"] = type(unwrap(model)).__name__
        record["weights"] = weights_hash(model)
        record["device"] = str(device_of(model))
        if getattr(unwrap(model), _TRAINED_WITH, []):
            record["trained_with"] = list(getattr(unwrap(model), _TRAINED_WITH))
        if scored := score_of(model):
            record["network"] = scored
    if data is not None:
        record["data"] = data
    record["parameters"] = {name: _plain(value) for name, value in parameters.items()}
    record["versions"] = versions()
    record["threads"] = torch.get_num_threads()
    return record


def weights_hash(model: nn.Module) -> str:
    """sha256 of all parameters and buffers with their names, computed once until one of them changes.

    A change is seen by identity, version counter and sum of every tensor.
    """
    network = unwrap(model)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    seen = [(name, id(t), t.data_ptr(), -1 if t.is_inference() else t._version) for name, t in tensors]
    versions = (*seen, *_sums([tensor for _, tensor in tensors]))
    remembered = _WEIGHTS.get(network)
    if remembered and remembered[0] == versions:
        return remembered[1]
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    _WEIGHTS[network] = (versions, digest.hexdigest())
    return digest.hexdigest()


def _sums(tensors: list[Tensor]) -> list[float]:
    """Sums in double precision: fused optimizers change parameters without raising their version counters."""
    if not tensors:
        return []
    with torch.no_grad():
        sums = [tensor.detach().sum(dtype=torch.float64) for tensor in tensors if not tensor.is_complex()]
        return torch.stack([value.to(sums[0].device) for value in sums]).tolist()


class DataHash:
    """sha256 over the hashes of images, of names and voxels, as they pass by.

    Attributes:
        images: hash of every image; those of several parts in their order make the hash of the whole.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self._whole = hashlib.sha256()

    def update(self, ids: Iterable[str], *tensors: Tensor | None) -> None:
        """Add images (and labels) with their names, one by one: the hash does not depend on how they were batched."""
        present = [tensor for tensor in tensors if tensor is not None]
        parts = [(f"{one.dtype} {tuple(one.shape[1:])}".encode(), _narrow(one)) for one in present]
        for index, name in enumerate(ids):
            digest = hashlib.sha256(f"{name}|".encode())
            for kind, images in parts:
                digest.update(kind)
                digest.update(images[index])
            self.add([digest.hexdigest()])

    def add(self, images: Iterable[str]) -> None:
        """Add the hashes of images, as `images` of another part has them."""
        for image in images:
            self.images.append(image)
            self._whole.update(image.encode())

    def hexdigest(self) -> str:
        """The hash of everything added so far."""
        return self._whole.hexdigest()


def _narrow(tensor: Tensor) -> Any:
    """What is hashed of every image: its bytes; of labels those of 16-bit numbers if they fit, a quarter as many."""
    if tensor.dtype == torch.int64:
        small = tensor.to(torch.int16)
        if torch.equal(small.long(), tensor):
            tensor = small
        elif len(tensor) > 1:  # decided image by image, whatever the neighbours hold
            return [_narrow(one[None])[0] for one in tensor]
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return flat.view(torch.uint8).numpy() if flat.numel() else [b""] * len(tensor)


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def versions() -> dict[str, str]:
    """Of what decides the bits of a computation."""
    from toolkit import __version__

    own = {"toolkit": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {**own, "python": platform.python_version()}
