"""Time and peak memory of every notebook in its quick form, written to benchmarks/results/notebooks.json.

    scripts/launch python benchmarks/notebook_times.py [notebooks/01_data.ipynb ...] [--timeout 600]
    scripts/launch python benchmarks/notebook_times.py --train [notebooks/00_start.ipynb ...]
    scripts/launch python benchmarks/notebook_times.py --train notebooks/31_*.ipynb --set STEPS=4 "SEEDS=(0,)"

Each notebook runs in a kernel of its own with FAST=1. Memory is the largest resident size of any one process of it.
CPU time holds on a busy machine too, wall time does not: `load` is the machine's when the notebook ended. Some
notebooks replace their rows and leave the others. A notebook that fails is recorded with its error, and the exit status is 1.

`--train` measures what the long form adds: the cells that train in every notebook with a switch TRAIN, with it on, in a
folder of its own that is removed afterwards, so that no training resumes an earlier one. The other cells run in their quick
form. A notebook that would take too long runs to its end with the few steps of `SMALL` instead, and its long form is
reckoned from what a step cost there once warm, with its share of validations and gradient ratios (the histories of these
kernels hold CPU seconds). The rows are written to benchmarks/results/notebooks_train.json, and a table of them to the end
of docs/costs.md. `--needed` leaves out the cells that give the training nothing: a tenth of the time where
maps and figures cost most. `--set` runs a notebook with other values of its parameters, and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import math
import os
import resource
import subprocess
import symtable
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interleave import machine

from toolkit.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "notebooks.json"
TRAINED = RESULT.with_name("notebooks_train.json")
BUDGET = {"notebook_s": 60.0, "all_s": 360.0, "cell_s_of_the_workshop": 30.0, "memory_mb": 2000.0}
PAGE = ROOT / "docs" / "costs.md"
TITLE = "## The long forms of the notebooks"
TOTALS = {"s": "wall_s", "cpu_s": "cpu_s"}
SWITCH = "if TRAIN:"
CLOCK = "import time\n\ntime.perf_counter = time.process_time  # histories then hold CPU seconds"
# Too long to be run whole here: with these steps, a like share of every number of steps, and seeds.
SMALL: dict[str, dict[str, Any]] = {
    "11_segreg_appendix": {"STEPS": 3, "SEEDS": [0]},
    "21_selfreg_appendix": {"STEPS": 2, "SEEDS": [0]},
    "31_latent_augmentation_appendix": {"STEPS": 3},
    "41_med_disseg_appendix": {"STEPS": 3, "UNET_STEPS": 2},
    "51_compare_appendix": {"STEPS": 3, "SEEDS": [0]},
}
# What fits an evening on a laptop where the long form is out of all proportion.
LAPTOP: dict[str, dict[str, Any]] = {
    "21_selfreg_appendix": {"STEPS": 400, "SEEDS": [0]},
    "51_compare_appendix": {"SEEDS": [0]},
}


def execute(path: Path, timeout: int | None, parameters: Mapping[str, Any], only_needed: bool) -> dict[str, Any]:
    """Run one notebook in this process's kernel and measure the kernel; with parameters below the current folder."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    cell = parameter_cell(notebook)
    cell.source = with_parameters(cell.source, parameters)
    if only_needed:
        notebook.cells = needed(notebook.cells)
    if parameters:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(CLOCK))
    folder = Path.cwd() if parameters else path.parent
    client = NotebookClient(
        notebook, timeout=timeout, record_timing=True, resources={"metadata": {"path": str(folder)}}
    )
    spent = {True: 0.0, False: 0.0}  # CPU seconds of the cells that train where TRAIN is on, and of the others

    def count(cell: Any, **_: Any) -> None:
        spent[SWITCH in cell.source] += _kernel_seconds(client) - sum(spent.values())

    if parameters:
        client.on_cell_executed = count
    started, error = time.perf_counter(), ""
    try:
        client.execute()
    except (CellExecutionError, TimeoutError, RuntimeError) as problem:
        error = str(problem).strip().splitlines()[-1]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    seconds = [_cell_seconds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    row = {
        "notebook": path.name,
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss * kilobyte / 1e6),
        "longest_cell_s": round(max(seconds, default=0.0), 1),
        "load": round(os.getloadavg()[0], 1),
        "error": error,
    }
    return {**row, "training_cpu_s": round(spent[True], 1)} if parameters else row


def _kernel_seconds(client: Any) -> float:
    """CPU seconds of the kernel so far, with those of processes that it has started and that have ended."""
    import psutil

    times = psutil.Process(client.km.provisioner.pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _cell_seconds(cell: Any) -> float:
    times = cell.metadata.get("execution", {})
    ends = [times.get("iopub.execute_input"), times.get("shell.execute_reply")]
    if None in ends:
        return 0.0
    first, last = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in ends)
    return (last - first).total_seconds()


def parameter_cell(notebook: Mapping[str, Any]) -> Any:
    """The cell that holds the parameters."""
    return next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))


