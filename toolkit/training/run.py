"""`Run`: a training run on disk with its network in memory."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.arguments import checked_methods
from toolkit.data.case import Case
from toolkit.data.images import write_label_picture
from toolkit.data.source import FunctionSource
from toolkit.data.volumes import write_nifti
from toolkit.errors import CheckpointError, ConfigError, DataError, ToolkitError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.features.provenance import mark_scored, provenance, score_of, weights_hash
from toolkit.files import distinct_names, read_sealed, seal, sha256, write_atomically, write_sealed
from toolkit.inference.memory import remember
from toolkit.inference.network import Predictor
from toolkit.inference.predict import predict_volumes
from toolkit.inference.volumes import group_volumes, volume_spacing
from toolkit.measure.evaluate import evaluate
from toolkit.measure.segmentation import METRICS
from toolkit.measure.statistics import patient_column
from toolkit.results import DataFrame
from toolkit.training import background
from toolkit.training import checkpoint as checkpoints
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.engine import content_hash
from toolkit.training.history import last_step, read_history
from toolkit.training.protocol import Objective, Regularizer


@checked_methods
@dataclasses.dataclass(eq=False, repr=False)
class Run:
    """What `train` and `resume` return.

    Attributes:
        path: the run's directory.
        model: the network; after training it holds the selected weights.
        task: what it was trained on.
        config: settings.
        objective: supervised part.
        regularizers: added losses.
        site: the site or sites it was trained on; None = all.
    """

    path: Path
    model: nn.Module
    task: Any
    config: TrainConfig
    _: dataclasses.KW_ONLY
    objective: Objective
    regularizers: tuple[Regularizer, ...] = ()
    site: Any = None
    _process: subprocess.Popen[bytes] | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        names = " + ".join(regularizer.name for regularizer in self.regularizers) or "plain"
        task = getattr(self.task, "name", type(self.task).__name__)
        return f"Run({str(self.path)!r}: {names} on {task}, {self.state}, step {self.step} of {self.config.steps})"

    def __post_init__(self) -> None:
        own = type(self.objective).logits is not Objective.logits
        remember(self.model, **run_with(self.task, self.config), select=self.objective.logits if own else None)

    @property
    def directory(self) -> RunDirectory:
        """The run's files."""
        return RunDirectory(self.path)

    @property
    def history(self) -> DataFrame:
        """Every logged step and validation so far: `step`, `event`, each loss term by name, weights, gradient ratios."""
        return read_history(self.directory.history)

    @property
    def state(self) -> str:
        """`ready`, `running`, `finished`, `interrupted` or `failed`."""
        return self.directory.state().get("state", "ready")

    @property
    def finished(self) -> bool:
        """Whether the last step was reached."""
        return self.state == "finished"

    @property
    def step(self) -> int:
        """Step of the newest checkpoint."""
        return max(checkpoints.steps_on_disk(self.directory.checkpoints), default=0)

    @property
    def selected_step(self) -> int | None:
        """Step whose weights were selected at the end; None before that."""
        return self.directory.state().get("selected_step")

    @property
    def running(self) -> bool:
        """Whether another process trains this run now."""
        return background.is_running(self.path, self._process)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Run:
        """Wait for a training in the background, then put the selected weights into `model`.

        Args:
            timeout: seconds; None = as long as it takes.
            progress: show a bar meanwhile.

        Raises:
            TimeoutError: it is not done in time (and goes on).
            ToolkitError: it failed.
        """
        from tqdm.auto import tqdm

        deadline = None if timeout is None else time.monotonic() + timeout
        with tqdm(total=self.config.steps, desc=self.path.name, unit="step", disable=not progress) as bar:
            while self.running:
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"The run in {self.path} is still being trained after {timeout} s.")
                bar.update(max(0, (last_step(self.directory.history) if progress else 0) - bar.n))
                time.sleep(0.1)
            state = self.directory.state()
            bar.update(state.get("step", 0) - bar.n)
        if state.get("state") not in ("finished", "interrupted"):
            status = None if self._process is None else self._process.returncode
            silent = f"ended without a message (exit status {status})."
            how = f"failed: {state['error']}" if "error" in state else silent
            fix = f"Read the log; the run can be continued with toolkit.resume({str(self.path)!r})."
            raise ToolkitError(f"The training in the background {how}", where=self.path / "background.log", fix=fix)
        self.reload()
        return self

    def stop(self, timeout: float | None = 60.0) -> Run:
        """End a training in the background after the step at hand; `resume` continues it.

        Raises:
            TimeoutError: it did not end in time.
            ToolkitError: it failed.
        """
        background.stop(self.path, self._process)
        return self.wait(timeout)

    def reload(self) -> None:
        """Put the selected weights on disk (the newest, if the run is not finished) into `model`.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        step = self.selected_step if self.finished else self.step
        checkpoints.read(self.directory.checkpoints, self.step if step is None else step).put_into(self.model)

    def evaluate(
        self,
        split: str = "test",
        sites: str | Sequence[str] | None = None,
        *,
        metrics: Sequence[str] = METRICS,
        progress: bool = False,
    ) -> DataFrame:
        """Score the network on a split; the table is kept in the run's directory and read from there next time.

        Args:
            split: `train`, `val` or `test`.
            sites: one, several, or None = all.
            metrics: any of dice, iou, hd95, assd.
            progress: show a bar over volumes.

        Returns:
            case (the volume), site, class, metric, value, status, subject, group, unit, diagonal, rule.

        Raises:
            ConfigError: no such cases.
            DataError: a case without label.
        """
        names = [sites] if isinstance(sites, str) else None if sites is None else list(sites)
        cases = self.task.cases(split, site=names)
        if not cases:
            raise ConfigError(f"The split {split!r} has no cases there.", where=f"sites={sites!r}")
        asked = {"split": split, "sites": names, "metrics": list(metrics), **Predictor(self.model).settings}
        switches = vars(unwrap(self.model)).items()  # such as `refined`, which weights do not tell
        asked |= {name: on for name, on in switches if isinstance(on, (bool, float)) and name != "training"}
        made_by = provenance(self.model, content_hash(self.task), **asked)
        made_by.pop("network", None)  # an earlier score is no part of what makes this one
        key, told = seal(made_by)[:12], _told(self.path, steps=self.config.steps, seed=self.config.seed)
        table_file = self.path / "evaluation" / f"{split}-{key}.csv"
        if table_file.is_file() and (scores := _read_table(table_file)) is not None:
            _remember(self.model, told, self.site, split, scores)
            return scores
        self.directory.record()  # a lost directory is not made again
        table = evaluate(self.model, cases, batch_size=self.config.batch_size, metrics=metrics, progress=progress)
        content = table.to_csv(index=False)
        table_file.parent.mkdir(exist_ok=True)
        write_sealed(table_file.with_suffix(".json"), {**made_by, "sha256": sha256(content)})
        write_atomically(table_file, content)
        _remember(self.model, told, self.site, split, scores := _parsed(content))
        return scores  # the same object on the first call and the next ones

    def predict(
        self, cases: Iterable[Case], out: str | os.PathLike[str] | None = None, *, progress: bool = False
    ) -> dict[str, Any]:
        """Segment cases; the slices of a volume are put together.

        Args:
            cases: whole volumes of a task.
            out: folder for one NIfTI file a volume (of pictures: PNG), in the geometry of its image; on a task with
                regions for one folder a volume with a 0/1 file a region, since regions overlap. None = keep them in memory.
            progress: show a bar over volumes.

        Returns:
            Path of the file or folder, or without `out` the label map (*S) uint8 or the masks (regions, *S), by name of the
            volume.

        Raises:
            DataError: slices are missing, so that the volume's geometry cannot be kept.
        """
        from tqdm.auto import tqdm

        volumes = group_volumes(cases)
        ids = [volume[0].volume for volume in volumes]
        if len(set(ids)) < len(ids):  # two sites share a name
            ids = [f"{volume[0].site}-{volume[0].volume}" for volume in volumes]
        predictor = Predictor(self.model)
        regions = predictor.activation.regions or {}
        maps = predict_volumes(predictor, volumes, batch_size=self.config.batch_size)
        results: dict[str, Any] = {}
        rows = zip(volumes, ids, distinct_names(ids), maps, strict=True)
        for volume, name, file, labels in tqdm(rows, total=len(volumes), desc="predicting", disable=not progress):
            results[name] = labels if out is None else _write(Path(out), file, labels, volume, list(regions))
        return results


def run_with(task: Any, config: TrainConfig) -> dict[str, Any]:
    """What a network remembers of its training: the fields of `toolkit.inference.memory.Defaults` that a task decides."""
    regions = getattr(task, "regions", None)
    return {
        "patch_size": config.patch_size or getattr(task, "patch_size", None),
        "classes": len(getattr(task, "classes", None) or ()) or None,
        "regions": regions or None,
        "activation": "sigmoid" if regions else None,
    }


def recall_scores(model: nn.Module, path: Path, record: Mapping[str, Any]) -> None:
    """Remember the score of these very weights that lies in a run's directory, for the figures of this network."""
    for split in ("val", "test"):
        for file in sorted((path / "evaluation").glob(f"{split}-*.csv")):
            if (table := _read_table(file, weights_hash(model))) is not None:
                _remember(model, _told(path, **record["config"]), record["site"], split, table)


