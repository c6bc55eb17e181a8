"""Commands, as in `python -m toolkit demo`: demo, gpu-check, report RUN, workshop, data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.apps import data_command
from toolkit.errors import ToolkitError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    commands = argparse.ArgumentParser(prog="python -m toolkit", description=__doc__)
    each = commands.add_subparsers(dest="command", required=True)
    demo = each.add_parser("demo", help="train two networks on the embedded task and write a report")
    demo.add_argument("--out", default="runs/demo", help="folder of the runs and the report")
    demo.add_argument("--task", default="phantom-cardiac", help="a 2D task with at least two sites")
    demo.add_argument("--sites", nargs="+", help="sites to train on, in order (default: the task's first two)")
    demo.add_argument("--steps", type=int, default=200, help="optimizer steps on each site")
    demo.add_argument("--batch-size", type=int, default=16)
    demo.add_argument("--size", type=int, help="edge of the training patches in pixels")
    demo.add_argument("--weight", type=float, default=0.1, help="weight of SegReg")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--precision", choices=("32", "bf16"), default="32")
    demo.add_argument("--device", default="auto")
    each.add_parser("gpu-check", help="train and extract on CUDA and compare with the CPU")
    report = each.add_parser("report", help="write a report on a finished or running training")
    report.add_argument("run", help="run directory")
    report.add_argument("--out", help="the .html file (default: report.html in the run directory)")
    workshop = each.add_parser("workshop", help="write the offline bundle of the workshop")
    workshop.add_argument("--out", default="dist/workshop", help="folder of the bundle")
    workshop.add_argument("--notebooks", default="notebooks", help="folder of the notebooks")
    data_command.add_parser(each)
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the toolkit are printed without a traceback and give exit status 1."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Interrupted.'}\nThe same command continues where it stopped.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "gpu-check":
        from toolkit.apps.gpu_check import gpu_check

        return gpu_check()
    if options.command == "data":
        return data_command.run(options)
    if options.command == "workshop":
        from toolkit.apps.workshop import build_bundle

        print(build_bundle(options.out, options.notebooks))
        return 0
    if options.command == "report":
        from toolkit.show.report import report
        from toolkit.training.load import load_run

        run = load_run(options.run)
        print(report(run, options.out or Path(options.run) / "report.html"))
        return 0
    from toolkit.apps.demo import DemoSettings, run_demo

    given = {key: value for key, value in vars(options).items() if key != "command"}
    run_demo(DemoSettings(**{**given, "sites": tuple(options.sites) if options.sites else None}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
