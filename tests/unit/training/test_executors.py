"""Studies on real engines with two workers: the page's own code, equal to the serial study, and a killed worker."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, set_forkserver_preload
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dying_network import Dying

import toolkit as tk
from toolkit.data.task import Task
from toolkit.errors import ToolkitError
from toolkit.inference.executors import hand_out
from toolkit.training.directory import RunDirectory

PAGE = Path(__file__).parents[3] / "docs" / "how_to" / "clusters.md"
CONFIG = tk.TrainConfig(steps=4, batch_size=4, checkpoint_every=2, validate_every=0, select="last", log_every=1)
BLOCKS = {
    re.search(r'out="runs/(\w+)"', code)[1]: code  # type: ignore[index]
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if "tk.compare" in code
}


set_forkserver_preload(["lightning_fabric", "pandas", "toolkit.training.study"])  # imported once for all workers


@pytest.fixture
def settings(discs: Task) -> dict[str, Any]:
    model = {"model": lambda: tk.unet(1, 2, channels=(4, 8))}
    return {"arms": {"plain": None}, "task": discs, "config": CONFIG, "seeds": (0, 1), "progress": False, **model}


@pytest.fixture(scope="module")
def serial(discs: Task, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    model = {"model": lambda: tk.unet(1, 2, channels=(4, 8))}
    out = tmp_path_factory.mktemp("serial") / "study"
    return tk.compare({"plain": None}, task=discs, config=CONFIG, seeds=(0, 1), out=out, progress=False, **model).scores


def test_the_page_has_a_screen_and_four_engines() -> None:
    assert set(BLOCKS) == {"processes", "loky", "dask", "slurm"}
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 65


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", sorted(BLOCKS))
def test_the_code_of_the_page_gives_the_serial_numbers(
    engine: str, settings: dict[str, Any], serial: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(PAGE.parents[2]), str(Path(__file__).parents[2] / "support")])
    )
    names: dict[str, Any] = {"tk": tk, "settings": settings}
    exec(BLOCKS[engine], names)
    pd.testing.assert_frame_equal(names["study"].scores, serial)
    pids = {RunDirectory(run).state()["process"] for run in names["study"].runs["plain"].values()}
    assert os.getpid() not in pids


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_is_replaced_and_its_training_goes_on(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(name: str, executor: Any) -> tk.Study:
        marker = str(tmp_path / "marker")
        return tk.compare(**{**settings, "model": lambda: Dying(marker, 4)}, out=tmp_path / name, executor=executor)

    pools: list[ProcessPoolExecutor] = []

    def pool() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(2, get_context("forkserver")))
        return pools[-1]

    spread = run("spread", pool)
    assert len(pools) == 2
    assert (tmp_path / "marker").is_file()
    histories = [pd.read_json(Path(run) / "history.jsonl", lines=True) for run in spread.runs["plain"].values()]
    assert all(list(history["step"]) == [1, 2, 3, 4] for history in histories)
    pd.testing.assert_frame_equal(spread.scores, run("serial", None).scores)
    for each in pools:
        each.shutdown()


class Broken(Executor):
    """Loses every worker."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor("out of memory"))
        return future


def test_a_study_gives_up_with_the_way_to_go_on(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"Workers were lost 4 times \(BrokenExecutor: out of memory\)"):
        tk.compare(**settings, out=tmp_path / "x", executor=Broken())


def _between(folder: str) -> None:
    """Leave a file that holds when this began and when it ended."""
    begun = time.monotonic()
    time.sleep(0.3)
    descriptor, _ = tempfile.mkstemp(dir=folder)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(f"{begun} {time.monotonic()}")


@pytest.mark.parametrize(("threads", "most"), [(1, 2), (2, 1), (5, 1), (None, 3)])
def test_a_pool_of_processes_gets_no_more_trainings_at_a_time_than_cores(
    threads: int | None, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    with ProcessPoolExecutor(3, get_context("forkserver")) as pool:
        list(pool.map(time.sleep, [0.5] * 3))  # all three processes are there
        hand_out([partial(_between, str(tmp_path))] * 6, pool, "compare", "trainings", threads)
    spans = [tuple(map(float, file.read_text().split())) for file in tmp_path.iterdir()]
    assert len(spans) == 6
    assert max(sum(begun <= start < ended for begun, ended in spans) for start, _ in spans) == most


def test_an_error_ends_the_study_before_the_trainings_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    with ProcessPoolExecutor(2, get_context("forkserver")) as pool:
        jobs = [partial(int, "no number"), *[partial(_between, str(tmp_path))] * 5]
        with pytest.raises(ValueError, match="no number"):
            hand_out(jobs, pool, "compare", "trainings", 1)
    assert len(list(tmp_path.iterdir())) <= 1
