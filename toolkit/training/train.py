"""`train` and `resume`: make a run directory that is complete before its first step, and carry it to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from toolkit.data.case import Case
from toolkit.errors import CheckpointError, ConfigError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.files import write_sealed
from toolkit.inference.volumes import group_volumes
from toolkit.measure.evaluate import evaluate, validation_scores
from toolkit.process_state import guarded_random_state, thread_count
from toolkit.training import background as child
from toolkit.training import checkpoint as checkpoints
from toolkit.training import engine, history
from toolkit.training.background import packed
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.directory import RunDirectory, default_path
from toolkit.training.engine import same_modes
from toolkit.training.load import open_run
from toolkit.training.loop import Loop, initial_checkpoint, restore_step
from toolkit.training.process import StopRequest, graceful_interrupt
from toolkit.training.protocol import Loss, Objective, Regularizer, as_regularizers
from toolkit.training.run import Run, run_with
from toolkit.training.segmentation import as_objective
from toolkit.training.serialization import described, not_recorded
from toolkit.training.step import TrainingStep
from toolkit.training.watching import OnLog, Watchers, prediction_pictures

SELECTION_RULES = {
    "best": "highest mean foreground Dice per volume on the val split, the earliest of equals; test never used",
    "last": "the last step; no selection",
}


def train(
    model: nn.Module,
    task: Any,
    objective: Objective | Loss | None = None,
    regularizer: Regularizer | Sequence[Regularizer] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    background: bool = False,
    aliases: Mapping[str, str] | None = None,
    site: str | Sequence[str] | None = None,
    stage: int = 0,
    progress: bool = True,
    on_log: OnLog | Iterable[OnLog] | None = None,
) -> Run:
    """Train a network, in place, and keep everything needed to continue or explain the run in one directory.

    The directory is complete and resumable before the first step. An interrupt (Ctrl-C) ends the step at hand,
    writes a checkpoint and stops; `resume` continues as if nothing had happened. The network keeps its train/eval mode and
    the global random state is given back.

    Args:
        model: any network that gives logits (B, K, *S).
        task: gives `loader(split, site=...)` and `cases(split, site=...)`.
        objective: supervised part, an `Objective` or any callable `loss(logits, labels)` of MONAI, torch or one's own
            (see `LossObjective`); None = cross-entropy plus soft Dice.
        regularizer: one, several or none.
        config: settings, as `TrainConfig` or a mapping of its fields.
        out: the run's directory; None = a new one below `runs/`.
        background: train in a child process and return at once. The child is handed what it cannot rebuild from the
            run's record, so every object works that cloudpickle can write; a script needs no main guard.
        aliases: layer names for the aliases that regularizers ask for, for example {"head_input": "final:input"}.
        site: train and validate on this site or these; None = all.
        stage: index of this run in a sequence.
        progress: show a progress bar, and say where the run lies.
        on_log: a callable that is given every row of the history, or several; `tk.loggers` holds ready ones. One with
            a method `pictures(step, images)` is shown predictions at every validation. One that fails is warned of
            and not called again.

    Returns:
        The run; its `model` is the one that was passed, with the selected weights.

    Raises:
        ConfigError: an invalid setting, or a run in `out` already.
        ProtocolError: the network does not offer what the objective or a regularizer needs.
        LayerError: a tapped layer that does not exist.

    Example:
        >>> run = tk.train(model, task, regularizer=tk.SegReg(weight=0.1), config=config, out="runs/mine")
        >>> rows, scores = run.history, run.evaluate("test")
    """
    config, watchers = as_config(config), Watchers(on_log)
    if background and watchers:
        fix = "Train with background=False, or read run.history."
        raise ConfigError("A child process cannot call on_log.", fix=fix)
    regularizers = tuple(as_regularizers(regularizer))
    objective = as_objective(objective)
    engine.check_network(model, config)
    step = TrainingStep(model, objective, regularizers, seed=config.seed, aliases=aliases)
    engine.resolve_device(config)
    engine.check_compile(step, config)
    training_loader(task, config, site)  # an unusable split or patch is an error before anything is written
    parts = {"model": unwrap(model), "task": task, "objective": objective, "regularizers": list(regularizers)}
    objects = described(parts)
    directory = RunDirectory(default_path(task, regularizers, config.devices) if out is None else out)
    rule = _selection_rule(task, config, site)
    record = {
        "objects": objects,
        "config": config.to_dict(),
        "taps": dict(aliases or {}),
        "layers": step.layers(task.channels, config.patch_size or task.patch_size),
        "site": site if site is None or isinstance(site, str) else list(site),
        "stage": stage,
        "selection": {"rule": rule, "description": SELECTION_RULES[rule]},
        "environment": engine.environment(config),
        "data": engine.content_hash(task),
        "contents": engine.contents(task),
        "inference": run_with(task, config),
    }
    parcel = packed(not_recorded(objects, parts) | {"factories": config.factories}) if background else b""
    run = Run(directory.path, model, task, config, objective=objective, regularizers=regularizers, site=site)
    with directory.reserved() if engine.is_first_process() else contextlib.nullcontext():
        if engine.is_first_process():
            directory.create(record, initial_checkpoint(step, config, secrets.token_hex(8)))
            directory.set_state("ready", step=0)
        else:
            directory.await_creation()
        if not background:
            record = directory.record()
            first, _ = directory.newest(str(record["run"]))
            try:
                train_to_end(run, step, first, record, progress=progress, watchers=watchers)
            except Exception:
                if engine.is_first_process() and directory.exists():
                    directory.remove_if_untrained()
                raise
    return dataclasses.replace(run, _process=child.start(directory.path, parcel)) if background else run


def resume(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    task: Any = None,
    regularizer: Regularizer | Sequence[Regularizer] | None = None,
    objective: Objective | Loss | None = None,
    *,
    steps: int | None = None,
    fallback: bool = False,
    progress: bool = True,
    stop: StopRequest | None = None,
    on_log: OnLog | Iterable[OnLog] | None = None,
    factories: Mapping[str, Callable[..., Any]] | None = None,
) -> Run:
    """Continue a run from its newest checkpoint as if it had never stopped: to the same bits on the CPU.

    A finished run is returned as it is, with the selected weights. Everything is verified before anything is
    written. On a GPU some kernels of torch sum in no fixed order: there even a run that is repeated differs in rounding.

    Args:
        path: the run's directory.
        model: needed if the network is not a registered one; receives the weights.
        task: needed if the task is not a registered one; its content must be the recorded one.
        regularizer: needed if one is not registered.
        objective: needed if it is not registered.
        steps: train to this many steps instead of those of the run, finished or not. From here on the learning rate
            is that of a run so long: a rate that had fallen to its end rises again. `run.json` lists under
            `schedules` from which step on which length holds.
        fallback: if the newest checkpoint is damaged, continue from an older intact one, with a warning.
        progress: show a progress bar.
        stop: a request to stop that the caller sets; None = interrupts of this process set one.
        on_log: as in `train`; told of the rows from here on.
        factories: callables among the settings that cannot be found by their module: {"optimizer": make, ...}.

    Raises:
        CheckpointError: no run, a damaged, foreign or unsafe checkpoint, an object that is missing or is not the
            one that was trained.
        ConfigError: the run is being trained by another process, or has taken `steps` steps already.

    Warns:
        ToolkitWarning: an older checkpoint was taken.

    Example:
        >>> run = tk.resume("runs/segreg", task=task, steps=3)
    """
    directory, given = RunDirectory(path), None if regularizer is None else as_regularizers(regularizer)
    directory.record()  # no run here is an error before anything is locked
    if engine.is_first_process() and (process := directory.other_process()) is not None:
        fix = "Wait for it or stop it (run.stop()); then resume."
        raise ConfigError(f"Process {process} is training this run now.", where=directory.path, fix=fix)
    training = engine.is_first_process() and (fallback or steps is not None or not directory.complete())
    with directory.locked() if training else contextlib.nullcontext():
        run, step, newest, record = open_run(
            path, model, task, given, objective, fallback=fallback, factories=factories, training=True
        )
        if steps is not None and steps != run.config.steps:
            record = _with_new_schedule(run, record, newest.step, steps)
        if newest.step < run.config.steps:
            directory.set_aside_after(newest.step)
        train_to_end(run, step, newest, record, progress=progress, stop=stop, watchers=Watchers(on_log))
    return run


def train_or_resume(
    folder: str | os.PathLike[str],
    model: nn.Module,
    task: Any,
    objective: Objective,
    regularizers: Sequence[Regularizer],
    config: TrainConfig,
    *,
    progress: bool,
    **options: Any,
) -> Run:
    """Train in a folder (`options` are of `train`), or go on with the run that is there."""
    if RunDirectory(folder).exists():
        own: dict[str, Any] = {"factories": config.factories, "progress": progress}
        return resume(folder, model, task, regularizers, objective, **own)
    return train(model, task, objective, regularizers, config, out=folder, progress=progress, **options)


def _with_new_schedule(run: Run, record: Mapping[str, Any], done: int, steps: int) -> dict[str, Any]:
    if steps <= done:
        what = f"This run has taken {done} steps already."
        raise ConfigError(what, where=f"resume(steps={steps})", fix="Ask for more than that.")
    before = record.get("schedules", [{"first_step": 0, "steps": run.config.steps}])
    run.config = run.config.replace(steps=steps)
    record = {**record, "config": run.config.to_dict(), "schedules": [*before, {"first_step": done, "steps": steps}]}
    if engine.is_first_process():
        write_sealed(run.directory.record_file, {k: v for k, v in record.items() if k not in ("format", "seal")})
    return record


@torch.inference_mode(False)
@torch.enable_grad()  # even if the caller had switched gradients off
def train_to_end(
    run: Run,
    step: TrainingStep,
    start: Checkpoint,
    record: Mapping[str, Any],
    *,
    progress: bool,
    stop: StopRequest | None = None,
    watchers: Watchers | None = None,
) -> None:
    """Train from a verified checkpoint to the end, select the weights and record how it ended."""
    from tqdm.auto import tqdm

    directory, config = run.directory, run.config
    if start.step >= config.steps:
        restore_step(step, start)
        _finish(run, step, start, record)
        return
    if engine.is_first_process():
        checkpoints.sweep(directory.checkpoints)
        history.truncate(directory.history, start.step, start.history)
        directory.set_state("running", step=start.step)
        if progress:
            tqdm.write(f"The run lies in {directory.path}", file=sys.stderr)
    scored = _validation_cases(run)
    try:
        threads = record["environment"]["threads"]
        stopping = graceful_interrupt() if stop is None else contextlib.nullcontext(stop)
        with same_modes(step), guarded_random_state(), thread_count(threads), stopping as request:
            loop = Loop(
                directory,
                step,
                training_loader(run.task, config, run.site),
                config,
                start,
                record={key: value for key, value in record.items() if key != "run"},
                validate=None if scored is None else partial(_scores, scored, config.batch_size),
                watchers=(watchers or Watchers()) if engine.is_first_process() else Watchers(),
                pictures=None if scored is None else partial(prediction_pictures, cases=scored),
                stop=request,
                stage=record["stage"],
                progress=progress,
                caption=directory.path.name,
            )
            finished = loop.run()
            loop.close()
    except KeyboardInterrupt:
        directory.set_end("interrupted", step=run.step)
        raise _interrupted(directory) from None
    except BaseException as error:
        directory.set_end("failed", step=run.step, error=f"{type(error).__name__}: {error}")
        if isinstance(error, OSError):
            what = f"The run could not be written or its data not be read ({type(error).__name__}: {error})."
            fix = f"Free some space or restore the access, then continue: toolkit.resume({str(directory.path)!r})."
            raise CheckpointError(what, where=directory.path, fix=fix) from error
        raise
    finally:
        step.zero_grad()
    if not finished:
        directory.set_state("interrupted", step=run.step)
        raise _interrupted(directory)
    _finish(run, step, checkpoints.read(directory.checkpoints, config.steps, start.run), record)


def _finish(run: Run, step: TrainingStep, last: Checkpoint, record: Mapping[str, Any]) -> None:
    selected = last.step
    if record["selection"]["rule"] == "best" and last.best is not None and last.best["step"] != last.step:
        selected = int(last.best["step"])
        checkpoints.read(run.directory.checkpoints, selected, last.run).put_into(step.model)
    state = run.directory.state()
    if engine.is_first_process() and (state.get("state") != "finished" or state.get("selected_step") != selected):
        run.directory.set_state("finished", step=last.step, selected_step=selected, best=last.best)


def _interrupted(directory: RunDirectory) -> KeyboardInterrupt:
    what = f"after step {max(checkpoints.steps_on_disk(directory.checkpoints), default=0)} had been saved"
    return KeyboardInterrupt(f"Training was interrupted {what}. Continue with toolkit.resume({str(directory.path)!r}).")


def _validation_cases(run: Run) -> list[Case] | None:
    """The val cases that are scored while the run trains; None = no validation."""
    cases = run.task.cases("val", site=run.site) if run.config.validate_every else []
    if run.config.validation_cases is not None:
        cases = [case for volume in group_volumes(cases)[: run.config.validation_cases] for case in volume]
    return cases or None


def _scores(cases: list[Case], batch_size: int, model: nn.Module) -> dict[str, float]:
    return validation_scores(evaluate(model, cases, batch_size=batch_size, metrics=("dice",)))


def _selection_rule(task: Any, config: TrainConfig, site: str | Sequence[str] | None) -> str:
    if config.select == "last" or not config.validate_every:
        return "last"
    if task.cases("val", site=site):
        return "best"
    warnings.warn("The task has no val split here, so the last weights are selected.", ToolkitWarning, stacklevel=3)
    return "last"


def training_loader(task: Any, config: TrainConfig, site: str | Sequence[str] | None) -> Any:
    """The batches of a training."""
    names = ["batch_size", "patch_size", "seed", "augmentation", *([] if config.foreground is None else ["foreground"])]
    return task.loader("train", site=site, **{name: getattr(config, name) for name in names})