def _told(path: Path, *, steps: int, seed: int, **_: Any) -> dict[str, Any]:
    return {"name": path.name, "steps": steps, "seed": seed}


def _remember(model: nn.Module, told: dict[str, Any], site: Any, split: str, table: DataFrame) -> None:
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


def _write(folder: Path, name: str, labels: np.ndarray, volume: Sequence[Case], regions: Sequence[str] = ()) -> Path:
    if regions:  # overlap, so that no one label map holds them: a file each
        for region, mask in zip(distinct_names(regions), labels, strict=True):
            _write(folder / name, region, mask, volume)
        return folder / name
    first = volume[0]
    if isinstance(first.reader, FunctionSource) and first.reader.kind == "picture" and labels.ndim == 2:
        return write_label_picture(folder / f"{name}.png", labels)
    path = folder / f"{name}.nii.gz"
    try:
        return write_nifti(path, labels, first.geometry, affine=first.affine, spacing=volume_spacing(volume))
    except DataError as error:
        what = f"The prediction of {first.volume!r} does not fill its volume: {error.what}"
        fix = "Predict all slices of a volume: task.cases(...) without leaving any out."
        raise DataError(what, where=path, fix=fix) from error


def _read_table(path: Path, weights: str | None = None) -> DataFrame | None:
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


def _parsed(content: str) -> DataFrame:
    import pandas as pd

    table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False).astype(object)
    for name in ("value", "diagonal"):  # float() is exact where a parser for speed need not be
        table[name] = table[name].map(lambda text: float(text or "nan")).astype(float)
    table["group"] = table["group"].where(table["group"] != "", None)
    return table