def needed(cells: Sequence[Any]) -> list[Any]:
    """The cells that train and the parameters, with the cells that assign what those read, and so on."""
    chosen: list[Any] = []
    wanted: set[str] = set()
    for cell in (cell for cell in reversed(cells) if cell.cell_type == "code"):
        tables = [symtable.symtable(cell.source, "cell", "exec")]
        names = {one.get_name() for one in tables[0].get_symbols() if one.is_assigned() or one.is_imported()}
        if names & wanted or SWITCH in cell.source or "parameters" in cell.metadata.get("tags", []):
            for table in tables:  # grows by the functions and comprehensions inside
                tables += table.get_children()
            read = {
                s.get_name() for table in tables for s in table.get_symbols() if s.is_referenced() and s.is_global()
            }
            top = {one.get_name() for one in tables[0].get_symbols() if one.is_referenced()}
            wanted = (wanted - names) | read | top
            chosen.insert(0, cell)
    return chosen


def assigned(source: str) -> dict[str, ast.expr]:
    """The value of every name that a cell assigns; `A, B = 1, 2` gives both."""
    values: dict[str, ast.expr] = {}
    for line in (line for line in ast.parse(source).body if isinstance(line, ast.Assign)):
        target, value = line.targets[0], line.value
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts, strict=True) if both else [(target, value)]
        values |= {name.id: own for name, own in pairs if isinstance(name, ast.Name)}
    return values


def with_parameters(source: str, parameters: Mapping[str, Any]) -> str:
    """The source of a cell of parameters with other values."""
    known, text = assigned(source), source.encode()
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"no parameter {', '.join(unknown)}; there are {', '.join(known)}")
    starts = [0]  # of the lines, in bytes, as the columns of ast are
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for name in sorted(parameters, key=lambda name: (known[name].lineno, known[name].col_offset), reverse=True):
        old = known[name]
        start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
        text = text[:start] + repr(parameters[name]).encode() + text[end:]
    return text.decode()


def amounts(source: str) -> dict[str, Any]:
    """The parameters that say how much is trained; of `60 if FAST else 300` the long form's value."""
    values = {name: one for name, one in assigned(source).items() if name.endswith(("STEPS", "SEEDS"))}
    long = {name: one.orelse if isinstance(one, ast.IfExp) else one for name, one in values.items()}
    return json.loads(json.dumps({name: ast.literal_eval(one) for name, one in long.items()}))


def measure(
    path: Path, timeout: int, parameters: Mapping[str, Any] | None = None, only_needed: bool = False
) -> dict[str, Any]:
    """Run one notebook in a process of its own, so that the numbers of its kernel are its own; with parameters trained."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(path), "--timeout", str(timeout)]
    own = {name: value for name, value in os.environ.items() if name != "NOTEBOOK_DATA" or parameters is None}
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        if parameters is not None:
            command += ["--set", *(f"{name}={value!r}" for name, value in {"TRAIN": True, **parameters}.items())]
            command += ["--needed"] * only_needed
            own["TMPDIR"] = folder
        own["FAST"] = "1"
        done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"notebook": path.name, "error": done.stderr.strip().splitlines()[-1]}
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if parameters is not None:
            cells = "needed" if only_needed else "all"
            row |= {"parameters": dict(parameters), "cells": cells, **trainings(Path(folder))}
    return row


def trainings(folder: Path) -> dict[str, Any]:
    """What was trained below a folder, and CPU seconds of as many warm steps, with their share of what comes now and then."""
    number, steps, seconds = 0, 0, 0.0
    for file in folder.rglob("run.json"):
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        history = (file.parent / "history.jsonl").read_text(encoding="utf-8").splitlines()
        last = {row["event"]: row for row in map(json.loads, history)}  # of the steps since the one before, so warm
        each = last["train"]["seconds/step"] + last["train"]["seconds/gradient_ratio"] / config["log_every"]
        if config["validate_every"]:
            each += last.get("validation", {}).get("seconds/validation", 0.0) / config["validate_every"]
        number, steps, seconds = number + 1, steps + config["steps"], seconds + config["steps"] * each
    return {"trainings": number, "steps": steps, "steps_cpu_s": round(seconds, 2)}


def reckoned(run: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """CPU seconds of the cells that train, with the wanted parameters: linear in steps and seeds."""
    own = {**wanted, **run["parameters"]}
    (times,) = {value / own[name] for name, value in wanted.items() if isinstance(value, int)}
    seeds = math.prod(len(value) / len(own[name]) for name, value in wanted.items() if isinstance(value, list))
    return seeds * (run["training_cpu_s"] + (times - 1) * run["steps_cpu_s"])


def long_form(path: Path, timeout: int, only_needed: bool) -> dict[str, Any]:
    """The row of a notebook's long form, run whole or with few steps."""
    defaults = amounts("".join(parameter_cell(json.loads(path.read_text(encoding="utf-8")))["source"]))
    run = measure(path, timeout, {**defaults, **SMALL.get(path.stem, {})}, only_needed)
    return with_reckoning({"notebook": path.name, "parameters": defaults, "run": run, "error": run["error"]})


