"""What an unfinished feature store knows about itself, so that an extraction goes on after a kill.

Every now and then the writer flushes its arrays and then replaces one small file that says how many batches are in
them, how long each array is and the hash of its content. Whatever was appended later is cut off again; a store whose
content is not what that file says is thrown away and started anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.files import write_atomically

_FILE = "progress.json"


def write_progress(folder: Path, request: dict[str, Any], **state: Any) -> None:
    """Replace the file in one step."""
    write_atomically(folder / _FILE, json.dumps({"request": request, **state}))


def read_progress(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an unfinished store of the same request, or None."""
    found = _read(folder)
    wanted = json.loads(json.dumps(request))
    return found if found.get("request") == wanted and found.get("batches") else None


def remove_progress(folder: Path) -> None:
    """The store is complete."""
    (folder / _FILE).unlink(missing_ok=True)


def cut(array: Any, length: int, digest: str) -> Any | None:
    """Shorten an array to the rows that count; gives the running hash of its content, None if that is another.

    The rows of the last chunk are written again, so that nothing of what was cut stays behind in it.
    """
    chunk = array.chunks[0]
    whole = length - length % chunk
    running = hashlib.sha256()
    for start in range(0, whole, chunk):
        running.update(np.ascontiguousarray(array[start : start + chunk]).data)
    rest = np.ascontiguousarray(array[whole:length])
    running.update(rest.data)
    if running.hexdigest() != digest or array.shape[0] < length:
        return None
    array.resize((whole, *array.shape[1:]))
    if len(rest):
        array.append(rest)
    return running


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
