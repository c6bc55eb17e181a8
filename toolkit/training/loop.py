"""The training loop: from one checkpoint to the next, the same code for a new run and a resumed one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import CheckpointError, ToolkitError
from toolkit.models.load import tensors_of
from toolkit.training import checkpoint as checkpoints
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.engine import build_fabric, compiled, seed_step, share_of, worker_count
from toolkit.training.health import GradientMonitor, gradient_ratio
from toolkit.training.history import HistoryWriter
from toolkit.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from toolkit.training.process import StopRequest
from toolkit.training.step import PartialLoss, TrainingStep
from toolkit.training.watching import Watchers

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SWITCH_INTERVAL = 0.0005  # seconds; else the step waits up to 5 ms for Python's lock each time that it asks for it
_open: set[int] = set()  # feeds with threads, by identity: the last one gives the interval back
_before = sys.getswitchinterval()
SCORE = "validation/dice"  # what `select="best"` compares


def initial_checkpoint(step: TrainingStep, config: TrainConfig, run: str) -> Checkpoint:
    """Checkpoint of the state before the first step."""
    state = {**_network_state(step), "optimizer": build_optimizer(step, config).state_dict(), "scaler": {}}
    return Checkpoint(step=0, run=run, weights=tensors_of(step.model), state=state)


@dataclasses.dataclass(eq=False)
class Loop:
    """Runs the steps of a training from a verified checkpoint to the end, or until it is asked to stop."""

    directory: RunDirectory  # where the run is kept
    step: TrainingStep  # network, objective and regularizers
    loader: Any  # gives `batch(step)`
    config: TrainConfig
    start: Checkpoint  # from which it goes on; its `run` is written into every checkpoint
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its `run.json`, for a copy if it is lost
    # scores the network on the val split: {column: value} with `validation/dice`; None = never
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    watchers: Watchers = dataclasses.field(default_factory=Watchers)  # are told every row
    # draws the network's predictions after a validation; None = nobody wants them
    pictures: Callable[[nn.Module], dict[str, np.ndarray]] | None = None
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)  # read between steps
    stage: int = 0  # index of the stage in a sequence
    progress: bool = True  # show a progress bar
    caption: str = "training"  # of the progress bar

    def __post_init__(self) -> None:
        self.fabric: Fabric = build_fabric(self.config, any(r.deferred for r in self.step.regularizers))
        restore_step(self.step, self.start)
        self.module, self.optimizer = self.fabric.setup(self.step, build_optimizer(self.step, self.config))
        self.optimizer.load_state_dict(self.start.state["optimizer"])
        self.optimizer.zero_grad()
        if self.start.state["scaler"]:
            self.fabric.strategy.precision.load_state_dict(self.start.state["scaler"])
        self.feed = Feed(self.loader, self.fabric, self.config)
        self.done, self.best = self.start.step, self.start.best
        self.monitor = GradientMonitor()
        self._seconds, self._counted = 0.0, 0
        self._home = os.stat(self.directory.path)

    def run(self) -> bool:
        """Train; True if the last step was reached, False if a stop was requested before it."""
        from tqdm.auto import tqdm

        total, first = self.config.steps, self.fabric.is_global_zero
        hidden = not (self.progress and first)
        self.step.train()
        with (
            contextlib.closing(self.feed),
            compiled(self.step.model, self.config.compile),
            HistoryWriter(self.directory.history, active=first) as history,
            tqdm(total=total, initial=self.done, desc=self.caption, unit="step", disable=hidden) as bar,
        ):
            while self.done < total:
                row = self._one_step(self.done)
                bar.update()
                if row is not None:
                    self._check_home()
                    history.write(row)
                    self.watchers.row(row)
                    bar.set_postfix(loss=f"{row['total']:.4g}", refresh=False)
                if self._due(self.config.validate_every) and self.validate is not None:
                    row = self._validate()
                    history.write(row)
                    self.watchers.row(row)
                    if self.pictures is not None:
                        self.watchers.pictures(self.done, partial(self.pictures, self.step.model))
                stopping = self._stopping()
                if stopping or self._due(self.config.checkpoint_every) or self._improved():
                    self._save(history)
                if stopping and self.done < total:
                    return False
        return True

    def _stopping(self) -> bool:
        """Whether any process was asked to stop; all must agree, or the others would wait for ever."""
        if self.fabric.world_size == 1:
            return self.stop.requested
        return bool(self.fabric.strategy.reduce_boolean_decision(self.stop.requested, all=False))

    def close(self) -> None:
        """End the group of processes, if there are several; no step can be taken afterwards."""
        if self.fabric.world_size > 1:
            self.fabric.barrier()
            # DDP goes first: ending a group's threads from its destructor, which holds Python's lock, can hang.
            del self.module
            torch.distributed.destroy_process_group()

    def _one_step(self, index: int) -> dict[str, Any] | None:
        config, step = self.config, self.step
        started = time.perf_counter()
        logging = index == 0 or (index + 1) % config.log_every == 0 or index + 1 == config.steps
        seed_step(config.seed, index, self.fabric.global_rank)
        batch = self.feed.batch(index)
        rate = learning_rate(config, index)
        set_learning_rate(self.optimizer, rate)
        parts = self._backward(batch, index, logging)
        if config.clip_norm is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done = index + 1
        row = self._row(parts, rate) if logging else None
        probing, step.probe_seconds = step.probe_seconds, 0.0
        self._seconds += time.perf_counter() - started - probing
        self._counted += 1
        if row is not None:
            row |= {"seconds/step": self._seconds / self._counted, "seconds/gradient_ratio": probing}
            self._seconds, self._counted = 0.0, 0
        return row

    def _backward(self, batch: dict[str, Any], index: int, logging: bool) -> list[PartialLoss]:
        count = self.step.parts(index)
        parts, together = [], []
        for part in range(count):
            with self.fabric.no_backward_sync(self.module, enabled=part < count - 1):
                result = self.module(batch, part=part, step=index, logging=logging, stage=self.stage)
                if result.total is not None:
                    if self.config.split_backward:
                        self.fabric.backward(result.total)
                    else:
                        together.append(result.total)
                    result.total = result.total.detach()
            parts.append(result)
        if together:
            self.fabric.backward(torch.stack(together).sum())
        return parts

    def _row(self, parts: list[PartialLoss], rate: float) -> dict[str, Any]:
        """One row of the history; all numbers leave the device in one copy."""
        tensors: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for index, part in enumerate(parts):
            if part.total is not None:
                tensors[f"total@{index}"] = part.total
            tensors |= part.terms | {f"gradient of {k}": v for k, v in part.gradients.items()}
            weights |= {f"{name}/weight": weight for name, weight in part.weights.items()}
        values = dict(zip(tensors, torch.stack([t.detach().float() for t in tensors.values()]).tolist(), strict=True))
        total = sum(value for name, value in values.items() if name.startswith("total@"))
        if not math.isfinite(total) and self.config.precision != "16":  # fp16 overflows are skipped by the scaler
            fix = "Lower learning_rate, set clip_norm=1.0, or look at the last rows of history.jsonl for the term."
            raise ToolkitError(f"The loss became {total} at step {self.done}.", where=self.directory.path, fix=fix)
        terms = {n: v for n, v in values.items() if not n.startswith(("total@", "gradient of "))}
        row = {"step": self.done, "event": "train", "stage": self.stage, "total": total, **terms, **weights}
        row |= self._gradients(values)
        row |= {
            f"{owner.name}/{name}": float(value)
            for owner in self.step.regularizers
            if f"{owner.name}/gradient_ratio" in row
            for name, value in owner.diagnostics().items()
        }
        return row | {"learning_rate": rate}

    def _gradients(self, values: dict[str, float]) -> dict[str, Any]:
        objective = self.step.objective.name
        ratios = {
            r.name: gradient_ratio(values[f"gradient of {r.name}"], values[f"gradient of {objective}@{r.name}"])
            for r in self.step.regularizers
            if {f"gradient of {r.name}", f"gradient of {objective}@{r.name}"} <= set(values)
        }
        statuses = self.monitor.observe(ratios, self.done)
        told: dict[str, Any] = {f"{name}/gradient_ratio": ratio for name, ratio in ratios.items()}
        return told | {f"{name}/gradient_status": status for name, status in statuses.items()}

    def _due(self, every: int) -> bool:
        return self.done == self.config.steps or (every > 0 and self.done % every == 0)

    def _validate(self) -> dict[str, Any]:
        assert self.validate is not None
        started = time.perf_counter()
        scores = self.validate(self.step.model)
        value = scores[SCORE]
        if self.fabric.world_size > 1:  # batch statistics differ by rank; all must save at the same steps
            value = self.fabric.broadcast(value)
        if math.isfinite(value) and (self.best is None or value > self.best["value"]):
            self.best = {"step": self.done, "value": value}
        row = {"step": self.done, "event": "validation", "stage": self.stage, **scores}
        return row | {"validation/best": self._improved(), "seconds/validation": time.perf_counter() - started}

    def _improved(self) -> bool:
        return self.best is not None and self.best["step"] == self.done

    def _save(self, history: HistoryWriter) -> None:
        for name, value in self.step.model.named_parameters():
            if not torch.isfinite(value.detach().sum()):
                fix = "Lower learning_rate or set clip_norm=1.0, and train again; no such checkpoint was written."
                raise ToolkitError(f"The weights are no longer finite after step {self.done}.", where=name, fix=fix)
        if self.fabric.is_global_zero:
            self._check_home()
            root = self.directory.checkpoints
            checkpoints.write(root, dataclasses.replace(self._checkpoint(), best=self.best, history=history.mark()))
            best = [self.best["step"]] if self.best is not None else []
            checkpoints.prune(root, self.config.keep_checkpoints, always=best)
        self.fabric.barrier()

    def _checkpoint(self) -> Checkpoint:
        state = _network_state(self.step)
        scaler = dict(self.fabric.strategy.precision.state_dict())  # empty unless the precision is "16"
        state |= {"optimizer": self.optimizer.state_dict(), "scaler": scaler}
        return Checkpoint(self.done, self.start.run, tensors_of(self.step.model), state)

    def _check_home(self) -> None:
        """Stop if the run's directory was moved, replaced or deleted, and save where the training stands beside it."""
        home = self.directory.path
        if home.is_dir() and os.path.samestat(self._home, os.stat(home)):
            return
        beside = RunDirectory(home.with_name(f"{home.name}.rescued-{self.done}-{self.start.run[:4]}"))
        fix = "Move the directory back and resume it."
        with contextlib.suppress(OSError, ToolkitError):
            if self.fabric.is_global_zero and home.parent.is_dir():
                beside.create(self.record, self._checkpoint())
                fix = f"Step {self.done} was saved beside it: toolkit.resume({str(beside.path)!r})."
        raise CheckpointError("The run's directory is no longer in its place.", where=home, fix=fix)


