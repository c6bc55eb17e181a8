"""Which process trains a run, whether it is still alive, and how it is asked to stop.

A first interrupt ends the step, writes a checkpoint and stops; a second one stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


def process_identity(process: int) -> str:
    """A mark that tells a process from a later one with the same number; "" where the system offers none."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "ended" if state == "Z" else f"{boot}/{fields[18]}"  # start time since boot; Z is a zombie


def is_alive(process: int, identity: str) -> bool:
    """Whether the process that once had this number and identity still runs (False if that cannot be told)."""
    if os.name != "posix":
        return False  # signal 0 would end the process there
    try:
        os.kill(process, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    return process_identity(process) == identity


class StopRequest:
    """A flag that a signal sets and the loop reads between two steps."""

    requested = False


@contextlib.contextmanager
def graceful_interrupt(also_terminate: bool = False) -> Iterator[StopRequest]:
    """Turn the first SIGINT inside the block into a `StopRequest`; the second raises KeyboardInterrupt.

    Handlers are only set in the main thread, and only where Python's own handler is in place, so that a host
    program that handles interrupts itself keeps doing so.
    """
    request = StopRequest()

    def stop(signal_number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    replaced: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():
        if also_terminate or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            replaced[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
        if also_terminate:
            replaced[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
    try:
        yield request
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
