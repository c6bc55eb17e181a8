"""Studies on real engines with two workers: the page's own code, equal to the serial study, and a killed worker."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context, set_forkserver_preload
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dying_network import Dying

import toolkit as tk
from toolkit.data.task import Task
from toolkit.errors import ToolkitError
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
