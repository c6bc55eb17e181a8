"""Extraction over the workers of an executor: the bytes of one process, and nothing lost with a worker."""

from __future__ import annotations

import re
import types
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context, set_forkserver_preload
from pathlib import Path
from typing import Any

import pytest
import torch
from dying_network import Dying

import toolkit as tk
from toolkit.inference.extract import extract

PAGE = Path(__file__).parents[3] / "docs" / "how_to" / "clusters.md"
set_forkserver_preload(["zarr", "pandas", "toolkit.inference.extract"])  # imported once for all workers


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return tk.unet(1, 3, channels=(4, 8)).eval()


def images(count: int = 19) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(1)
    return [
        {"image": torch.randn(1, 16, 16, generator=random), "label": torch.randint(0, 3, (16, 16), generator=random)}
        for _ in range(count)
    ]


def page() -> dict[str, str]:
    """The page's code of every engine as it extracts: its own call for processes, the study's executor for the others."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (own,) = (block for block in blocks if "extract" in block)
    (call,) = re.findall(r"tk.extract\(.*?, executor=", own)
    studies = (re.subn(r'tk.compare\(\*\*settings, out="runs/\w+", executor=', call, block) for block in blocks)
    others = {re.findall(r"import (\w+)", code)[-1]: code for code, count in studies if count}
    return {"processes": own} | {name: code for name, code in others.items() if name != "get_context"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", sorted(page()))
def test_two_workers_write_the_bytes_of_one_process(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the page on clusters, as it is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[2]))
    task = types.SimpleNamespace(cases=images)
    names = {"tk": tk, "model": network(), "task": task, "ProcessPoolExecutor": ProcessPoolExecutor}
    exec(page()[engine], names | {"get_context": get_context})
    extract(network(), images(), ["bottleneck"], out="one.zarr")
    assert content(Path("one.zarr")) == content(Path("runs/features.zarr"))
    both = tk.open_features("runs/features.zarr")
    assert list(both.images["case"]) == [f"image{index:04d}" for index in range(19)]
    assert {path.name for path in Path("runs").iterdir()} <= {"features.zarr", "slurm-logs"}


def test_the_page_has_four_engines() -> None:
    assert len(page()) == 4


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_part_done_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, pools = Dying(str(tmp_path / "marker"), 2, training=False).eval(), []

    def pool() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(2, get_context("forkserver")))
        return pools[-1]

    extract(
        model, images(66), ["conv"], batch_size=2, out=tmp_path / "two.zarr", executor=pool
    )  # 2 batches a part, 17 parts
    for each in pools:
        each.shutdown()
    assert (tmp_path / "marker").is_file()
    assert len(pools) == 2
    extract(model, images(66), ["conv"], batch_size=2, out=tmp_path / "one.zarr")
    assert content(tmp_path / "one.zarr") == content(tmp_path / "two.zarr")


class Here(Executor):
    """Runs every job at once, in this process."""

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except tk.DataError as error:
            future.set_exception(error)
        return future


class Counting(torch.nn.Conv2d):
    """Counts its passes for all copies of itself, and fails at one."""

    passes, fail_at = 0, 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        type(self).passes += 1
        if type(self).passes == self.fail_at:
            raise RuntimeError("the disk of this worker is full")
        return super().forward(image)


def test_the_same_call_runs_only_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = torch.nn.Sequential(Counting(1, 2, 1)), tmp_path / "features.zarr"
    settings: dict[str, Any] = {"batch_size": 1, "out": out, "executor": Here()}
    monkeypatch.setattr(Counting, "passes", 0)
    monkeypatch.setattr(Counting, "fail_at", 4)
    with pytest.raises(tk.DataError, match="disk of this worker"):
        extract(model, images(5), ["0"], **settings)
    assert not out.exists()
    assert len(list((tmp_path / ".features.zarr.parts").glob("*.zarr"))) == 4
    before = Counting.passes
    first = extract(model, images(5), ["0"], **settings)
    assert Counting.passes - before == 2  # of one image of five: the size is tried, then its features are taken
    assert torch.equal(first.rows("0"), extract(model, images(5), ["0"], batch_size=1).rows("0"))


def test_parts_of_other_inputs_are_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = torch.nn.Sequential(Counting(1, 2, 1)), tmp_path / "features.zarr"
    settings: dict[str, Any] = {"batch_size": 1, "out": out, "executor": Here()}
    monkeypatch.setattr(Counting, "passes", 0)
    monkeypatch.setattr(Counting, "fail_at", 4)
    with pytest.raises(tk.DataError):
        extract(model, images(5), ["0"], **settings)
    changed = [{**one, "image": one["image"] + 1} for one in images(5)]
    second = extract(model, changed, ["0"], **settings)
    assert torch.equal(second.rows("0"), extract(model, changed, ["0"], batch_size=1).rows("0"))


@pytest.mark.parametrize(("inputs", "more"), [(iter(images(2)), {"out": "x.zarr"}), (images(2), {})])
def test_what_cannot_be_split_is_refused(inputs: Any, more: dict[str, Any]) -> None:
    with pytest.raises(tk.ConfigError, match="list of inputs and a store"):
        extract(network(), inputs, ["bottleneck"], executor=Here(), **more)
