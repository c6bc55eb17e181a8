"""Which process trains a run, and whether it is still alive."""

from __future__ import annotations

import os
from pathlib import Path


def process_identity(process: int) -> str:
    """A mark that tells a process from a later one with the same number; "" where the system offers none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return f"{boot}/{fields[19]}"  # start time since boot


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
    now = process_identity(process)
    return now == identity and not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
