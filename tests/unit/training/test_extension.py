"""Classes of a user's own: stored by where they were defined, found again, and never replaced by their parents."""

from __future__ import annotations

import dataclasses
import importlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import monai.losses
import pytest
import torch
from torch import nn
from torch.nn import functional

import toolkit as tk
from toolkit import registry
from toolkit.errors import CheckpointError, ConfigError, ToolkitWarning
from toolkit.models.unet import UNet
from toolkit.training import background
from toolkit.training.segmentation import LossObjective
from toolkit.training.serialization import describe, origin_of, restore

MINE = """
import dataclasses
import toolkit as tk

@dataclasses.dataclass(frozen=True)
class Mine(tk.SegReg):
    bend: float = 2.0

class Loss(tk.SegmentationObjective):
    pass

class Plain(tk.Regularizer):
    name = "plain"
    def __init__(self, strength, tap="head_input"):
        self.strength, self.tap = strength, tap

@tk.register("model", "extension_net")
def net(width):
    return tk.unet(1, 2, channels=(width, 8))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "own_extension.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("own_extension")
    sys.modules.pop("own_extension", None)
    registry._FACTORIES["model"].pop("extension_net", None)


def forgotten() -> None:
    """As in a new process."""
    sys.modules.pop("own_extension", None)
    registry._FACTORIES["model"].pop("extension_net", None)
    importlib.invalidate_caches()


def rebuilt(kind: str, entry: Any) -> Any:
    key = "regularizers" if kind == "regularizer" else kind
    recorded = {key: [entry] if kind == "regularizer" else entry}
    found = restore(recorded, {}, "a run", only=(key,))[key]
    return found[0] if kind == "regularizer" else found


def test_a_subclass_comes_back_as_itself_in_a_process_that_has_not_imported_it(mine: ModuleType) -> None:
    stored = describe("regularizer", mine.Mine(weight=0.3, bend=5.0))
    loss = describe("objective", mine.Loss(dice=0.5))
    plain = describe("regularizer", mine.Plain(3, tap="bottleneck"))
    model = describe("model", mine.net(4))
    forgotten()
    again = rebuilt("regularizer", stored)
    assert type(again).__name__ == "Mine"
    assert (again.weight, again.bend) == (0.3, 5.0)
    assert type(rebuilt("objective", loss)).__name__ == "Loss"
    assert (rebuilt("regularizer", plain).strength, rebuilt("regularizer", plain).tap) == (3, "bottleneck")
    assert model["name"] == "extension_net"
    assert rebuilt("model", model).channels == (4, 8)


def test_a_file_that_is_neither_the_recorded_one_nor_equal_to_it_is_not_imported(
    mine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = describe("regularizer", mine.Mine(weight=0.3))
    forgotten()
    (tmp_path / "own_extension.py").write_text(MINE + "\n# changed\n")
    with pytest.warns(ToolkitWarning, match="has changed since"):
        assert type(rebuilt("regularizer", stored)).__name__ == "Mine"
    forgotten()
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_extension.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(
        CheckpointError, match=r"regularizer=Mine\(weight=0.3, .*must be passed|passed again: regularizer=Mine"
    ):
        rebuilt("regularizer", stored)
    assert not (tmp_path / "executed").exists()
    (other / "own_extension.py").write_text(MINE)  # the run moved to another machine
    assert type(rebuilt("regularizer", stored)).__name__ == "Mine"


def test_a_record_cannot_name_anything_but_a_regularizer() -> None:
    entry = {**(origin_of(Path) or {}), "arguments": {}}
    with pytest.raises(CheckpointError, match="is not a Regularizer"):
        rebuilt("regularizer", entry)


def test_what_has_no_name_to_find_is_asked_for() -> None:
    @dataclasses.dataclass(frozen=True)
    class Hidden(tk.SegReg):
        pass

    class Wider(UNet):
        pass

    assert "Hidden" in describe("regularizer", Hidden())["foreign"]
    assert "Wider" in describe("model", Wider(1, 2, (4, 8), 2, "instance"))["foreign"]
    assert describe("regularizer", tk.SegReg())["name"] == "segreg"
    assert describe("model", tk.unet(1, 2, channels=(4, 8)))["arguments"]["channels"] == [4, 8]


def test_a_registered_name_belongs_to_one_class() -> None:
    with pytest.raises(ConfigError, match=r"belongs to toolkit\.methods.segreg\.regularizer:SegReg"):

        @tk.register("regularizer", "segreg")
        class Other(tk.Regularizer):
            pass


LOGITS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABEL = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(2))
ONE_HOT = functional.one_hot(LABEL[:, 0], 3).movedim(-1, 1).float()


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (nn.CrossEntropyLoss(), LABEL[:, 0]),
        (functional.cross_entropy, LABEL[:, 0]),
        (nn.BCEWithLogitsLoss(), ONE_HOT),
        (monai.losses.DiceLoss(softmax=True, to_onehot_y=True), LABEL),
        (monai.losses.DiceLoss(softmax=True), ONE_HOT),
        (monai.losses.DiceCELoss(softmax=True, to_onehot_y=True), LABEL),
        (monai.losses.FocalLoss(to_onehot_y=True), LABEL),
        (monai.losses.TverskyLoss(softmax=True, to_onehot_y=True), LABEL),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_loss_of_torch_or_monai_gets_the_labels_it_takes(loss: Any, label: torch.Tensor) -> None:
    terms = LossObjective(loss)(LOGITS, {"label": LABEL})
    assert terms["loss"].item() == pytest.approx(loss(LOGITS, label).item(), rel=1e-6)


def test_a_loss_on_a_task_with_regions_gets_their_masks_or_is_refused() -> None:
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    label = torch.arange(32).reshape(2, 1, 4, 4) % 4
    masks = torch.cat([label > 0, (label == 1) | (label == 3)], 1)  # whole = 1, 2, 3; core = 1, 3
    batch = {"label": label, "regions": masks.float()}
    value = LossObjective(nn.BCEWithLogitsLoss())(logits, batch)["loss"].item()
    assert value == pytest.approx(nn.functional.binary_cross_entropy_with_logits(logits, masks.float()).item())
    soft = monai.losses.DiceLoss(sigmoid=True)
    assert LossObjective(soft)(logits, batch)["loss"].item() == pytest.approx(soft(logits, masks.float()).item())
    one_hot = monai.losses.DiceLoss(to_onehot_y=True, sigmoid=True)
    for exclusive in (nn.CrossEntropyLoss(), monai.losses.DiceLoss(softmax=True), one_hot):
        with pytest.raises(ConfigError, match="regions, which overlap"):
            LossObjective(exclusive)(logits, batch)
    with pytest.raises(ConfigError, match="3 outputs, the task 2 regions"):
        LossObjective(nn.BCEWithLogitsLoss())(logits.repeat(1, 2, 1, 1)[:, :3], batch)


def test_a_term_without_weight_is_named() -> None:
    class Mine(tk.SegReg):
        def __call__(self, context: tk.StepContext) -> dict[str, torch.Tensor]:
            return {"mine": context.features["head_input"].mean()}

    step = tk.TrainingStep(tk.unet(1, 2, channels=(4, 8)), tk.SegmentationObjective(), [Mine()])
    batch = {"image": torch.rand(1, 1, 16, 16), "label": torch.zeros(1, 1, 16, 16, dtype=torch.long)}
    with pytest.raises(tk.ProtocolError, match=r"returns the terms \['mine'\], weights\(\) names \['epps_pulley'\]"):
        step(batch)


def test_losses_that_give_no_number_and_things_that_are_no_loss_are_refused() -> None:
    with pytest.raises(ConfigError, match="reduction"):
        LossObjective(nn.CrossEntropyLoss(reduction="none"))(LOGITS, {"label": LABEL})
    with pytest.raises(ConfigError, match="Call the class first"):
        tk.TrainingStep(nn.Identity(), nn.CrossEntropyLoss)  # type: ignore[arg-type]


def test_settings_of_a_loss_are_compared_when_it_is_passed_again() -> None:
    stored = describe("objective", LossObjective(monai.losses.DiceLoss(softmax=True, to_onehot_y=True)))
    recorded = {"objective": stored}
    with pytest.raises(CheckpointError, match=r"objective=monai\.losses\.dice\.DiceLoss"):
        restore(recorded, {}, "a run", only=("objective",))
    same = monai.losses.DiceLoss(softmax=True, to_onehot_y=True)
    assert restore(recorded, {"objective": same}, "a run", only=("objective",))["objective"].loss is same
    with pytest.raises(CheckpointError, match="is not the one of this run"):
        restore(recorded, {"objective": monai.losses.DiceLoss(sigmoid=True)}, "a run", only=("objective",))


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
import toolkit as tk

class Mine(tk.SegReg):
    name = "mine"
    def __call__(self, context):
        return {"epps_pulley": 3 * super().__call__(context)["epps_pulley"]}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
    def forward(self, x):
        return self.head(self.body(x).relu())

torch.manual_seed(0)
images = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
task = tk.task_from_arrays(list(images), list((images > 0.5).astype(np.uint8)), classes={0: "background", 1: "bright"})
config = tk.TrainConfig(steps=3, batch_size=2, validate_every=0, log_every=1, checkpoint_every=1)
for background in (True, False):
    out = Path(sys.argv[1]) / str(background)
    torch.manual_seed(0)
    run = tk.train(Net(), task, nn.CrossEntropyLoss(), Mine(samples=200), config, out=out, background=background, progress=False)
    run.wait(100)
    print(run.history["mine/epps_pulley"].dropna().tolist())
print(type(tk.resume(out, model=Net(), task=task, objective=nn.CrossEntropyLoss(), progress=False).regularizers[0]).__name__)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_trains_its_own_classes_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=background.environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    child, here, name = done.stdout.splitlines()
    assert child == here
    assert child.startswith("[")
    assert name == "Mine"


def test_an_open_file_cannot_be_handed_to_a_child(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(ConfigError, match="The objective cannot be handed to a child process"),
    ):
        background.packed({"objective": LossObjective(lambda logits, label: file and logits.mean())})


NOTEBOOK = """
import subprocess, sys
import toolkit as tk
from toolkit.training import background

@tk.register("regularizer", "of_a_notebook")
class Mine(tk.SegReg):
    def weights(self, step):
        return {"epps_pulley": 3.0}

parcel = background.packed({"regularizer": Mine(samples=10)})
sys.stdout.buffer.write(parcel)
"""


@pytest.mark.slow
def test_what_is_registered_at_a_prompt_goes_with_the_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", NOTEBOOK]
    parcel = subprocess.run(
        command, env=background.environment(), stdout=subprocess.PIPE, timeout=200, check=True
    ).stdout
    monkeypatch.setattr(registry, "_FACTORIES", {kind: dict(named) for kind, named in registry._FACTORIES.items()})
    regularizer = background.received(io.BytesIO(parcel))["regularizer"]
    assert regularizer.weights(0) == {"epps_pulley": 3.0}
    assert describe("regularizer", regularizer)["name"] == "of_a_notebook"
