"""The program of a training in the background: `python -m toolkit.training.child RUN_DIRECTORY`."""

from __future__ import annotations

import sys

from toolkit.training import background
from toolkit.training.directory import RunDirectory
from toolkit.training.process import graceful_interrupt
from toolkit.training.train import resume

INTERRUPTED = 3  # exit status of a child that was asked to stop


def main(arguments: list[str]) -> int:
    """Carry on the run in the given directory; the exit status says how it ended."""
    directory = RunDirectory(arguments[0])
    try:
        with graceful_interrupt(also_terminate=True) as request:
            resume(directory.path, progress=False, stop=request, **background.received(sys.stdin.buffer))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        if directory.state().get("state") != "failed":
            directory.set_end("failed", error=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
