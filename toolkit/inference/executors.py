"""Jobs on any executor: processes of this machine, dask, joblib's loky, Slurm through submitit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

from toolkit.errors import ToolkitError
from toolkit.process_state import core_count

T = TypeVar("T")
RESTARTS = 3  # of jobs whose worker was lost, before the call gives up


@runtime_checkable
class Submits(Protocol):
    """What is needed of an executor: `concurrent.futures`', dask's, loky's and submitit's all have it."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A future of `function(*arguments)`."""


# Errors by which engines say that a worker went away, beside concurrent.futures' own BrokenExecutor (also loky's).
_LOST = ("KilledWorker", "UncompletedJobError")


def hand_out(
    jobs: Sequence[Callable[[], T]],
    executor: Submits | Callable[[], Submits] | None,
    call: str,
    noun: str,
    threads: int | None = None,
) -> list[T]:
    """The results of all jobs in order; without executor one after the other.

    A job whose worker was lost is handed out again; it is to go on by itself from what it stored. Where a job keeps
    `threads` of the CPU busy, processes of this machine get no more jobs at a time than it has cores for.
    """
    if executor is None:
        return [job() for job in jobs]
    results: dict[int, T] = {}
    pool: Any = executor if hasattr(executor, "submit") else None
    lost: BaseException | None = None
    for _ in range(RESTARTS + 1):
        pool = executor() if pool is None else pool  # type: ignore[operator]
        lost = _one_round(_entrance(pool, threads), jobs, results)
        if lost is None:
            return [results[index] for index in range(len(jobs))]
        if not hasattr(executor, "submit") and isinstance(lost, BrokenExecutor):
            pool = None  # a broken pool takes no more work: the next round asks for a new one
    what = f"Workers were lost {RESTARTS + 1} times ({type(lost).__name__}: {lost})."
    where = f"{call}(executor=...), {len(jobs) - len(results)} of {len(jobs)} {noun} are not done"
    fix = f"Call {call} again with the same `out`: {noun} go on where they were. executor=lambda: ProcessPoolExecutor(2), "
    raise ToolkitError(what, where=where, fix=f"{fix}a function, lets the call replace a broken pool itself.") from lost


def _entrance(pool: Any, threads: int | None) -> Callable[[Callable[[], T]], Any]:
    """How a job gets into the pool: at once, or when a core is free, since jobs that share cores slow one another."""
    if not threads or not isinstance(pool, ProcessPoolExecutor):
        return pool.submit
    gate = ThreadPoolExecutor(max(1, core_count() // threads))
    return lambda job: gate.submit(lambda: pool.submit(job).result())


def _one_round(submit: Any, jobs: Sequence[Callable[[], T]], results: dict[int, T]) -> BaseException | None:
    """Hand out what is due; the error of a lost worker, if there was one. Other errors cancel the rest."""
    lost: BaseException | None = None
    futures: dict[int, Any] = {}
    try:
        for index in [index for index in range(len(jobs)) if index not in results]:
            futures[index] = submit(jobs[index])
        for index, future in futures.items():
            try:
                results[index] = future.result()
            except Exception as error:
                if not (isinstance(error, BrokenExecutor) or type(error).__name__ in _LOST):
                    raise
                lost = error
    except BrokenExecutor as error:
        lost = error  # submit itself refuses: the pool broke before
    finally:
        for future in futures.values():
            if not future.done():
                future.cancel()
    return lost
