"""Train and measure what the claims need: `python -m evidence.run [STUDY or PAPER ...] [--jobs 2] [--runs FOLDER]`.

Behind `scripts/launch`, as `make evidence` has it: without, a step may take twice as long.
Every training is a run directory below the folder of runs, so a study that was stopped at any moment goes on where it was.
When all trainings of a study's arm are measured its rows stand in `evidence/results/<study>.csv`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evidence import measures
from evidence.claims import claims
from evidence.studies import STUDIES
from toolkit.files import replacing

RESULTS = Path(__file__).with_name("results")
FIELDS = ("arm", "seed", "fold", "site", "subject", "metric", "value")
PLACE, COST = ("study", "arm", "seed", "fold"), ("minutes", "cpu_minutes")
Key = tuple[str, ...]  # of a training: a value for every name of PLACE
# What comes first when time is short: plain training and the whole method of each paper, one seed after the other.
FIRST = ("plain", "segreg", "selfreg", "standard", "cooperative", "without", "with", "swin-plain", "swin-selfreg")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training of a study with its measurements."""

    study: str
    arm: str
    seed: int
    fold: int | None
    runs: Path

    @property
    def key(self) -> Key:
        """What it is called in files of results."""
        return self.study, self.arm, str(self.seed), "" if self.fold is None else str(self.fold)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        fold = "" if self.fold is None else f"fold-{self.fold}"
        return self.runs / self.study / fold / f"seed-{self.seed}" / self.arm

    @property
    def done(self) -> bool:
        """Whether it is trained and measured."""
        return (self.folder / "measures.csv").exists()

    def run(self) -> None:
        """Train, or go on, then measure; the table of measurements appears whole, at the end."""
        study, begun = STUDIES[self.study], time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        trained = study.train(study, self.arm, self.seed, self.folder / "training", self.fold)
        rows = [row for measure in study.measures for row in measure(trained, self.arm)]
        rows = [{**row, "site": study.places.get(row["site"], row["site"])} for row in rows]
        fold = "" if self.fold is None else self.fold
        cost = {"minutes": (time.perf_counter() - begun) / 60, "cpu_minutes": time.process_time() / 60}
        (self.folder / "cost.json").write_text(json.dumps({**cost, "paths": [str(run.path) for run in trained]}))
        _write(self.folder / "measures.csv", FIELDS, [{"seed": self.seed, "fold": fold, **row} for row in rows])


def jobs(names: list[str], runs: Path) -> list[Job]:
    """The trainings of the studies, those that come first at the front."""
    listed = []
    for name in names:
        study = STUDIES[name]
        wanted = {arm: set(study.seeds[:1]) for arm in study.arms}
        for claim in claims():
            for arm in claim.arms:
                if claim.study == name and arm in wanted:
                    wanted[arm] |= set(claim.seeds)
        folds = range(study.folds) if study.folds else [None]
        listed += [Job(name, arm, s, fold, runs) for arm, own in wanted.items() for s in own for fold in folds]
    later = {arm: len(FIRST) for name in names for arm in STUDIES[name].arms} | dict.fromkeys(FIRST, 0)
    return sorted(listed, key=lambda job: (later[job.arm] > 0, job.seed if later[job.arm] == 0 else 0))


def collect(name: str, runs: Path) -> int:
    """Write the rows of everything measured so far to `evidence/results/<study>.csv`; how many trainings that is.

    Planned trainings that were measured on another machine, and are not among these runs, keep the rows they have.
    """
    own = {job.key: _rows(job.folder / "measures.csv") for job in jobs([name], runs) if job.done}
    own = {key: [{**row, "value": f"{float(row['value']):.5g}"} for row in rows] for key, rows in own.items()}
    measured = _with_others(own, RESULTS / f"{name}.csv", [name], {"study": name})
    if rows := [row for rows in measured.values() for row in rows]:
        _write(RESULTS / f"{name}.csv", FIELDS, rows)
    return len(measured)


