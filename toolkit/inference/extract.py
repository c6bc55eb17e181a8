"""`extract`: features of a whole data set in one pass, pooled while the network runs.

In parts on any executor, each part is a store of its own, and then all are one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError, ResultError, choose
from toolkit.features.arrays import is_store
from toolkit.features.capture import observe
from toolkit.features.changed_weights import jittered
from toolkit.features.modules import device_of, named, unwrap
from toolkit.features.names import AliasUnknown, find_requests
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.store import Features, open_features
from toolkit.features.untouched import untouched
from toolkit.features.writer import MemoryWriter, StoreWriter
from toolkit.files import absolute, write_atomically
from toolkit.inference.executors import Submits, hand_out
from toolkit.inference.inputs import InputBatch, Part, as_batches
from toolkit.inference.layers import prepare_aliases
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.inference.pooling import POOLS, Pooler
from toolkit.process_state import thread_count

PARTS = 32  # of at least one batch; what a lost worker takes with it is at most CHECKPOINT_SECONDS of one


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


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is asked of `extract`, but for the inputs and the place; plain objects that can go to another process."""

    model: nn.Module
    layers: list[str]
    batch_size: int
    aliases: Mapping[str, str] | None
    pooling: dict[str, Any]
    passes: Passes

    def settings(self, predictor: Predictor) -> dict[str, Any]:
        """What a result records of these."""
        return self.pooling | predictor.settings

    def request(self, predictor: Predictor) -> dict[str, Any]:
        """What an unfinished store is recognised by."""
        named = {"layers": self.layers, "aliases": dict(self.aliases or {}), "batch_size": self.batch_size}
        request = provenance(self.model, None, **named, **self.settings(predictor))
        request.pop("network", None)  # a score that became known since is no other request
        return request

    def batches(
        self, inputs: Any, label: Any, limit: Callable[[Tensor, int], int] | None = None
    ) -> Iterator[InputBatch]:
        """The inputs as the network gets them."""
        return as_batches(inputs, self.model, batch_size=self.batch_size, label=label, limit=limit)

    def run(
        self,
        inputs: Any,
        label: Any = None,
        out: str | os.PathLike[str] | None = None,
        resume: bool = True,
        data: DataHash | None = None,
    ) -> Features:
        """Extract in this process; `data` is given the hashes of the images."""
        predictor, data = Predictor(self.model, **self.passes), data or DataHash()
        writer = MemoryWriter()
        if out is not None:
            writer = StoreWriter(out, self.request(predictor), resume)
        try:
            # a store goes on where it was: with the same batches
            limit = functools.partial(predictor.affordable, "extract", fixed=out is not None)
            self._pass(self.batches(inputs, label, limit), predictor, writer, data)
            if not writer.layers:
                raise DataError("There are no inputs to extract features from.", where="extract(inputs=...)")
            record = provenance(self.model, data.hexdigest(), layers=writer.layers, **self.settings(predictor))
            return Features(*writer.finish(record, *head_of(self.model, self.aliases)))
        except BaseException as error:
            if count := writer.abort():
                error.add_note(f"{count} batches are kept beside {out}: the same call goes on from there.")
            if isinstance(error, OSError) and out is not None:
                what = f"The features could not be written or their inputs not read ({type(error).__name__}: {error})."
                fix = "Free some space or restore the access, and call again: what is there is kept."
                raise ResultError(what, where=out, fix=fix) from error
            raise

    def _pass(self, batches: Iterator[InputBatch], predictor: Predictor, writer: MemoryWriter, data: DataHash) -> None:
        """Run the network on everything and send what it computes to the writer."""
        named = operator.itemgetter("pool", "samples", "seed", "moments", "mode")
        pool, samples, seed, moments, mode = named(self.pooling)
        with untouched(self.model, mode) as network, torch.no_grad():
            first = next(batches, None)
            if first is None:
                return
            stream = _Stream(writer, moments, predictor)
            predictor.frame(first.image)  # tries an odd size before anything is observed
            prepare_aliases(predictor, self.layers, first.image, self.aliases)
            with observe(network, self.layers, stream.consume, aliases=self.aliases):
                for number, batch in enumerate(itertools.chain([first], batches)):
                    data.update(batch.ids, batch.image, batch.label)
                    frame = predictor.frame(batch.image)
                    stream.run(batch, Pooler(batch, pool, samples, seed, frame), known=number < writer.done)
                    writer.check_inputs(number + 1, data.hexdigest)
                    if number >= writer.done:
                        writer.checkpoint(number + 1, data.hexdigest)
                if number + 1 < writer.done:
                    writer.check_inputs(writer.done, lambda: "")


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
        if self.pooler is None:
            return  # a pass that only tries whether the network takes a size
        parts = dict(zip(("rows", "weight"), self.pooler.rows(activation, name), strict=True))
        if self.moments:
            parts |= zip(("gram", "sum", "count"), self.pooler.moments(activation, name), strict=True)
        for kind, value in parts.items():
            total = self.totals.get((name, kind))
            self.totals[name, kind] = value if total is None else total + value
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
        self.pooler = None
        self.writer.add_records("cases", pooler.plan.table)
        names = ("case", "volume", "subject", "site")
        images = zip(batch.ids, batch.volumes, batch.subjects, batch.sites, strict=True)
        self.writer.add_records("images", [dict(zip(names, image, strict=True)) for image in images])

    def _write(self) -> None:
        for (name, kind), value in self.totals.items():
            if kind == "rows":
                self.writer.add(name, kind, value / self.totals[name, "weight"])
            elif kind != "weight":
                self.writer.add(name, kind, value)
        self.totals.clear()


