"""`extract`: features of a whole data set in one pass, pooled while the network runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from toolkit.arguments import checked
from toolkit.errors import ConfigError, LayerError, choose
from toolkit.features.changed_weights import jittered
from toolkit.features.modules import device_of
from toolkit.features.store import Features
from toolkit.inference.executors import Submits
from toolkit.inference.extraction import Extraction, extract_parts
from toolkit.inference.memory import Passes
from toolkit.inference.pooling import POOLS


@checked
def extract(
    model: nn.Module,
    inputs: Any,
    layers: str | Sequence[str],
    pool: str = "per-class",
    *,
    samples: int = 256,
    seed: int = 0,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    moments: bool = True,
    out: str | os.PathLike[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    mode: str = "eval",
    label: Any = None,
    resume: bool = True,
    jitter: float = 0.0,
    jitter_seed: int = 0,
    executor: Submits | Callable[[], Submits] | None = None,
    **passes: Unpack[Passes],
) -> Features:
    """Features of any network at any layers; the network is left untouched.

    Activations are pooled on the device inside the forward pass and dropped, so memory does not grow with the data
    beyond the pooled rows; with `out` those go to disk as well.

    Args:
        model: any network; compiled ones run eagerly.
        inputs: a case; a tensor or array (*S) of a one-channel network, (C, *S) or (B, C, *S); a dict with "image" and
            perhaps "label", "id", "site", "spacing"; a NIfTI, PNG or NPY path; a pair (image, label); MONAI's
            MetaTensor or TorchIO's images and Subjects, whose geometry is kept; or an iterable of any of these, such as
            a list of cases, a task's loader or torch's DataLoader.
        layers: names, globs or aliases, see `toolkit.layers`.
        pool: "per-class" (one row per class present in each image: the mean over its voxels), "per-region" (one row per
            connected component of a class other than 0), "grid" (one row per cell of a grid of 4 along each axis),
            "global" (one row per image), "voxels" (raw vectors of voxels drawn per class and image, the same for every
            network) or "boundary" (such voxels at most 3 from one of another class).
        samples: voxels per class and image for "voxels" and "boundary".
        seed: of the voxel draw.
        batch_size: images per pass.
        device: the network's own device; another one is refused, because moving the network would change it.
        moments: also keep each image's Gram matrix, channel sums and number of positions, per layer.
        out: write to this .zarr folder while running, instead of keeping the rows in memory. The folder appears when it
            is complete; after a kill, an interrupt or a failure the same call goes on where it was, to the same bytes.
        aliases: overrides of aliases.
        mode: "eval" (running statistics) or "train"; statistics are restored afterwards.
        label: label map(s) for bare arrays or paths.
        resume: False starts anew even if an unfinished extraction of the same weights, layers and settings is found.
        jitter: take the features of a copy whose every parameter tensor has normal noise added, this many times its root
            mean square (0.01 = 1 %). As `repeat` of `toolkit.drift` they say how far features move when the weights move
            by so little and nothing is learnt, on these very patients; another training is not needed. 0 = none.
        jitter_seed: of that noise.
        executor: split a list of inputs over the workers of any `concurrent.futures.Executor` (or of what a function
            makes, which is then called again for a pool that broke), into the one store `out`. Its bytes are those of
            one process where every input is one image and neighbours have one size. A worker that is lost, or the same
            call after a kill, goes on from the batches that are on disk.
        **passes: select (it tells the aliases), patch_size, overlap, divisor and precision, see `toolkit.predict`
            (activation changes nothing here). With windows a row is the mean over the windows, weighted as their logits
            are when they are stitched.

    Raises:
        LayerError: a layer that does not exist, never ran, or gives no map.
        DataError: an input that the network cannot take, or no label for a pool that needs one.
        ConfigError: unknown pool, a foreign device, somebody else is writing `out`, or an executor without `out` or list.
        ResultError: `out` exists and is not a feature store, or holds an unfinished extraction of other inputs.

    Example:
        >>> features = tk.extract(model, task.cases("test"), layers=["encoder.*", "head_input"], pool="per-class")
    """
    choose("pool", pool, POOLS, where="extract(pool=...)")
    own, layers = device_of(model), [layers] if isinstance(layers, str) else list(layers)
    if device is not None and torch.device(device).type != own.type:
        fix = f"Move it yourself first: model.to('{device}')."
        raise ConfigError(f"The network is on {own}, not on {device}.", fix=fix)
    if not layers:
        fix = "Name at least one: see toolkit.layers(model)."
        raise LayerError("No layer was named.", where="extract(layers=[])", fix=fix)
    jitters = {"jitter": jitter, "jitter_seed": jitter_seed} if jitter else {}
    model = jittered(model, jitter, jitter_seed) if jitter else model
    pooling = {"pool": pool, "samples": samples, "seed": seed, "moments": moments, "mode": mode, **jitters}
    extraction = Extraction(model, layers, batch_size, aliases, pooling, passes)
    if executor is None:
        return extraction.run(inputs, label, out, resume)
    return extract_parts(extraction, inputs, label, out, resume, executor)
