"""Ready callables for `tk.train(on_log=...)`: TensorBoard, Weights & Biases and MLflow, none of them needed by the toolkit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.errors import library


class tensorboard:
    """Writes rows and pictures for `tensorboard --logdir folder`.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        library("tensorboard", "This logger needs")
        events = library("torch.utils.tensorboard", "This logger needs", "tensorboard")
        self.writer = events.SummaryWriter(os.fspath(folder))

    def __call__(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.writer.add_image(f"prediction/{name}", image, step, dataformats="HWC")


class wandb:
    """Logs rows and pictures to a Weights & Biases run, which ends with the process or with `run.finish()`.

    Args:
        **settings: of `wandb.init`, for example project="hearts", mode="offline".
    """

    def __init__(self, **settings: Any) -> None:
        self.library = library("wandb", "This logger needs")
        self.run = self.library.init(**settings)

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.run.log(_numbers(row), step=row["step"])

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.run.log({f"prediction/{name}": self.library.Image(image) for name, image in images.items()}, step=step)


class mlflow:
    """Logs rows and pictures to an MLflow run, which ends with the process or with `mlflow.end_run()`.

    Args:
        uri: of the tracking server or store, for example "sqlite:///mlflow.db"; None = MLflow's own setting.
        experiment: name of the experiment; None = the default one.
        **settings: of `mlflow.start_run`, for example run_name="segreg".
    """

    def __init__(self, uri: str | None = None, experiment: str | None = None, **settings: Any) -> None:
        self.library = library("mlflow", "This logger needs")
        if uri is not None:
            self.library.set_tracking_uri(uri)
        if experiment is not None:
            self.library.set_experiment(experiment)
        self.run = self.library.start_run(**settings)

    def __call__(self, row: Mapping[str, Any]) -> None:
        numbers = {name.replace("/", "."): value for name, value in _numbers(row).items()}  # a name may be a file there
        self.library.log_metrics(numbers, step=row["step"], run_id=self.run.info.run_id)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            file = f"predictions/{name.replace('/', '-')}-{step:08d}.png"
            self.library.MlflowClient().log_image(self.run.info.run_id, image, file)  # another one may be active


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row but its step and stage; a name tells where each belongs ("segmentation/dice")."""
    values = {name: value for name, value in row.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    return {name: float(value) for name, value in values.items() if name not in ("step", "stage")}
