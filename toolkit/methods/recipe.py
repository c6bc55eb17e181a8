"""`Recipe` and `Stage`: a paper's settings as data, each value with its source, and the training they describe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.modules import unwrap
from toolkit.files import absolute
from toolkit.methods.med_disseg import transfer_encoder
from toolkit.process_state import seeded
from toolkit.results import DataFrame, as_table
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory, check_empty
from toolkit.training.protocol import Objective, Regularizer, as_regularizers
from toolkit.training.run import Run
from toolkit.training.train import train_or_resume

# What a stage takes over from the one before it, by name.
TRANSFERS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {"encoder": transfer_encoder}
PARTS = ("task", "model", "objective", "regularizer", "config", "epochs", "not taken over")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value of a recipe.

    Attributes:
        part: "task" (what it was loaded with), "model", "objective", "regularizer" (of the stage's only one), "config", "epochs" (its name is then
            "epochs"), or "not taken over" for what the source does and the toolkit does otherwise.
        name: argument of that part.
        value: what the source uses; the toolkit's own value where `source` says so.
        source: section of the method's specification, for example "selfreg 5.3".
        note: why it differs, or what is not certain.
    """

    part: str
    name: str
    value: Any
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"A setting belongs to one of {PARTS}, not to {self.part!r}.")


class Stage(Mapping[str, Any]):
    """One training of a recipe; `toolkit.train(**stage)` runs it.

    As a mapping it has the keys model, task, objective, regularizer, config and stage. The network is built, under
    the stage's seed, when it is first asked for, and is the same object from then on.

    Args:
        name: short name, used for its folder.
        task: data.
        settings: values and their sources.
        model: registered name of the network.
        objective: registered name of the objective.
        regularizer: registered name, or None.
        index: position in the recipe.
        transfer: what it takes from the stage before (a key of `TRANSFERS`), or None.
        prepare: called with the network after it has been built (pre-trained weights), or None.
    """

    def __init__(
        self,
        name: str,
        task: Any,
        settings: Sequence[Setting],
        model: str,
        objective: str,
        *,
        regularizer: str | None,
        index: int = 0,
        transfer: str | None = None,
        prepare: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        self.name, self.task, self.index, self.transfer = name, task, index, transfer
        self.settings = tuple(settings)
        self._model_name, self._prepare = model, prepare
        self._model: nn.Module | None = None
        self.objective: Objective = registry.build("objective", self._recipe(objective, "objective"))
        self.regularizer: Regularizer | None = None
        if regularizer is not None:
            self.regularizer = registry.build("regularizer", self._recipe(regularizer, "regularizer"))
        self.config = TrainConfig.from_dict({**self._arguments("config"), **self._steps()})

    @property
    def model(self) -> nn.Module:
        """The network, in the state of its first weights or as a training left it."""
        return self.build() if self._model is None else self._model

    def build(self) -> nn.Module:
        """A new network with its first weights; it becomes `model`."""
        with seeded(self.config.seed):
            network: nn.Module = registry.build("model", self._recipe(self._model_name, "model"))
        if self._prepare is not None:
            self._prepare(network)
        self._model = network
        return network

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(key)
        return self.index if key == "stage" else getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(("model", "task", "objective", "regularizer", "config", "stage"))

    def __len__(self) -> int:
        return 6

    def __repr__(self) -> str:
        regularizer = None if self.regularizer is None else self.regularizer.name
        told = f"model={self._model_name!r}, regularizer={regularizer!r}, steps={self.config.steps}"
        return f"Stage({self.name!r}, {told})"

    def _arguments(self, part: str) -> dict[str, Any]:
        return {setting.name: setting.value for setting in self.settings if setting.part == part}

    def _recipe(self, name: str, part: str) -> dict[str, Any]:
        return {"name": name, "arguments": self._arguments(part)}

    def _steps(self) -> dict[str, int]:
        """Epochs as optimizer steps on this task, unless the steps are given themselves."""
        configured = self._arguments("config")
        epochs = self._arguments("epochs").get("epochs")
        if epochs is None or "steps" in configured:
            return {}
        batch = int(configured.get("batch_size", TrainConfig.batch_size))
        return {"steps": int(epochs) * max(1, -(-len(self.task.cases("train")) // batch))}


@dataclasses.dataclass(eq=False)
class Recipe:
    """The settings of one paper on a task.

    Attributes:
        name: of the method.
        paper: what it follows.
        stages: trainings in order.
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]

    def table(self) -> DataFrame:
        """Every setting: stage, part, name, value, source (section of the method's specification), note."""
        rows = [{"stage": stage.name, **vars(one)} for stage in self.stages for one in stage.settings]
        return as_table(rows, columns=["stage", "part", "name", "value", "source", "note"])

    def train(self, out: str | os.PathLike[str], *, progress: bool = True) -> list[Run]:
        """Train every stage in a folder of its own below `out`; a stopped recipe goes on where it was.

        Each stage starts from its first weights, and then takes over what its transfer rule says from the selected
        weights of the stage before.

        Returns:
            One run a stage; the last one's `model` is the result.

        Raises:
            ConfigError, CheckpointError: see `toolkit.train` and `toolkit.resume`.
        """
        runs: list[Run] = []
        folders = [f"stage-{stage.index + 1}-{stage.name}" for stage in self.stages]
        root = absolute(out)
        check_empty(root, besides=folders)
        for stage, name in zip(self.stages, folders, strict=True):
            folder = root / name
            network = stage.build()
            if stage.transfer is not None and not RunDirectory(folder).exists():
                TRANSFERS[stage.transfer](unwrap(runs[-1].model), network)
            parts = (network, stage.task, stage.objective, as_regularizers(stage.regularizer), stage.config)
            runs.append(train_or_resume(folder, *parts, progress=progress, stage=stage.index))
        return runs


def several(part: str, source: str, note: str = "", /, **values: Any) -> list[Setting]:
    """Settings of one part that share their source."""
    return [Setting(part, name, value, source, note) for name, value in values.items()]


def left_out(source: str, note: str = "", /, **values: Any) -> list[Setting]:
    """What the source does and the toolkit does not."""
    return several("not taken over", source, note, **values)


def fitting(task: Any, *names: str) -> list[Setting]:
    """What the task decides about its network: channels, classes and, if it is named, `dims`."""
    own = {"in_channels": task.channels, "out_channels": len(task.classes), "dims": task.dims}
    return several("model", "the task", **{name: own[name] for name in ("in_channels", "out_channels", *names)})


def replaced(settings: Sequence[Setting], **changes: Mapping[str, Any] | None) -> list[Setting]:
    """The settings with some values of a part, such as `config`, changed by the caller; the source then says so."""
    merged = {(setting.part, setting.name): setting for setting in settings}
    for part, values in changes.items():
        for name, value in (values or {}).items():
            merged[part, name] = Setting(part, name, value, "chosen by the caller")
    return list(merged.values())