def with_reckoning(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what follows from its run."""
    name, run, parameters = row["notebook"].removesuffix(".ipynb"), row["run"], row["parameters"]
    if row["error"]:
        return dict(row)
    seconds = reckoned(run, parameters)  # of one that was run whole as measured
    how = "whole" if run["parameters"] == parameters else "reckoned"
    own = {"how": how, "training_cpu_s": round(seconds), "hours": round(seconds / 3600, 3)}
    if fits := LAPTOP.get(name):
        own["laptop"] = {"parameters": fits, "training_cpu_s": round(reckoned(run, {**parameters, **fits}))}
    return {"notebook": row["notebook"], "parameters": parameters, **own, "run": run, "error": ""}


def in_words(seconds: float) -> str:
    """A time as the notebooks and docs/costs.md say it."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.2g} h"


def section() -> list[str]:
    """What docs/costs.md ends with."""
    content = json.loads(TRAINED.read_text(encoding="utf-8"))
    table = ["| notebook | parameters | training, on one core | how | for a laptop |", "|---|---|---|---|---|"]
    rows = [row for row in content["rows"] if not row["error"]]
    for row in rows:
        small, fits = row["run"]["parameters"], row.get("laptop")
        how = "all steps run" if row["how"] == "whole" else f"reckoned from {_written(small)}"
        less = f"{_written(fits['parameters'])}: {in_words(fits['training_cpu_s'])}" if fits else ""
        cells = [
            row["notebook"].removesuffix(".ipynb"),
            _written(row["parameters"]),
            in_words(row["training_cpu_s"]),
            how,
            less,
        ]
        table.append("| " + " | ".join(cells) + " |")
    load = [row["run"]["load"] for row in rows]
    place = ", ".join(f"{name} {content[name]}" for name in ("toolkit", "torch", "python", "processor", "threads"))
    return [
        TITLE,
        "",
        "Written by `python benchmarks/notebook_times.py --train --needed`. With `TRAIN = True` a notebook trains from scratch what",
        "it loads otherwise, or what has no networks: CPU time of the cells that do, on one core. A reckoned time is linear in steps",
        "and seeds, from the notebook run with few of them. Numbers: `benchmarks/results/notebooks_train.json`.",
        "",
        *table,
        "",
        f"{place}, clock cpu; other programs ran meanwhile (load {min(load)} to {max(load)}).",
    ]


def put_into_page() -> None:
    """Replace the end of docs/costs.md; method_table.py writes the rest."""
    before = PAGE.read_text(encoding="utf-8").partition(TITLE)[0].rstrip()
    PAGE.write_text("\n".join([before, "", *section()]) + "\n", encoding="utf-8")


def _written(parameters: Mapping[str, Any]) -> str:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}
    return ", ".join(f"`{name} = {value}`" for name, value in values.items())


def write(file: Path, content: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps(content, indent=1) + "\n", parents=True)


def merged(file: Path, rows: Sequence[Mapping[str, Any]], some: bool) -> list[dict[str, Any]]:
    """The rows of all notebooks: those of before where only some have run."""
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if some and file.exists() else []
    every = {row["notebook"]: row for row in (*known, *rows)}
    return [every[name] for name in sorted(every)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument(
        "--timeout", type=int, default=600, help="seconds that one cell may take; with --train no limit"
    )
    parser.add_argument("--train", action="store_true", help="the long form")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=value", help="parameters; nothing is written")
    parser.add_argument("--needed", action="store_true", help="with --train: only the cells that the training needs")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = {name: ast.literal_eval(value) for name, _, value in (one.partition("=") for one in options.set)}
    if options.one:
        print(json.dumps(execute(options.one, None if given else options.timeout, given, options.needed)))
        return 0
    if given and not options.train:
        parser.error("--set goes with --train")
    chosen = [path.resolve() for path in options.notebooks] or sorted((ROOT / "notebooks").glob("*.ipynb"))
    rows = []
    for path in chosen:
        if not options.train:
            rows.append(measure(path, options.timeout))
        elif SWITCH in path.read_text(encoding="utf-8"):
            own = (path, options.timeout)
            rows.append(measure(*own, given, options.needed) if given else long_form(*own, options.needed))
        else:
            continue
        print(json.dumps(rows[-1]), flush=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    if options.train and not given:
        every = [with_reckoning(row) for row in merged(TRAINED, rows, bool(options.notebooks))]
        write(TRAINED, {"benchmark": "notebooks_train", **machine(threads, "cpu"), "rows": every})
        put_into_page()
    elif not options.train:
        every = merged(RESULT, rows, bool(options.notebooks))
        totals = {f"all_{key}": round(sum(row.get(own, 0.0) for row in every), 1) for key, own in TOTALS.items()}
        write(RESULT, {"benchmark": "notebooks", **machine(threads, "wall"), "budget": BUDGET, **totals, "rows": every})
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