def extract_parts(
    extraction: Extraction,
    inputs: Any,
    label: Any,
    out: str | os.PathLike[str] | None,
    resume: bool,
    executor: Submits | Callable[[], Submits],
) -> Features:
    """See `toolkit.extract`; all workers must reach `out` under the same path."""
    if out is None or not isinstance(inputs, list):
        what = "Workers need a list of inputs and a store to write to."
        fix = 'Pass a list of cases, paths or arrays, and out="features.zarr".'
        raise ConfigError(what, where="extract(executor=...)", fix=fix)
    if label is not None and len(label) != len(inputs):
        raise DataError(f"There are {len(inputs)} inputs and {len(label)} labels.", where="extract(label=...)")
    predictor, path = Predictor(extraction.model, **extraction.passes), absolute(out)
    writer = StoreWriter(path)
    try:
        folder = _folder(path.with_name(f".{path.name}.parts"), extraction.request(predictor), resume)
        size = extraction.batch_size * max(1, math.ceil(len(inputs) / extraction.batch_size / PARTS))
        jobs = []
        for start in range(0, len(inputs), size):
            part, labels = Part(inputs[start : start + size]), None if label is None else label[start : start + size]
            part.first = start
            place = folder / f"{start:08d}-{start + len(part)}.zarr"
            jobs.append(functools.partial(_extract_part, extraction, part, labels, place, torch.get_num_threads()))
        data = DataHash()
        for job, images in zip(jobs, hand_out(jobs, executor, "extract", "parts"), strict=True):
            data.add(images)
            (features := open_features(job.args[3])).copy_to(writer)
        if not jobs:
            raise DataError("There are no inputs to extract features from.", where="extract(inputs=...)")
        record = provenance(extraction.model, data.hexdigest(), layers=writer.layers, **extraction.settings(predictor))
        whole = Features(*writer.finish(record, features.head_weights, features.head_bias))
    except BaseException:
        writer.abort()
        raise
    shutil.rmtree(folder)
    return whole


def _folder(folder: Path, request: dict[str, Any], resume: bool) -> Path:
    """The place of the parts; those of another request go."""
    file, text = folder / "request.json", json.dumps(request)
    if not resume or not file.is_file() or file.read_text(encoding="utf-8") != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(file, text)
    return folder


def _extract_part(extraction: Extraction, inputs: Part, label: Any, out: Path, threads: int) -> list[str]:
    """Extract a part in a worker, unless its store is there for the same data; hashes of its images."""
    with thread_count(threads):
        data = DataHash()
        if is_store(out):
            for batch in extraction.batches(inputs, label):
                data.update(batch.ids, batch.image, batch.label)
            if open_features(out).provenance["data"] == data.hexdigest():
                return data.images
        data = DataHash()
        own = dataclasses.replace(extraction, model=copy.deepcopy(extraction.model))  # threads would share the hooks
        own.run(inputs, label, out, data=data)
        return data.images
