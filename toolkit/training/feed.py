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

_SWITCH_INTERVAL = 0.0005  # seconds


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
        self._switch_interval = sys.getswitchinterval()
        if self._pool is not None:  # else the step waits up to 5 ms for Python's lock each time that it asks for it
            sys.setswitchinterval(min(_SWITCH_INTERVAL, self._switch_interval))
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
            sys.setswitchinterval(self._switch_interval)

    def _prepared(self, step: int) -> dict[str, Any]:
        whole = self._loader.draw(step) if self._halved else self._loader.batch(step)
        share = share_of(whole, self._fabric.global_rank, self._fabric.world_size)
        if not self._cuda:
            return share
        return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in share.items()}