def restore_step(step: TrainingStep, checkpoint: Checkpoint) -> None:
    """Put the values of a checkpoint into the network, the objective and the regularizers, in place."""
    state = checkpoint.state
    checkpoint.put_into(step.model)
    if isinstance(step.objective, nn.Module):
        step.objective.load_state_dict(state["objective"])
    for regularizer in step.regularizers:
        regularizer.load_state_dict(state["regularizers"].get(regularizer.name, {}))


def _network_state(step: TrainingStep) -> dict[str, Any]:
    others = {name: v for name, v in step.model.state_dict().items() if not isinstance(v, Tensor)}
    objective = step.objective.state_dict() if isinstance(step.objective, nn.Module) else {}
    regularizers = {r.name: r.state_dict() for r in step.regularizers}
    return {"network": others, "objective": dict(objective), "regularizers": regularizers}


class Feed:
    """Hands out this process's share of a loader's batches on the device, computed ahead by threads.

    Threads, because the data of the cases is then shared as it is, an interrupt or a kill leaves nothing behind, and
    reading, cropping and resampling let go of Python's lock. A loader whose `ahead` is true promises that `batch(step)`
    depends on `step` alone; any other is asked in this process, right before the step, unless the run says `workers`.
    Such a loader's batches are finished (augmented) on the device, if that is CUDA or `on_device`: see `Loader.draw`.
    """

    def __init__(self, loader: Any, fabric: Fabric, config: TrainConfig, *, on_device: bool | None = None) -> None:
        ahead = bool(getattr(loader, "ahead", False))
        self._loader, self._fabric, self._steps = loader, fabric, config.steps
        self._cuda = fabric.device.type == "cuda"
        self._halved = ahead and (self._cuda if on_device is None else on_device)
        self._workers = worker_count(config) if ahead or config.workers is not None else 0
        self._pool = ThreadPoolExecutor(self._workers, "toolkit-batch") if self._workers else None
        if self._pool is not None:
            global _before
            _before = _before if _open else sys.getswitchinterval()
            _open.add(id(self))
            sys.setswitchinterval(min(_SWITCH_INTERVAL, _before))  # threads take turns more often
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
            if id(self) in _open:
                _open.discard(id(self))
                if not _open:  # the last feed gives the interval back, whatever order they are closed in
                    sys.setswitchinterval(_before)

    def _prepared(self, step: int) -> dict[str, Any]:
        whole = self._loader.draw(step) if self._halved else self._loader.batch(step)
        share = share_of(whole, self._fabric.global_rank, self._fabric.world_size)
        if not self._cuda:
            return share
        return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in share.items()}
