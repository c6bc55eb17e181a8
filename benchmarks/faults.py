"""Attacks on what is on disk and at the door: what is answered, what is unclear, what is lost in silence.

    python benchmarks/faults.py --version after --times 12      # writes the rows of this version into results/faults.csv

Another version is attacked by this very program with that version first on PYTHONPATH. Each attack ends as `right` (the
same result to the bit, or accepted), `clear` (an error or a warning in the toolkit's words), `unclear` (a raw error, or
one without words of its own) or `lost` (files of the user gone, another result, or damage that nobody mentions).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import toolkit as tk

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
TABLE = ROOT / "benchmarks" / "results" / "faults.csv"
COLUMNS = ("version", "attack", "tried", "right_or_clear", "unclear", "lost")
CONFIG = {"steps": 8, "batch_size": 2, "checkpoint_every": 2, "validate_every": 4, "log_every": 1, "seed": 3}
MEMORY = 8 * 2**30
STRATEGIES = ("sequential", "rehearsal", "ewc", "lwf")
FAMILIES = (
    *("adversarial_bias", "adversarial_noise", "dispersive", "elastic_weights", "latent_augmentation"),
    *("learning_without_forgetting", "random_convolution", "random_windows", "segreg", "selfreg", *STRATEGIES),
)
KILLS = 3  # of each
VOLUMES = (".nii", ".nii.gz", ".mha", ".nrrd", ".npz", ".png", ".bmp")


def discs() -> Any:
    drawn = np.random.default_rng(1)
    images = [drawn.standard_normal((16, 16)).astype(np.float32) for _ in range(10)]
    return tk.task_from_arrays(
        images, [(image > 0.5).astype(np.uint8) for image in images], classes=["background", "x"]
    )


def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tk.unet(1, 2, channels=(4, 8))


def begin(out: Path, **config: Any) -> Any:
    return tk.train(network(), discs(), config={**CONFIG, **config}, out=out, progress=False)


def carry_on(out: Path) -> Any:
    return tk.resume(out, network(), discs(), progress=False)


class Vanished(BaseException):
    """Stands for a process that vanishes."""


@contextlib.contextmanager
def at_step(step: int, action: Callable[[], Any]) -> Iterator[None]:
    """Do something between two steps of whatever trains meanwhile."""
    import toolkit.training.loop as loop

    whole = loop.seed_step

    def seed_step(seed: int, index: int, *rest: Any) -> None:
        if index == step:
            action()
        whole(seed, index, *rest)

    loop.seed_step = seed_step
    try:
        yield
    finally:
        loop.seed_step = whole


def vanish() -> None:
    raise Vanished


class Attacks:
    """Every attack gives one outcome after the other."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times, self.random = folder, times, random.Random(0)
        self.reference = begin(folder / "reference")
        self.stopped = folder / "stopped"
        with contextlib.suppress(Vanished), at_step(5, vanish):
            begin(self.stopped)
        scan = {"image": torch.randn(6, 1, 16, 16), "label": torch.randint(0, 2, (6, 16, 16))}
        self.scan, self.store = scan, folder / "store.zarr"
        tk.extract(network(), scan, ["bottleneck", "head_input"], pool="voxels", samples=9, out=self.store)
        self.cam = tk.grad_cam(network(), scan["image"], "bottleneck", tk.ClassSum(1))
        self.cam.save(folder / "cam.zip")
        self.count = 0

    def fresh(self, source: Path | None = None) -> Path:
        self.count += 1
        path = self.folder / f"copy{self.count}"
        if source is not None:
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
        return path

    def same(self, run: Any) -> bool:
        """Whether a run has the settings, the weights and the history of the one that nobody attacked."""
        mine, theirs = (timeless(one.path) for one in (run, self.reference))
        states = zip(run.model.state_dict().values(), self.reference.model.state_dict().values(), strict=True)
        return mine == theirs and all(torch.equal(a, b) for a, b in states)

    def judged(self, call: Callable[[], bool]) -> str:
        """One attack: the call says whether the result is the right one."""
        with warnings.catch_warnings(record=True) as said, contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            try:
                right = call()
            except tk.ToolkitError as error:
                return "unclear" if "failed on these arguments" in str(error) else "clear"
            except (Exception, Vanished):
                return "unclear"
        return "right" if right else "clear" if any(issubclass(w.category, tk.ToolkitWarning) for w in said) else "lost"

    def flipped(self, file: Path) -> None:
        content = bytearray(file.read_bytes())
        if content:
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        file.write_bytes(bytes(content))

    def kills(self) -> Iterator[str]:
        """SIGKILL at a random moment, then resume: each regularizer, and a sequence of each strategy."""
        for name in FAMILIES:
            reference = family(name, self.fresh(), resumed=False)
            for _ in range(KILLS):
                out = self.fresh()
                child = os.fork()
                if child == 0:
                    with contextlib.suppress(BaseException):
                        family(name, out, resumed=False)
                    os._exit(0)
                rows, end = self.random.randrange(1, sum(map(len, reference[0]))), time.monotonic() + 300
                while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
                    if sum(one.read_bytes().count(b"\n") for one in out.rglob("history.jsonl")) >= rows:
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                        break
                    time.sleep(0.002)
                yield self.judged(lambda n=name, path=out, whole=reference: alike(family(n, path, resumed=True), whole))

    def bits_in_a_run(self) -> Iterator[str]:
        """One flipped bit in any file that a resume reads."""
        names = [p.relative_to(self.stopped) for p in self.stopped.rglob("*") if p.is_file() and p.name != "state.json"]
        for index in range(self.times * 4):
            out = self.fresh(self.stopped)
            self.flipped(out / sorted(names)[index % len(names)])
            yield self.judged(lambda path=out: self.same(carry_on(path)))

    def power_cuts(self) -> Iterator[str]:
        """After a flush or a rename of a training, or of a sequence, the disk holds what was flushed and no more."""
        import power_cut

        whole = family("ewc", self.fresh(), resumed=False)
        for train, right, times in (
            (begin, lambda out: self.same(carry_on(out)), self.times * 4),
            (
                lambda out: family("ewc", out, resumed=False),
                lambda out: alike(family("ewc", out, resumed=True), whole),
                12,
            ),
        ):
            parent, before = self.fresh(), list[int]()
            parent.mkdir()
            with (
                power_cut.Disk(parent) as disk,
                at_step(0, lambda seen=before, disk=disk: seen.append(len(disk.moments))),
            ):
                train(parent / "run")
            images = [one for moment in disk.moments[before[0] - 1 :] for one in moment.values()]
            for image in self.random.sample(images, min(times, len(images))):
                power_cut.write(image, out := self.fresh())
                judged = self.judged(lambda path=out / "run", call=right: call(path))
                yield judged if judged == "right" else "lost"  # a run that cannot go on is lost, whatever is said

    def cached_packs(self) -> Iterator[str]:
        """Arrays of a generated pack are changed in the cache, in an archive that is whole."""
        case = tk.load_task("phantom-cardiac").cases("test")[0]
        image, label, known = case.image, case.label, tk.load_task("phantom-cardiac").content_hash()
        where = case.reader
        (path,) = Path(os.environ["TOOLKIT_CACHE"]).rglob(f"{where.site}_{where.subject:04d}_seed{where.seed}.npz")
        with np.load(path) as archive:
            stored = dict(archive)
        spot = np.arange(stored["image"].size).reshape(stored["image"].shape) == 9
        for changed in (
            {"image": np.where(spot, 1, stored["image"])},
            {"image": stored["image"].astype(np.float64) * 1.01},
            {"image": stored["image"][::-1], "label": stored["label"][::-1]},
            {"label": np.where(stored["label"] == 1, 2, stored["label"])},
            {"label": stored["label"].astype(np.int16) + 256},
            {"label": np.zeros_like(stored["label"])},
        ):
            np.savez_compressed(path, **{**stored, **changed})

            def right() -> bool:
                task = tk.load_task("phantom-cardiac")
                again = task.cases("test")[0]
                same = torch.equal(again.image, image) and torch.equal(again.label, label)
                return same and task.content_hash() == known

            yield self.judged(right)

    def manifests_that_reach_out(self) -> Iterator[str]:
        """A table names files outside its pack: only a refusal is right."""
        (pack := self.fresh()).mkdir()
        (pack / "manifests").mkdir()
        (pack / "data").mkdir()
        np.savez(pack / "secret.npz", image=np.zeros((2, 20, 20)), label=np.zeros((2, 20, 20), np.uint8))
        text = (Path(tk.__file__).parents[1] / "data_manifests" / "cardiac_acdc.toml").read_text(encoding="utf-8")
        with mock.patch.dict(os.environ, TOOLKIT_MANIFESTS=str(pack / "manifests"), TOOLKIT_DATA=str(pack / "data")):
            for number, file in enumerate(("../../secret.npz", str(pack / "secret.npz"), "a/../../../secret.npz")):
                for name, table in (
                    (f"own{number}", f"case,image\na,{file}\n"),
                    ("cardiac_acdc", f"patient,phase,split,group,slices,file\na,ED,train,DCM,2,{file}\n"),
                ):
                    (pack / "data" / name / "a").mkdir(parents=True, exist_ok=True)
                    named = text.replace('name = "cardiac_acdc"', f'name = "{name}"')
                    (pack / "manifests" / f"{name}.toml").write_text(named, encoding="utf-8")
                    (pack / "manifests" / f"{name}.csv").write_text(table, encoding="utf-8")
                    yield self.judged(lambda name=name: tk.load_task(name).cases()[0].image is None)

    def private_addresses(self) -> Iterator[str]:
        """Addresses that lead into this machine or its network, one way or another: nobody may be asked there."""
        from toolkit.data.download import Download, fetch

        hosts = ("127.0.0.1", "localhost", "10.0.0.1", "2130706433", "0x7f.1", "[::1]", "127.0.0.1\\@example.org")
        numbers = ("127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1")
        urls = [(f"https://{host}/a.tar", "127.0.0.1") for host in hosts] + [("http://127.0.0.1/a.tar", "127.0.0.1")]
        old = "sha256" in Download.__dataclass_fields__
        record = {"bytes": 9, "sha256": "0" * 64} if old else {"hash": f"sha256:{'0' * 64}"}
        asked: list[Any] = []

        def connect(_: Any, address: Any) -> None:
            asked.append(address)
            raise OSError("refused")

        for url, number in urls + [("https://example.org/a.tar", one) for one in numbers]:

            def found(name: str, *_: Any, number: str = number, url: str = url, **__: Any) -> list[Any]:
                one = "1.1.1.1" if name == "example.org" and name not in url.split("/")[2:3] else number
                family = socket.AF_INET6 if ":" in one else socket.AF_INET
                return [(family, socket.SOCK_STREAM, 6, "", (one, 443, 0, 0) if ":" in one else (one, 443))]

            asked.clear()
            with (
                mock.patch.object(socket, "getaddrinfo", found),
                mock.patch.object(socket.socket, "connect", connect),
                mock.patch.dict(os.environ, no_proxy="*"),
            ):
                source, folder = Download(url=url, file="a.tar", **record), self.fresh()
                result = self.judged(
                    lambda s=source, f=folder: fetch(s, f, progress=False, attempts=1, pause=0.0) is None
                )
            yield "lost" if any(not str(one[0]).startswith("1.1.1.1") for one in asked) else result

    def names_that_lead_out(self) -> Iterator[str]:
        """Names of tasks, arms, sites and cases that are paths: all stays below the current folder."""
        for name in ("../../x", "..", str(self.folder / "x"), "a/../../../b", "..\\..\\x", "C:\\x", "~/x", "x\0y"):
            (here := self.fresh() / "a" / "b").mkdir(parents=True)
            os.chdir(here)
            drawn = np.random.default_rng(1).standard_normal((6, 16, 16)).astype(np.float32)
            options = {
                "classes": ["background", "x"],
                "name": name,
                "ids": [name, *"bcdef"],
                "sites": [name] * 3 + ["B"] * 3,
            }
            task = tk.task_from_arrays(
                drawn, (drawn > 0.5).astype(np.uint8), **options, splits=["train", "val", "test"] * 2
            )
            short = {**CONFIG, "steps": 1, "validate_every": 0}
            before = sorted(self.folder.rglob("*"))

            def all_of_it(task: Any = task, short: Any = short) -> bool:
                run = tk.train(network(), task, config=short, progress=False)
                run.predict(task.cases("test"), out="maps")
                tk.train_sequence(network(), task, task.sites, config=short, out="sequence", progress=False)
                tk.grad_cam(network(), task.cases("test"), "bottleneck", tk.ClassSum(1)).save_nifti("cams")
                return True

            result = self.judged(all_of_it)
            os.chdir(self.folder)
            new = {*self.folder.rglob("*")} - {*before}
            yield result if all(here in one.parents for one in new if "cache" not in one.parts) else "lost"

    def edited_records(self) -> Iterator[str]:
        """A number of run.json or checkpoint.json changed by hand."""
        for key, value in (("learning_rate", 0.5), ("seed", 4), ("steps", 9), ("batch_size", 3), ("weight_decay", 0.9)):
            out = self.fresh(self.stopped)
            record = json.loads((out / "run.json").read_text())
            record["config"][key] = value
            (out / "run.json").write_text(json.dumps(record))
            yield self.judged(lambda path=out: self.same(carry_on(path)))
        for file, key in [(f, k) for f in ("run.json", "checkpoint.json") for k in ("site", "stage", "best", "sha256")]:
            out = self.fresh(self.stopped)
            path = out / file if file == "run.json" else out / "checkpoints" / "00000004" / file
            record = json.loads(path.read_text())
            if record.pop(key, self) is not self:
                path.write_text(json.dumps(record))
                yield self.judged(lambda path=out: self.same(carry_on(path)))

    def torn_history(self) -> Iterator[str]:
        """A line in the middle that cannot be read: the rows after it must stay, and somebody must say so."""
        for damage in (b'{"step": 2, "ev', b"\xff\xfe\x00", b"[1]", b"\x00" * 40):
            out = self.fresh(self.reference.path)
            lines = (out / "history.jsonl").read_bytes().splitlines()
            (out / "history.jsonl").write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]) + b"\n")
            yield self.judged(lambda path=out, rows=lines: len(self.looked_at(path).history) == len(rows) - 1)

    def looked_at(self, path: Path) -> Any:
        return tk.load_run(path, model=network(), task=discs())

    def bits_in_a_store(self) -> Iterator[str]:
        """One flipped bit in a feature store."""
        whole = contents(self.store)
        names = sorted(p.relative_to(self.store) for p in self.store.rglob("*") if p.is_file())
        for index in range(self.times * 4):
            out = self.fresh(self.store)
            self.flipped(out / names[index % len(names)])
            yield self.judged(lambda path=out: contents(path) == whole)

    def bits_in_a_result(self) -> Iterator[str]:
        """One flipped bit in a saved result."""
        for _ in range(self.times * 2):
            out = self.fresh(self.folder / "cam.zip")
            self.flipped(out)
            yield self.judged(lambda path=out: torch.equal(tk.load_result(path)["bottleneck"], self.cam["bottleneck"]))

    def bits_in_a_volume(self) -> Iterator[str]:
        """One flipped bit in a file of the user, read once before: same size, same date."""
        whole = {}
        for suffix in VOLUMES:
            path = self.fresh().with_suffix(suffix)
            write_volume(path)
            for index in range(self.times):
                changed = path.with_name(f"{index}-{path.name}")
                shutil.copy2(path, changed)
                whole[changed] = voxels(changed)
                date = changed.stat().st_mtime_ns
                self.flipped(changed)
                os.utime(changed, ns=(date, date))
        for path, first in whole.items():
            yield self.judged(lambda p=path, f=first: np.array_equal(voxels(p), f))

    def fuzzed_files(self) -> Iterator[str]:
        """Cut, overwritten or random content in every kind of file that is opened; only a refusal is right."""
        weights = next((self.reference.path / "checkpoints").glob("*/weights.safetensors"))
        torch.save(network().state_dict(), self.folder / "w.pt")
        kinds: list[tuple[Path, Callable[[Path], Any]]] = [
            (self.folder / "cam.zip", tk.load_result),
            (self.folder / "w.pt", lambda path: tk.load_weights(network(), path)),
            (weights, lambda path: tk.load_weights(network(), path)),
        ]
        for index in range(self.times * 3):
            source, opened = kinds[index % 3]
            content, path = source.read_bytes(), self.fresh().with_suffix(source.suffix)
            start = self.random.randrange(len(content))
            noise = self.random.randbytes(64)
            path.write_bytes((content[:start], noise * 8, content[: start // 2] + noise)[index // 3 % 3])
            yield self.judged(lambda o=opened, p=path: bool(o(p)) and False)

    def strange_weights(self) -> Iterator[str]:
        """Tensors that are no weights: whoever loads them silently trains on NaN or on rounded numbers."""
        shape = (2, 4, 1, 1)
        for value in (
            torch.full(shape, torch.nan), torch.ones(shape, dtype=torch.complex64), torch.ones(shape, dtype=torch.int32),
            torch.ones(shape).to_sparse(), torch.ones(shape, device="meta"), torch.ones(shape, dtype=torch.bool),
        ):  # fmt: skip
            path = self.fresh().with_suffix(".pt")
            torch.save({**network().state_dict(), "head.weight": value}, path)
            yield self.judged(lambda p=path: bool(tk.load_weights(network(), p)) and False)

    def full_disks(self) -> Iterator[str]:
        """No file may grow beyond a size: training and extraction end with an error, and go on when there is space."""
        for size in (200, 2_000, 6_000, 12_000, 30_000):
            out = self.fresh()
            command = [sys.executable, __file__, "--train", str(out), "--file-size", str(size)]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
            yield (
                "right"
                if not said.strip()
                else "clear"
                if "Error" in said and str(out) in said.split("RAISED")[-1]
                else "unclear"
            )
            if (out / "run.json").exists():
                yield self.judged(lambda path=out: self.same(carry_on(path)))

    def failed_extractions(self) -> Iterator[str]:
        """An image with NaN: what was extracted before it must be kept."""
        seen: list[int] = []
        for bad in range(2, 6):
            net, out = network(), self.fresh().with_suffix(".zarr")
            net.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
            image = self.scan["image"].clone()
            image[bad] = torch.nan
            options = {"layers": "bottleneck", "pool": "global", "batch_size": 1, "out": out}
            with contextlib.suppress(tk.ToolkitError):
                tk.extract(net, [{"image": one, "id": str(i)} for i, one in enumerate(image)], **options)
            seen.clear()
            tk.extract(net, [{"image": one, "id": str(i)} for i, one in enumerate(self.scan["image"])], **options)
            yield "right" if sum(seen) <= 7 - bad else "lost"  # a batch runs when the next image is at hand

    def races(self) -> Iterator[str]:
        """Several resumes at one instant: one trains, the history is whole."""
        for _ in range(self.times // 2):
            out, start = self.fresh(self.stopped), threading.Barrier(3)

            def resume(path: Path = out, barrier: threading.Barrier = start) -> None:
                barrier.wait()
                with contextlib.suppress(Exception):
                    carry_on(path)

            run_all([threading.Thread(target=resume) for _ in range(3)])
            yield self.judged(lambda path=out: self.same(carry_on(path)))

    def two_writers(self) -> Iterator[str]:
        """Two extractions into one store at one instant: what is published is whole."""
        whole = contents(self.store)
        for _ in range(self.times // 2):
            out, start = self.fresh().with_suffix(".zarr"), threading.Barrier(2)

            def write(path: Path = out, barrier: threading.Barrier = start) -> None:
                barrier.wait()
                with contextlib.suppress(Exception):
                    tk.extract(network(), self.scan, ["bottleneck", "head_input"], pool="voxels", samples=9, out=path)

            run_all([threading.Thread(target=write) for _ in range(2)])
            yield self.judged(lambda path=out: contents(path) == whole)

    def folders_of_others(self) -> Iterator[str]:
        """`out` holds files of the user, and the first step fails or not: they must be there afterwards."""
        for name in ("checkpoints/mine.pt", "history.jsonl", "notes.txt", "checkpoints/00000000/mine.pt"):
            for step in (0, None):
                out = self.fresh()
                (out / name).parent.mkdir(parents=True)
                (out / name).write_text("mine")
                with contextlib.suppress(Exception), at_step(-1 if step is None else step, lambda: 1 / 0):
                    begin(out, steps=1)
                here = (out / name).exists() and (out / name).read_text() == "mine"
                yield "clear" if here and not (out / "run.json").exists() else "lost"

    def lost_directories(self) -> Iterator[str]:
        """The run's folder is moved or deleted, or the process changes its own, while it trains."""
        for kind in ("moved", "deleted", "working directory"):
            for step in (1, 5):
                parent = self.fresh()
                (parent / "elsewhere").mkdir(parents=True)
                os.chdir(parent)

                def lose(kind: str = kind, parent: Path = parent) -> None:
                    if kind == "moved":
                        (parent / "run").rename(parent / "moved")
                    elif kind == "deleted":
                        shutil.rmtree(parent / "run")
                    else:
                        os.chdir(parent / "elsewhere")

                with at_step(step, lose):
                    yield self.judged(lambda p=parent: self.finished_and_there(p))
                os.chdir(self.folder)

    def finished_and_there(self, parent: Path) -> bool:
        run = begin(Path("run"))
        with contextlib.suppress(tk.ToolkitError):  # it said that it is finished, and cannot be opened
            return run.finished and self.same(self.looked_at(parent / "run"))
        return False

    def wrong_arguments(self) -> Iterator[str]:
        """Wrong and extreme arguments of every public call, see tests/support/wrong_arguments.py."""
        import wrong_arguments

        names = {"right": "right", "clear": "clear", "unforeseen": "unclear", "raw": "unclear"}
        folder = self.fresh()
        folder.mkdir()
        os.chdir(folder)
        counts = wrong_arguments.attack(folder, 5)
        os.chdir(self.folder)
        for kind, count in counts.items():
            yield from [names[kind]] * count


def contents(store: Path) -> Any:
    features = tk.open_features(store)
    rows = {layer: features.rows(layer).numpy().tobytes() for layer in features.layers}
    moments = {layer: features.moments(layer).gram.numpy().tobytes() for layer in features.layers}
    head = [None if t is None else t.numpy().tobytes() for t in (features.head_weights, features.head_bias)]
    data = features.provenance["weights"], features.provenance["parameters"]
    return rows, moments, head, data, features.cases.to_csv(), features.images.to_csv()


def family(name: str, out: Path, *, resumed: bool) -> tuple[list[Any], list[Any]]:
    """History and weights of each stage of a training with a regularizer, or of a sequence, begun or resumed."""
    from every_regularizer import made, network_for, objective_for

    generator = np.random.default_rng(2)
    images = [generator.random((32, 32)).astype(np.float32) for _ in range(16)]
    labels = [(image > 0.8).astype(np.uint8) for image in images]
    fixed = {"classes": ["background", "x"], "sites": list("AB") * 8, "normalisation": "none"}
    task = tk.task_from_arrays(images, labels, **fixed)
    regularizer = None if name in STRATEGIES else made(name)
    objects = {"model": network_for(regularizer), "task": task, "regularizer": regularizer, "progress": False}
    objects["objective"] = None if regularizer is None else objective_for(regularizer)
    if name in STRATEGIES and resumed:
        stages = tk.resume_sequence(out, **objects).stages
    elif name in STRATEGIES:
        stages = tk.train_sequence(**objects, sites=["A", "B"], strategy=name, config=CONFIG, out=out).stages
    else:
        stages = [tk.resume(out, **objects) if resumed else tk.train(**objects, config=CONFIG, out=out)]
    return [timeless(one.path) for one in stages], [[*one.model.state_dict().values()] for one in stages]


def alike(one: tuple[list[Any], list[Any]], other: tuple[list[Any], list[Any]]) -> bool:
    pairs = [(a, b) for mine, theirs in zip(one[1], other[1], strict=True) for a, b in zip(mine, theirs, strict=True)]
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in pairs)


def write_volume(path: Path) -> None:
    """A volume, a stack or a picture in the format of this name."""
    import nibabel
    from PIL import Image

    values = np.random.default_rng(4).integers(1, 200, (12, 12, 8)).astype(np.uint8)
    if path.suffix in (".nii", ".gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, image=values, label=values % 2)
    elif path.suffix in (".png", ".bmp"):
        Image.fromarray(values[..., 0]).save(path)
    else:
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), path, useCompression=path.suffix == ".mha")


def voxels(path: Path) -> np.ndarray:
    """What a new task reads of it."""
    dims = 2 if path.suffix in (".png", ".bmp") else 3
    return tk.task_from_table([{"image": path}], classes=["background", "x"], dims=dims).cases()[0].image.numpy()


def timeless(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def train_here(out: Path, size: int | None) -> None:
    """The child of `full_disks`."""
    torch.set_num_threads(1)
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        begin(out)
    except Exception as error:
        sys.exit(f"RAISED {type(error).__name__}: {error}" if isinstance(error, tk.ToolkitError) else "RAISED raw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", default="after")
    parser.add_argument("--times", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--file-size", type=int)
    options = parser.parse_args()
    if options.train is not None:
        train_here(options.train, options.file_size)
        return
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    names = [n for n, f in vars(Attacks).items() if f.__doc__ and not n.startswith("_")]
    names = [name for name in names if name not in ("fresh", "same", "judged", "flipped", "looked_at")]
    old = list(csv.DictReader(TABLE.open(encoding="utf-8"))) if TABLE.exists() else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("TOOLKIT_CACHE", f"{folder}/cache")
        attacks = Attacks(Path(folder), options.times)
        for name in options.only or names:
            counts = Counter(getattr(attacks, name)())
            row = {"version": options.version, "attack": name, "tried": counts.total(), "unclear": counts["unclear"]}
            row |= {"right_or_clear": counts["right"] + counts["clear"], "lost": counts["lost"]}
            print(row, flush=True)
            old = [one for one in old if (one["version"], one["attack"]) != (options.version, name)] + [row]
    with TABLE.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(old, key=lambda one: (str(one["attack"]), str(one["version"]) != "before")))


if __name__ == "__main__":
    main()
