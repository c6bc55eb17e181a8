"""`Feed`: the batches of a run, each ready before the step that needs it."""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor

from toolkit.training.engine import share_of, worker_count

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from toolkit.training.config import TrainConfig

_SWITCH_INTERVAL = 0.0005  # seconds; else the step waits up to 5 ms for Python's lock each time that it asks for it
_open: set[int] = set()  # feeds with threads, by identity: the last one gives the interval back
_before = sys.getswitchinterval()


class Feed:
    """Hands out this process's share of a loader's batches on the device, computed ahead by threads.

    Threads, because the data of the cases is then shared as it is, an interrupt or a kill leaves nothing behind, and
    reading, cropping and resampling let go of Python's lock. A loader whose `ahead` is true promises that `batch(step)`
    depends on `step` alone; any other is asked in this process, right before the step, unless the run says `workers`.
    On CUDA such a loader's batches are finished (augmented) on the device: see `Loader.draw`.

    Args:
        loader: gives `batch(step)`.
        fabric: says the device, this process's rank and their number.
        config: settings of the run.
        on_device: finish batches on the device; None = if that is CUDA.
    """

    def __init__(self, loader: Any, fabric: Fabric, config: TrainConfig, *, on_device: bool | None = None) -> None:
        ahead = bool(getattr(loader, "ahead", False))
        self._loader, self._fabric, self._steps = loader, fabric, config.steps
        self._cuda = fabric.device.type == "cuda"
        self._halved = ahead and (self._cuda if on_device is None else on_device)
        self._workers = worker_count(config) if ahead or config.workers is not None else 0
        self._pool = ThreadPoolExecutor(self._workers, "toolkit-batch") if self._workers else None
        if self._pool is not None:
            _hurry(self)
        self._pending: dict[int, Future[dict[str, Any]]] = {}

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step; an error of whoever prepared it is raised here, at its own step."""
        if self._pool is None:
            batch = self._prepared(step)
        else:
            for ahead in range(step, min(step + 2 * self._workers + 1, self._steps)):
                if ahead not in self._pending:
                    self._pending[ahead] = self._pool.submit(self._prepared, ahead)
            batch = self._pending.pop(step).result()
        device = self._fabric.device
        batch = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return self._loader.finish(batch) if self._halved else batch

    def close(self) -> None:
        """End the threads; what they still had to do is dropped."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            _relax(self)

    def _prepared(self, step: int) -> dict[str, Any]:
        whole = self._loader.draw(step) if self._halved else self._loader.batch(step)
        share = share_of(whole, self._fabric.global_rank, self._fabric.world_size)
        if not self._cuda:
            return share
        return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in share.items()}


def _hurry(feed: Feed) -> None:
    """Let threads take turns more often while any feed has some."""
    global _before
    if not _open:
        _before = sys.getswitchinterval()
    _open.add(id(feed))
    sys.setswitchinterval(min(_SWITCH_INTERVAL, _before))


def _relax(feed: Feed) -> None:
    """Give the interval back with the last feed, whatever order they are closed in."""
    if id(feed) in _open:
        _open.discard(id(feed))
        if not _open:
            sys.setswitchinterval(_before)
