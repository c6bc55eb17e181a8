"""Batches come in order, with the same bits whoever prepares them, and errors come at their own step."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from toolkit.data.loader import Loader
from toolkit.data.table import task_from_arrays
from toolkit.errors import DataError
from toolkit.training.config import TrainConfig
from toolkit.training.engine import share_of, worker_count
from toolkit.training.loop import Feed


def loader(dims: int = 2, augmentation: str = "standard", patch: int = 12) -> Loader:
    drawn = np.random.default_rng(0)
    images = [drawn.standard_normal((20,) * dims).astype(np.float32) for _ in range(5)]
    labels = [drawn.integers(0, 3, (20,) * dims).astype(np.uint8) for _ in range(5)]
    task = task_from_arrays(images, labels, classes=["b", "x", "y"], splits="train", dims=dims, flips=(0,))
    return task.loader("train", batch_size=4, patch_size=(patch,) * dims, augmentation=augmentation, seed=2)


def feed(source: Any, steps: int = 9, workers: int | None = 2, **options: Any) -> Feed:
    return Feed(source, Fabric(accelerator="cpu"), TrainConfig(steps=steps, workers=workers, device="cpu"), **options)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("toolkit-batch")]


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    pairs = [(first[key], second[key]) for key in second]
    return set(first) == set(second) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("on_device", [False, True])
def test_every_batch_is_the_loaders_own(workers: int, on_device: bool) -> None:
    for settings in ({}, {"augmentation": "none"}, {"augmentation": "geometry-label-before"}, {"dims": 3}):
        source, reference = loader(**settings), loader(**settings)
        ahead = feed(source, workers=workers, on_device=on_device)
        assert all(same(ahead.batch(step), reference.batch(step)) for step in range(9))
        ahead.close()
    assert threads() == []


def test_a_run_may_begin_anywhere_and_nothing_is_prepared_beyond_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, step: (asked.append(step), whole(self, step))[1])
    source = loader()
    ahead = feed(source, steps=9, workers=2)
    batches = [ahead.batch(step) for step in (6, 7, 8)]
    ahead.close()
    assert sorted(asked) == [6, 7, 8]
    assert all(same(batch, whole(source, step)) for batch, step in zip(batches, (6, 7, 8), strict=True))


def test_an_error_comes_at_its_own_step_and_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Loader.batch

    def batch(self: Loader, step: int) -> dict[str, Any]:
        if step == 3:
            raise DataError("The file is damaged.", where="case003.nii")
        return whole(self, step)

    monkeypatch.setattr(Loader, "batch", batch)
    ahead = feed(loader())
    for step in range(3):
        ahead.batch(step)
    with pytest.raises(DataError, match=r"case003\.nii"):
        ahead.batch(3)
    ahead.close()
    assert threads() == []


def test_batches_are_ready_while_the_step_sleeps() -> None:
    """A loader of 20 ms and a step of 30 ms without the CPU: nobody waits but for the first batch."""

    class Slow:
        ahead = True

        def batch(self, step: int) -> dict[str, Any]:
            time.sleep(0.02)
            return {"image": torch.zeros(1), "case": [str(step)]}

    ahead = feed(Slow(), steps=12, workers=1)
    ahead.batch(0)
    waited = 0.0
    for step in range(1, 12):
        time.sleep(0.03)
        started = time.perf_counter()
        assert ahead.batch(step)["case"] == [str(step)]
        waited += time.perf_counter() - started
    ahead.close()
    assert waited < 0.1  # one after the other would be 0.22


def test_a_foreign_loader_is_asked_in_this_process_unless_the_run_says_otherwise() -> None:
    class Foreign:
        def batch(self, step: int) -> dict[str, Any]:
            return {"image": torch.rand(2), "thread": threading.current_thread().name}

    for workers, name in ((None, "MainThread"), (1, "toolkit-batch_0")):
        ahead = feed(Foreign(), workers=workers)
        assert ahead.batch(0)["thread"] == name
        ahead.close()


def test_a_share_of_a_drawn_batch_finishes_to_the_share_of_the_batch() -> None:
    for settings in ({}, {"dims": 3}, {"patch": 900}):  # noise beyond the fixed sequence is drawn afresh
        source = loader(**settings)
        shares = [source.finish(share_of(source.draw(5), rank, 2)) for rank in range(2)]
        whole = source.batch(5)
        for rank, share in enumerate(shares):
            assert same(share, share_of(whole, rank, 2))


def test_the_number_of_workers_leaves_the_cores_of_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cores: int, **settings: Any) -> int:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
        return worker_count(TrainConfig(device="cpu", **settings))

    assert [count(cores, threads=2) for cores in (1, 2, 4, 8, 64)] == [0, 0, 1, 3, 4]
    assert count(2, threads=1) == 1
    assert count(64, workers=0) == 0
    assert count(8, threads=2, devices=2) == 1


def test_pythons_lock_changes_hands_sooner_while_threads_prepare_batches() -> None:
    before = sys.getswitchinterval()
    for workers in (0, 2):
        source = feed(loader(), workers=workers)
        assert sys.getswitchinterval() == pytest.approx(0.0005 if workers else before)
        source.close()
        assert sys.getswitchinterval() == pytest.approx(before)


def test_the_last_of_several_feeds_gives_the_interval_back() -> None:
    before = sys.getswitchinterval()
    first, second = feed(loader()), feed(loader())
    first.close()
    assert sys.getswitchinterval() == pytest.approx(0.0005), "the other one still has threads"
    second.close()
    second.close()
    assert sys.getswitchinterval() == pytest.approx(before)
