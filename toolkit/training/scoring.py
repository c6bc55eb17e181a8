"""Scores and predictions of a run, kept in its directory with what made them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data.images import PictureSource, write_label_picture
from toolkit.data.volumes import write_nifti
from toolkit.errors import CheckpointError, ConfigError, DataError, ToolkitWarning
from toolkit.features.provenance import mark_scored, provenance, score_of, weights_hash
from toolkit.files import distinct_names, read_sealed, seal, sha256, write_atomically, write_sealed
from toolkit.inference.network import Predictor
from toolkit.inference.predict import predict_volumes
from toolkit.inference.volumes import group_volumes, volume_spacing
from toolkit.measure.evaluate import evaluate
from toolkit.measure.statistics import patient_column
from toolkit.training.engine import content_hash

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from toolkit.data.case import Case
    from toolkit.training.run import Run


def evaluate_run(
    run: Run, split: str, sites: str | Sequence[str] | None, metrics: Sequence[str], progress: bool
) -> pd.DataFrame:
    """Score the run's network on a split, or read the table of an earlier call with the same weights and data."""
    names = [sites] if isinstance(sites, str) else None if sites is None else list(sites)
    cases = run.task.cases(split, site=names)
    if not cases:
        raise ConfigError(f"The split {split!r} has no cases there.", where=f"sites={sites!r}")
    asked = {"split": split, "sites": names, "metrics": list(metrics), **Predictor(run.model).settings}
    made_by = provenance(run.model, content_hash(run.task), **asked)
    made_by.pop("network", None)  # an earlier score is no part of what makes this one
    key, told = seal(made_by)[:12], _told(run.path, steps=run.config.steps, seed=run.config.seed)
    table_file = run.path / "evaluation" / f"{split}-{key}.csv"
    if table_file.is_file() and (scores := _read_table(table_file)) is not None:
        _remember(run.model, told, run.site, split, scores)
        return scores
    run.directory.record()  # a lost directory is not made again
    table = evaluate(run.model, cases, batch_size=run.config.batch_size, metrics=metrics, progress=progress)
    content = table.to_csv(index=False)
    table_file.parent.mkdir(exist_ok=True)
    write_sealed(table_file.with_suffix(".json"), {**made_by, "sha256": sha256(content)})
    write_atomically(table_file, content)
    _remember(run.model, told, run.site, split, scores := _parsed(content))
    return scores  # the same object on the first call and the next ones


def recall_scores(model: nn.Module, path: Path, record: Mapping[str, Any]) -> None:
    """Remember the score of these very weights that lies in a run's directory, for the figures of this network."""
    for split in ("val", "test"):
        for file in sorted((path / "evaluation").glob(f"{split}-*.csv")):
            if (table := _read_table(file, weights_hash(model))) is not None:
                _remember(model, _told(path, **record["config"]), record["site"], split, table)


def _told(path: Path, *, steps: int, seed: int, **_: Any) -> dict[str, Any]:
    return {"name": path.name, "steps": steps, "seed": seed}


def _remember(model: nn.Module, told: dict[str, Any], site: Any, split: str, table: pd.DataFrame) -> None:
    """The score at home, for the figures of this network: that of the test split where both are known."""
    sites = [site] if isinstance(site, str) else list(site or table["site"].unique())
    rows = table[(table["metric"] == "dice") & table["site"].isin(sites) & (table["status"] != "both_absent")]
    if split == "train" or not len(rows) or not set(sites) <= set(rows["site"]):
        return
    if split != "test" and score_of(model).get("split", split) == "test":
        return
    patients = rows.groupby(["site", patient_column(rows)])["value"].mean()
    told = {**told, "sites": ", ".join(sites), "split": split}
    mark_scored(model, patients.groupby(level="site").mean().mean(), len(patients), **told)
    table.attrs["network"] = score_of(model)


def predict_run(run: Run, cases: Iterable[Case], out: str | os.PathLike[str] | None, progress: bool) -> dict[str, Any]:
    """Label maps (masks of regions) of cases by volume, as arrays or as NIfTI files in the geometry of their images."""
    from tqdm.auto import tqdm

    volumes = group_volumes(cases)
    ids = _volume_ids(volumes)
    predictor = Predictor(run.model)
    regions = predictor.activation.regions or {}
    maps = predict_volumes(predictor, volumes, batch_size=run.config.batch_size)
    results: dict[str, Any] = {}
    rows = zip(volumes, ids, distinct_names(ids), maps, strict=True)
    for volume, name, file, labels in tqdm(rows, total=len(volumes), desc="predicting", disable=not progress):
        results[name] = labels if out is None else _write(Path(out), file, labels, volume, list(regions))
    return results


def _write(folder: Path, name: str, labels: np.ndarray, volume: Sequence[Case], regions: Sequence[str] = ()) -> Path:
    if regions:  # overlap, so that no one label map holds them: a file each
        for region, mask in zip(distinct_names(regions), labels, strict=True):
            _write(folder / name, region, mask, volume)
        return folder / name
    first = volume[0]
    if isinstance(first.reader, PictureSource) and labels.ndim == 2:
        return write_label_picture(folder / f"{name}.png", labels)
    path = folder / f"{name}.nii.gz"
    try:
        return write_nifti(path, labels, first.geometry, affine=first.affine, spacing=volume_spacing(volume))
    except DataError as error:
        what = f"The prediction of {first.volume!r} does not fill its volume: {error.what}"
        fix = "Predict all slices of a volume: task.cases(...) without leaving any out."
        raise DataError(what, where=path, fix=fix) from error


def _volume_ids(volumes: Sequence[Sequence[Case]]) -> list[str]:
    """The volume of every prediction, with its site where two sites share a name."""
    plain = [volume[0].volume for volume in volumes]
    if len(set(plain)) < len(plain):
        plain = [f"{volume[0].site}-{volume[0].volume}" for volume in volumes]
    return plain


def _read_table(path: Path, weights: str | None = None) -> pd.DataFrame | None:
    """A table of an earlier call, or None if it is not what was written or is that of other weights."""
    try:
        made_by, content = read_sealed(path.with_suffix(".json")), path.read_bytes()
        if weights not in (None, made_by.get("weights")):
            return None
        if sha256(content) != made_by.get("sha256"):
            raise CheckpointError("its content does not fit its hash")
        return _parsed(content.decode())
    except (OSError, CheckpointError) as error:
        warnings.warn(f"The scores in {path} are computed again: {error}", ToolkitWarning, stacklevel=4)
        return None


def _parsed(content: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False).astype(object)
    for name in ("value", "diagonal"):  # float() is exact where a parser for speed need not be
        table[name] = table[name].map(lambda text: float(text or "nan")).astype(float)
    table["group"] = table["group"].where(table["group"] != "", None)
    return table
