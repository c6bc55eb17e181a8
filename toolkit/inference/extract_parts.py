"""`extract(executor=...)`: the inputs in parts on any executor, each part a store of its own, then one store of all."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import ConfigError, DataError
from toolkit.features.arrays import is_store
from toolkit.features.process_state import thread_count
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.store import Features, open_features
from toolkit.features.writer import StoreWriter
from toolkit.files import absolute, write_atomically
from toolkit.inference.executors import Submits, hand_out
from toolkit.inference.extraction import Extraction
from toolkit.inference.inputs import Part
from toolkit.inference.network import Predictor

PARTS = 32  # of at least one batch; what a lost worker takes with it is at most CHECKPOINT_SECONDS of one


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
