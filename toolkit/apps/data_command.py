"""`python -m toolkit data list | show | fetch | verify | montage`."""

from __future__ import annotations

import argparse

from toolkit.data.archive import unpack
from toolkit.data.catalogue import list_tasks, load_task, steps
from toolkit.data.download import fetch_all
from toolkit.data.manifest import data_folders, find_manifest
from toolkit.errors import DataError
from toolkit.files import write_atomically
from toolkit.show.draw import static_figure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `data` to the toolkit's command line."""
    data = commands.add_parser("data", help="list, show, fetch, verify and look at data sets")
    each = data.add_subparsers(dest="action", required=True)
    each.add_parser("list", help="all data sets, and which are ready on this machine")
    show = each.add_parser("show", help="what a data set is, its licence, and how to get it")
    show.add_argument("name")
    fetch = each.add_parser("fetch", help="download a data set, or unpack an archive of it")
    fetch.add_argument("name")
    fetch.add_argument("--archive", help="unpack this archive, downloaded by hand, into the data folder")
    verify = each.add_parser(
        "verify", help="read and check every case; exit status 1 if one cannot be trusted or files are missing"
    )
    verify.add_argument("name")
    verify.add_argument("--out", help="write the table as CSV")
    montage = each.add_parser("montage", help="a picture of cases from every site, labels in colour")
    montage.add_argument("name")
    montage.add_argument("--out", help="PNG, SVG or PDF file (default: NAME.png)")
    montage.add_argument("--columns", type=int, default=6, help="cases per site")


def run(options: argparse.Namespace) -> int:
    """Run one of the actions; returns the exit status."""
    actions = {"list": _list, "show": _show, "fetch": _fetch, "verify": _verify, "montage": _montage}
    return actions[options.action](options)


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
        write_atomically(options.out, table.to_csv(index=False))
    odd = table[(table.verdict != "ok") | (table.notes != "")]
    if len(odd):
        odd = odd.assign(case=odd.case.where(odd.case != "", odd.source))
        print(odd[["case", "verdict", "checksum", "detail", "notes"]].to_string(index=False))
    print(f"{len(table)} rows: " + ", ".join(f"{count} {what}" for what, count in table.verdict.value_counts().items()))
    return 0 if set(table.verdict) <= {"ok", "foreign", "surplus"} else 1


def _montage(options: argparse.Namespace) -> int:
    print(static_figure(load_task(options.name), options.out or f"{options.name}.png", columns=options.columns))
    return 0