def collect_costs(runs: Path) -> None:
    """Write what every training took to `evidence/results/costs.csv`; others keep their rows as in `collect`."""
    own: dict[Key, list[dict[str, Any]]] = {}
    for job in jobs(list(STUDIES), runs):
        if job.done:
            cost = json.loads((job.folder / "cost.json").read_text())
            own[job.key] = [{**dict(zip(PLACE, job.key, strict=True)), **{name: round(cost[name], 2) for name in COST}}]
    rows = [row for rows in _with_others(own, RESULTS / "costs.csv", list(STUDIES), {}).values() for row in rows]
    if rows:
        _write(RESULTS / "costs.csv", (*PLACE, *COST), rows)


def _with_others(
    own: dict[Key, list[dict[str, Any]]], file: Path, studies: list[str], place: dict[str, str]
) -> dict[Key, list[dict[str, Any]]]:
    """Rows by training in the order of the plan: those of this machine, else those that the file has."""
    there: dict[Key, list[dict[str, Any]]] = {}
    for row in _rows(file) if file.exists() else []:
        key = tuple({**row, **place, "arm": row["arm"].removesuffix(measures.FAST)}[name] for name in PLACE)
        there.setdefault(key, []).append(row)
    planned = [job.key for job in jobs(studies, Path())]
    return {key: rows for key in planned if (rows := own.get(key) or there.get(key))}


def _write(file: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with replacing(file, parents=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def work(todo: list[Job]) -> None:
    """Do what nobody else does, one after the other, with the time that remains."""
    begun, finished = time.perf_counter(), 0
    for number, job in enumerate(todo):
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(job.folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                if job.done:
                    continue
                where = f"{job.study}/{job.arm}, seed {job.seed}" + ("" if job.fold is None else f", fold {job.fold}")
                print(f"{time.strftime('%H:%M:%S')} {number + 1} of {len(todo)}: {where}", flush=True)
                # a process of its own: what a training leaves in memory ends with it
                call = [sys.executable, "-m", "evidence.run", "--one", job.study, job.arm, str(job.seed)]
                call += [str(job.fold if job.fold is not None else -1), "--runs", str(job.runs)]
                failed = subprocess.run(call, check=False).returncode
                finished += 1
        except Timeout:
            continue
        rest = sum(not other.done for other in todo[number + 1 :])
        minutes = (time.perf_counter() - begun) / 60
        state = "failed" if failed else "done"
        print(f"  {state} after {minutes:.1f} min; {rest} left, about {rest * minutes / finished:.0f} min", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help="names of studies or papers; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--only", nargs="*", default=[], help="arms")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--folds", type=int, nargs="*", default=[])
    parser.add_argument("--list", action="store_true", help="what would be trained, and what is done")
    parser.add_argument("--collect", action="store_true", help="only gather what is measured")
    parser.add_argument("--one", nargs=4, metavar=("STUDY", "ARM", "SEED", "FOLD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        study, arm, seed, fold = options.one
        Job(study, arm, int(seed), int(fold) if int(fold) >= 0 else None, options.runs).run()
        return
    papers = {name: {c.study for c in claims() if c.paper.lower().startswith(name.lower())} for name in options.studies}
    chosen = {s for name in options.studies for s in ({name} if name in STUDIES else papers[name])} or set(STUDIES)
    if unknown := [name for name in options.studies if name not in STUDIES and not papers[name]]:
        parser.error(f"there is no study or paper {unknown[0]!r}; the studies are {', '.join(STUDIES)}")
    names = [name for name in STUDIES if name in chosen]
    todo = [
        job
        for job in jobs(names, options.runs)
        if (not options.only or job.arm in options.only)
        and (not options.seeds or job.seed in options.seeds)
        and (not options.folds or job.fold in options.folds)
    ]
    if options.list:
        for job in todo:
            print("done" if job.done else "    ", job.folder)
    elif not options.collect:
        others = [
            subprocess.Popen([sys.executable, "-m", "evidence.run", *sys.argv[1:], "--jobs", "1"])
            for _ in range(options.jobs - 1)
        ]
        work(todo)
        for other in others:
            other.wait()
    if not options.list:
        for name in names:
            print(name, collect(name, options.runs), "trainings in", os.path.relpath(RESULTS / f"{name}.csv"))
        collect_costs(options.runs)


if __name__ == "__main__":
    main()
