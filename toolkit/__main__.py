"""Commands, as in `python -m toolkit demo`: demo, gpu-check, report RUN, workshop, data list | show | fetch | verify | montage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.archive import unpack
from toolkit.data.catalogue import list_tasks, load_task, steps
from toolkit.data.download import fetch_all
from toolkit.data.manifest import data_folders, find_manifest
from toolkit.errors import DataError, ToolkitError
from toolkit.files import write_atomically


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
    data = each.add_parser("data", help="list, show, fetch, verify and look at data sets")
    action = data.add_subparsers(dest="action", required=True)
    action.add_parser("list", help="all data sets, and which are ready on this machine")
    action.add_parser("show", help="what a data set is, its licence, and how to get it").add_argument("name")
    fetch = action.add_parser("fetch", help="download a data set, or unpack an archive of it")
    fetch.add_argument("name")
    fetch.add_argument("--archive", help="unpack this archive, downloaded by hand, into the data folder")
    verify = action.add_parser("verify", help="read and check every case; status 1 if one is bad or files are missing")
    verify.add_argument("name")
    verify.add_argument("--out", help="write the table as CSV")
    montage = action.add_parser("montage", help="a picture of cases from every site, labels in colour")
    montage.add_argument("name")
    montage.add_argument("--out", help="PNG, SVG or PDF file (default: NAME.png)")
    montage.add_argument("--columns", type=int, default=6, help="cases per site")
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
        print(f"\n{str(stop) or 'Interrupted.'}\nThe same command continues where it stopped.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "gpu-check":
        from toolkit.apps.gpu_check import gpu_check

        return gpu_check()
    if options.command == "data":
        actions = {"list": _list, "show": _show, "fetch": _fetch, "verify": _verify, "montage": _montage}
        return actions[options.action](options)
    if options.command == "workshop":
        from toolkit.apps.workshop import build_bundle

        print(build_bundle(options.out, options.notebooks))
        return 0
    if options.command == "report":
        from toolkit.show.report import report
        from toolkit.training.load import load_run

        print(report(load_run(options.run), options.out or Path(options.run) / "report.html"))
        return 0
    from toolkit.apps.demo import run_demo

    run_demo(options)
    return 0


def _list(options: argparse.Namespace) -> int:
    print(list_tasks()[["name", "anatomy", "dims", "access", "ready"]].to_string(index=False))
    return 0


def _show(options: argparse.Namespace) -> int:
    manifest = find_manifest(options.name)
    classes = ", ".join(f"{index} {name}" for index, name in sorted(manifest.classes.items()))
    print(f"{manifest.name}: {manifest.title}")
    for what in ("anatomy", "modality", "source", "citation", "licence", "label_coding", "spacing"):
        if text := getattr(manifest, what):
            print(f"  {what.replace('_', ' ')}: {text}")
    print(f"  classes: {classes}\n  sites: {', '.join(manifest.sites)}")
    for note in manifest.notes:
        print(f"  - {note}")
    for fact, what in manifest.unconfirmed.items():
        print(f"  not confirmed, {fact.replace('_', ' ')}: {what}")
    if manifest.access.kind != "embedded":
        print("".join(f"\n  {number}. {step}" for number, step in enumerate(steps(manifest), start=1)))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    manifest, folder = find_manifest(options.name), data_folders(options.name)[0]
    if manifest.access.kind == "embedded":
        raise DataError(f"{manifest.name!r} is generated; there is nothing to fetch.", fix="Just load it.")
    print(f"Licence of the data: {manifest.licence}")
    if options.archive:
        inside = next((file.inside for file in manifest.access.files if file.inside), "")
        print(f"{len(unpack(options.archive, folder, inside=inside))} files unpacked into {folder}")
        return 0
    for path in fetch_all(manifest, folder):
        print(path)
    return 0


def _verify(options: argparse.Namespace) -> int:
    table = load_task(options.name).verify()
    if options.out:
        write_atomically(options.out, table.to_csv(index=False), parents=True)
    odd = table[(table.verdict != "ok") | (table.notes != "")]
    if len(odd):
        odd = odd.assign(case=odd.case.where(odd.case != "", odd.source))
        print(odd[["case", "verdict", "checksum", "detail", "notes"]].to_string(index=False))
    print(f"{len(table)} rows: " + ", ".join(f"{count} {what}" for what, count in table.verdict.value_counts().items()))
    return 0 if set(table.verdict) <= {"ok", "foreign", "surplus"} else 1


def _montage(options: argparse.Namespace) -> int:
    from toolkit.show.draw import static_figure

    print(static_figure(load_task(options.name), options.out or f"{options.name}.png", columns=options.columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
