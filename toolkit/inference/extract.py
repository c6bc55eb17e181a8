"""`extract`: features of a whole data set in one pass, pooled while the network runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from toolkit.arguments import checked
from toolkit.errors import ConfigError, DataError, LayerError, ResultError
from toolkit.features.capture import observe
from toolkit.features.changed_weights import jittered
from toolkit.features.memory import Limit
from toolkit.features.modules import device_of, named, unwrap
from toolkit.features.names import AliasUnknown, find_requests
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.store import Features
from toolkit.features.untouched import untouched
from toolkit.features.writer import MemoryWriter, StoreWriter
from toolkit.inference.inputs import InputBatch, as_batches
from toolkit.inference.layers import prepare_aliases
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.inference.pooling import Pooler, check_pool


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
        **passes: select (it tells the aliases), patch_size, overlap, divisor and precision, see `toolkit.predict`
            (activation changes nothing here). With windows a row is the mean over the windows, weighted as their logits
            are when they are stitched.

    Raises:
        LayerError: a layer that does not exist, never ran, or gives no map.
        DataError: an input that the network cannot take, or no label for a pool that needs one.
        ConfigError: unknown pool, a foreign device, or somebody else is writing `out`.
        ResultError: `out` exists and is not a feature store, or holds an unfinished extraction of other inputs.

    Example:
        >>> features = tk.extract(model, task.cases("test"), layers=["encoder.*", "head_input"], pool="per-class")
    """
    check_pool(pool)
    _check_device(model, device)
    model = jittered(model, jitter, jitter_seed) if jitter else model
    layers = [layers] if isinstance(layers, str) else list(layers)
    if not layers:
        raise LayerError(
            "No layer was named.", where="extract(layers=[])", fix="Name at least one: see toolkit.layers(model)."
        )
    predictor = Predictor(model, **passes)
    settings: dict[str, Any] = {"pool": pool, "samples": samples, "seed": seed, "moments": moments, "mode": mode}
    settings |= predictor.settings | ({"jitter": jitter, "jitter_seed": jitter_seed} if jitter else {})
    writer = MemoryWriter()
    if out is not None:
        request = provenance(model, None, layers=layers, aliases=dict(aliases or {}), batch_size=batch_size, **settings)
        request.pop("network", None)  # a score that became known since is no other request
        writer = StoreWriter(out, request, resume)
    data = DataHash()
    try:
        with untouched(model, mode) as network, torch.no_grad():
            stream = _Stream(writer, moments, predictor)
            # a store goes on where it was: with the same batches
            limit = Limit("extract", 1.0, fixed=out is not None, one_pass=predictor.one_window)
            batches = as_batches(inputs, model, batch_size=batch_size, label=label, limit=limit)
            first = next(batches, None)
            if first is not None:
                predictor.frame(first.image)  # tries an odd size before anything is observed
                prepare_aliases(predictor, layers, first.image, aliases)
                with observe(network, layers, stream.consume, aliases=aliases):
                    for number, batch in enumerate(itertools.chain([first], batches)):
                        data.update(batch.ids, batch.image, batch.label)
                        frame = predictor.frame(batch.image)
                        stream.run(batch, Pooler(batch, pool, samples, seed, frame), known=number < writer.done)
                        writer.check_inputs(number + 1, data.hexdigest)
                        if number >= writer.done:
                            writer.checkpoint(number + 1, data.hexdigest)
                    if number + 1 < writer.done:
                        writer.check_inputs(writer.done, lambda: "")
        if not writer.layers:
            raise DataError("There are no inputs to extract features from.", where="extract(inputs=...)")
        record = provenance(model, data.hexdigest(), layers=writer.layers, **settings)
        return Features(*writer.finish(record, *head_of(model, aliases)))
    except BaseException as error:
        if count := writer.abort():
            error.add_note(f"{count} batches are kept beside {out}: the same call goes on from there.")
        if isinstance(error, OSError) and out is not None:
            raise ResultError(
                f"The features could not be written, or their inputs not be read ({type(error).__name__}: {error}).",
                where=str(out),
                fix="Free some space or restore the access, and call again: what is there is kept.",
            ) from error
        raise


def head_of(model: nn.Module, aliases: Mapping[str, str] | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Weights (classes, C) and bias of the layer behind `head_input`, if that is a kernel-1 layer known by now."""
    try:
        (request,) = find_requests(model, ["head_input"], aliases)
    except (AliasUnknown, ValueError):
        return None, None
    head = named(unwrap(model))[request.layer.path]
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or weight[0, 0].numel() != 1:
        return None, None
    return weight.detach().flatten(1).float().cpu(), None if bias is None else bias.detach().float().cpu()


class _Stream:
    """Sends every activation of the batch that is running through its pooler to the writer."""

    def __init__(self, writer: MemoryWriter, moments: bool, predictor: Predictor) -> None:
        self.writer, self.moments, self.predictor = writer, moments, predictor
        self.pooler: Pooler | None = None
        self.totals: dict[tuple[str, str], Tensor] = {}

    def consume(self, name: str, activation: Tensor) -> None:
        """Pool one activation."""
        assert self.pooler is not None
        parts = dict(zip(("rows", "weight"), self.pooler.rows(activation, name), strict=True))
        if self.moments:
            parts |= zip(("gram", "sum", "count"), self.pooler.moments(activation, name), strict=True)
        for kind, value in parts.items():
            known = self.totals.get((name, kind))
            self.totals[name, kind] = value if known is None else known + value
        if self.pooler.window is None:
            self._write()

    def run(self, batch: InputBatch, pooler: Pooler, known: bool = False) -> None:
        """Run the network on one batch, unless its features are known from before a kill."""
        self.pooler = pooler
        if not known:
            padded, tiling = pooler.frame.pad(batch.image), pooler.frame.tiling
            if tiling is None:
                self.predictor.run(padded)
            else:
                for window in tiling.windows:
                    pooler.begin(window)
                    self.predictor.run(padded[window].clone())
                self._write()
        self.writer.add_rows(pooler.plan.table)
        self.writer.add_images(
            {"case": batch.ids[i], "volume": batch.volumes[i], "subject": batch.subjects[i], "site": batch.sites[i]}
            for i in range(len(batch))
        )

    def _write(self) -> None:
        for (name, kind), value in self.totals.items():
            if kind == "rows":
                self.writer.add(name, kind, value / self.totals[name, "weight"])
            elif kind != "weight":
                self.writer.add(name, kind, value)
        self.totals.clear()


def _check_device(model: nn.Module, device: torch.device | str | None) -> None:
    own = device_of(model)
    if device is not None and torch.device(device).type != own.type:
        raise ConfigError(
            f"The network is on {own}, not on {device}.", fix=f"Move it yourself first: model.to('{device}')."
        )
