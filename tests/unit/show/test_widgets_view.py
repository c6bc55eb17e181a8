"""The ipywidgets page of an explorer, driven as the browser drives it, and the monitor of a run."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from canvases import area_of, centre_of
from PIL import Image

import toolkit as tk
from toolkit.errors import CheckpointError
from toolkit.show.widgets import monitor as monitor_module
from toolkit.show.widgets.mask import MaskExplorer
from toolkit.training.directory import RunDirectory


@pytest.fixture
def explorer() -> MaskExplorer:
    torch.manual_seed(0)
    return tk.widgets.mask_explorer(tk.unet(1, 3, channels=(4, 8)), torch.randn(3, 1, 32, 32))


def test_the_page_follows_python(explorer: MaskExplorer) -> None:
    view = explorer.view.explorer_view
    before = view.picture.value
    explorer.set(fraction=0.9, soft=False, scheme="spatial")
    assert view.controls["fraction"].value == 0.9
    assert view.controls["scheme"].value == "spatial"
    assert view.controls["soft"].value is False
    assert view.picture.value != before
    assert view.picture.value == explorer.compose().encode()[0]


def test_python_follows_the_page(explorer: MaskExplorer) -> None:
    view = explorer.view.explorer_view
    view.controls["seed"].value = 7
    view.controls["case"].value = view.controls["case"].options[1][1]
    assert explorer.state["seed"] == 7
    assert explorer.state["case"] == view.controls["case"].value


def test_clicks_and_keys_come_through(explorer: MaskExplorer) -> None:
    explorer.set(fraction=0.0)
    view = explorer.view.explorer_view
    x, y = centre_of(area_of(explorer.compose(), "code"), 0, 1)
    view._from_picture(None, {"kind": "click", "x": x, "y": y}, [])
    assert explorer.by_hand == {1: 0.0}
    view._from_picture(None, {"kind": "key", "key": "ArrowRight"}, [])
    view._from_picture(None, {"kind": "key", "key": " "}, [])
    assert explorer.by_hand == {1: 0.0, 2: 0.0}


def test_an_error_becomes_a_line_and_the_control_goes_back(explorer: MaskExplorer) -> None:
    view = explorer.view.explorer_view
    view._guarded(lambda: explorer.set(seed=1000))
    assert "no value of seed" in view.message.value
    assert view.controls["seed"].value == explorer.state["seed"] == 0
    view.controls["seed"].value = 3
    assert view.message.value == ""


def test_the_stop_of_a_slider_follows_the_state(explorer: MaskExplorer) -> None:
    view = explorer.view.explorer_view
    explorer.set(fraction=1.0).set(scheme="dropout")
    assert view.controls["fraction"].max == 0.95
    assert view.controls["fraction"].value == 0.95


def test_wheel_drag_and_cursor_come_through(explorer: MaskExplorer) -> None:
    view = explorer.view.explorer_view
    x, y = centre_of(area_of(explorer.compose(), "tile 0 66"))
    before = view.picture.value
    view._from_picture(None, {"kind": "wheel", "x": x, "y": y, "steps": 3}, [])
    assert view.picture.value != before
    assert explorer.lens[2] == pytest.approx(1.25**-3)
    view._from_picture(None, {"kind": "drag", "from": {"x": x, "y": y}, "to": {"x": x + 20, "y": y}}, [])
    assert explorer.lens[1] < (1 - explorer.lens[2]) / 2
    view._from_picture(None, {"kind": "hover", "x": x, "y": y}, [])
    assert view.picture.readout.startswith("row ")
    view._from_picture(None, {"kind": "hover", "x": -1, "y": -1}, [])
    assert view.picture.readout == ""


def test_the_controls_stand_in_one_row_of_groups(explorer: MaskExplorer) -> None:
    row = explorer.view.children[1]
    assert [group.children[0].value for group in row.children] == [
        "<small>image</small>",
        "<small>mask</small>",
        "<small>network and drawing</small>",
    ]


def test_one_page_for_one_explorer(explorer: MaskExplorer) -> None:
    assert explorer.view is explorer.view


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Folder of a run of two steps on arrays."""
    task = tk.task_from_arrays(
        [torch.randn(16, 16).numpy() for _ in range(4)],
        [torch.ones(16, 16, dtype=torch.uint8).numpy() for _ in range(4)],
        classes={0: "background", 1: "all"},
        splits=["train", "train", "val", "val"],
    )
    config = tk.TrainConfig(
        steps=2, batch_size=2, validate_every=2, checkpoint_every=2, log_every=1, augmentation="none"
    )
    tk.train(tk.unet(1, 2, channels=(4, 8)), task, config=config, out=tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_the_monitor_reads_what_is_written(run_folder: Path) -> None:
    monitor = tk.widgets.training_monitor(run_folder)
    assert (monitor.condition, monitor.step, monitor.running) == ("finished", 2, False)
    box = monitor.extra_views()[0]
    button, figure = box.children
    for thread in threading.enumerate():  # its one look at a run that has ended
        if thread.name.startswith("monitor of"):
            thread.join()
    assert button.disabled
    assert button.description == "Finished"
    logged = [json.loads(line) for line in (run_folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    total = [row["total"] for row in logged if "total" in row]
    assert list(figure.data[0].y) == pytest.approx(total)
    monitor.refresh()
    assert monitor.refresh() is False
    with (run_folder / "history.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**logged[0], "step": 3, "total": 0.5}) + "\n")
    assert monitor.refresh() is True
    figure = box.children[1]
    assert figure.data[0].y[-1] == 0.5
    assert figure.layout.xaxis.range is None, "the axis ends where the run is"
    monitor.set(logarithmic=True, parts=["scores"])
    assert figure.layout.yaxis.type == "log"
    assert [trace.visible for trace in figure.data] == [trace.name.startswith("dice") for trace in figure.data]
    assert len(monitor.static_pictures()) == 2
    saved = Image.open(io.BytesIO(monitor.save(run_folder / "monitor.png").read_bytes()))
    assert saved.height > monitor.compose().size[1] + 100, "with the curves"
    monitor.stop()  # nobody trains it: nothing happens
    assert monitor.condition == "finished"


def test_a_slow_look_does_not_bring_back_what_an_earlier_one_saw(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that watches had read the old rows; a look at the new ones ended before it."""
    monitor = tk.widgets.training_monitor(run_folder)
    read, reading, go_on = monitor_module.read_history, threading.Event(), threading.Event()

    def slow(path: Path) -> Any:
        rows = read(path)
        if threading.current_thread() is first:
            reading.set()
            go_on.wait()
        return rows

    monkeypatch.setattr(monitor_module, "read_history", slow)
    first, second = threading.Thread(target=monitor.refresh), threading.Thread(target=monitor.refresh)
    first.start()
    reading.wait()
    with (run_folder / "history.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": 3, "event": "train", "total": 0.5}) + "\n")
    second.start()
    second.join(0.5)  # it may wait for the first
    go_on.set()
    first.join()
    second.join()
    assert monitor.step == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        tk.widgets.training_monitor(tmp_path)


def test_an_error_that_is_not_the_toolkits_is_said_and_raised(
    explorer: MaskExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, for example: the page would go on to show the picture of other settings without a word."""
    view, calls = explorer.view.explorer_view, []

    def fails(*_: object) -> None:
        calls.append(1)
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(explorer, "draw", fails)
        with pytest.raises(OSError, match="no space left"):
            view.controls["seed"].value = 9
        assert "no space left" in view.message.value
        tried = len(calls)
        view._from_picture(None, {"kind": "hover", "x": 100.0, "y": 100.0}, [])
        assert len(calls) == tried, "the cursor does not try again what failed"
    view.controls["seed"].value = 10
    assert view.message.value == ""


def test_the_steps_of_a_slider_follow_the_image() -> None:
    images = [{"image": scale * torch.rand(1, 32, 32), "id": str(scale)} for scale in (1000.0, 1.0)]
    explorer = tk.widgets.mask_explorer(tk.unet(1, 2, channels=(4, 8)), images)
    view = explorer.view.explorer_view
    explorer.set(case="1.0")
    assert view.controls["window"].step == pytest.approx(0.005, rel=0.05)
    assert view.controls["level"].max < 1.01


def test_the_monitor_stops_whoever_trains_now(run_folder: Path) -> None:
    """The process that began the run has ended, another one has resumed it."""
    began = subprocess.Popen([sys.executable, "-c", ""])
    began.wait()
    resumed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        monitor = tk.widgets.training_monitor(run_folder)
        monitor.process = began
        RunDirectory(run_folder).set_state("running", resumed.pid)
        assert monitor.condition == "running"
        monitor.stop()
        assert resumed.wait(timeout=20) == -signal.SIGTERM
        assert monitor.condition != "stopping"
    finally:
        resumed.kill()
        resumed.wait()


def test_other_channels_do_not_darken_the_one_that_is_shown() -> None:
    image = torch.rand(2, 32, 32)
    image[1] *= 1000
    explorer = tk.widgets.mask_explorer(tk.unet(2, 2, channels=(4, 8)), {"image": image, "id": "two"})
    assert max(control.high for control in explorer.controls() if control.name == "level") < 1.01
