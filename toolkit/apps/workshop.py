"""The workshop: its folder of notebooks, and the checks of its exercises; public as `toolkit.workshop`.

Every expected value is measured on the trained networks that the notebook itself loads: nothing is written down here.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.catalogue import load_task
from toolkit.errors import ConfigError, ToolkitError
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.mask_result import MaskedLatent
from toolkit.explain.masking import mask_latent
from toolkit.explain.targets import Region
from toolkit.features.capture import capture
from toolkit.files import write_atomically
from toolkit.inference.extract import extract
from toolkit.inference.layers import layer_names
from toolkit.measure.drift import Drift
from toolkit.measure.similarity import channel_similarity
from toolkit.methods.med_disseg.regularizer import preset_check
from toolkit.training.trained import list_trained, load_trained

NOTEBOOK = "70_workshop.ipynb"
NOT_FOR_LEARNERS = ("solution", "instructor")
BLOCKS = ("encoder.1", "encoder.2", "encoder.3", "bottleneck", "decoder.3", "decoder.2", "decoder.1")


class Unsolved(AssertionError):
    """An exercise without an answer, or with one that does not hold."""


def build_bundle(out: str | Path, notebooks: str | Path) -> Path:
    """Write the notebooks and the page beside them; the folder appears whole or not at all.

    Data and networks are not copied: they come with the installed toolkit, and nothing is downloaded.

    Args:
        out: folder to write; an earlier bundle there is replaced, anything else is left alone.
        notebooks: folder of the notebooks; the learners' copy of the workshop's loses its solutions.

    Raises:
        ConfigError: `out` holds something that is no bundle, or `notebooks` holds no workshop.
    """
    target, source, bundle = Path(out), Path(notebooks), Path(out) / "notebooks" / NOTEBOOK
    if target.is_file() or (target.exists() and any(target.iterdir()) and not bundle.is_file()):
        raise ConfigError("The folder holds something else.", where=str(target), fix="Name an empty or new one.")
    if not (source / NOTEBOOK).is_file():
        raise ConfigError(f"There is no {NOTEBOOK}.", where=str(source), fix="Name the folder of the notebooks.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".workshop-") as temporary:
        new = Path(temporary) / "bundle"
        shutil.copytree(source, new / "notebooks", ignore=shutil.ignore_patterns(".*", "*checkpoints"))
        solved = new / "notebooks" / NOTEBOOK
        learners = json.dumps(unsolved(json.loads(solved.read_text(encoding="utf-8"))), indent=1)
        (new / "instructor").mkdir()
        solved.rename(new / "instructor" / f"{solved.stem}_solutions.ipynb")
        write_atomically(solved, learners + "\n")
        write_atomically(new / "README.md", Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
        if target.exists():
            shutil.rmtree(target)
        new.replace(target)
    return target


def unsolved(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook (as JSON) without the cells that are for the instructor."""
    learners = copy.deepcopy(dict(notebook))
    learners["cells"] = [
        cell for cell in learners["cells"] if not set(cell["metadata"].get("tags", [])) & set(NOT_FOR_LEARNERS)
    ]
    return learners


def check(number: int, answer: Any) -> None:
    """Compare the answer of an exercise with what the trained networks show.

    Raises:
        Unsolved: no answer yet, or a wrong one; with a hint.
    """
    judge = _JUDGES[number - 1]  # its docstring is the hint
    if answer is ... or answer is None:
        raise Unsolved(f"Exercise {number} is not solved yet. Hint: {judge.__doc__}")
    try:
        wrong = judge(answer)
    except (TypeError, ValueError, RuntimeError):  # an array, a table, a list
        wrong = f"{_short(answer)} is no answer to this"
    if wrong is not None:
        raise Unsolved(f"Exercise {number}: {wrong}. Hint: {judge.__doc__}")


def expected() -> dict[int, Any]:
    """The instructor's sheet: what each exercise's check compares with, from the same files."""
    return {
        1: _patients(),
        2: "head_input, or head:input",
        3: sorted(_cancelled()),
        4: {str(seed): f"{plain:.2f} to {taught:.2f}" for seed, (plain, taught) in _redundancies().items()},
        5: _released_gradient(),
        6: "a tk.Drift of the two stores, paired=False; its value lies in the grey null",
        7: "a masked latent of fraction 0.5, soft=False, skips='zero'; " + _changed(),
        8: "inconclusive (one seed)",
    }


def _seeds(*names: str) -> list[int]:
    listed = list_trained()
    return sorted(set.intersection(*(set(listed.loc[listed["name"] == name, "seed"]) for name in names)))


@functools.cache
def _cases(site: str) -> list[Any]:
    """The test images of a site, the largest right ventricle first."""
    cases = load_task("phantom-cardiac").cases("test", site=site)
    return sorted(cases, key=lambda one: -int((one.label == 1).sum()))


def _patients() -> int:
    return len({case.subject for case in _cases("B")})


@functools.cache
def _cancelled() -> frozenset[str]:
    """Blocks whose Grad-CAM of the left ventricle cancels in every trained plain network, on the first image."""
    target = Region("LV", inside="reference")
    layers = []
    for seed in _seeds("phantom-cardiac/plain"):
        table = grad_cam(load_trained("phantom-cardiac/plain", seed), _cases("A")[0], list(BLOCKS), target).table()
        layers.append(frozenset(table.loc[table["status"] == "cancelled", "layer"]))
    return frozenset.intersection(*layers)


@functools.cache
def _redundancies() -> dict[int, list[float]]:
    """Redundancy of the bottleneck, plain and taught, of every seed."""
    names = ("phantom-cardiac/selfreg-plain", "phantom-cardiac/selfreg")
    return {seed: [_redundancy(load_trained(name, seed)) for name in names] for seed in _seeds(*names)}


def _redundancy(model: Any) -> float:
    features = extract(model, _cases("A")[:16], ["bottleneck"], pool="voxels", samples=8)
    return channel_similarity(features, "bottleneck").redundancy


@functools.cache
def _released_gradient() -> float:
    model: Any = load_trained("phantom-glands/med-disseg-without")
    cases = load_task(**model.provenance["task"]).cases("test", site="A")[:8]
    with torch.no_grad(), capture(model, ["layer3"]) as tape:
        model(torch.stack([torch.as_tensor(case.image) for case in cases]))
    rows = preset_check(tape["layer3"]).to_dict("records")
    return next(float(row["gradient_norm"]) for row in rows if row["preset"] == "released")


def _changed() -> str:
    """How much of the first image changes with half of the bottleneck's channels at 0, the skip connections open and shut."""
    network, case = load_trained("phantom-cardiac/plain"), _cases("A")[0]
    masked = [mask_latent(network, case, "channel", 0.5, soft=False, skips=skips) for skips in ("keep", "zero")]
    kept, shut = (float(one.table()["changed"].iloc[0]) for one in masked)
    return f"{kept:.1%} of the image changes with the skip connections, {shut:.1%} without"


def _one(answer: Any) -> str | None:
    """A case is one slice; case.subject says whose it is, and a set holds everyone once."""
    return None if answer == _patients() else f"{answer!r} is not the number of patients"


def _two(answer: Any) -> str | None:
    """Look at the column `aliases` of tk.layers(network, case), or write the input of a layer as 'path:input'."""
    try:
        names = [str(one).strip() for one in ([answer] if isinstance(answer, str) else answer)]
        layers = layer_names(load_trained("phantom-cardiac/plain"), names, _cases("A")[0])
    except ToolkitError:
        layers = []
    return None if layers == ["head:input"] else f"{answer!r} names {layers or 'no layer'}"


def _three(answer: Any) -> str | None:
    """The table of tk.grad_cam(one, cases[0], BLOCKS, target) has a column `status`; keep what is 'cancelled' at every seed."""
    given = {str(one).strip() for one in ([answer] if isinstance(answer, str) else answer)}
    if unknown := given - set(BLOCKS):
        return f"{sorted(unknown)} are none of the blocks"
    over, lacking = given - _cancelled(), _cancelled() - given
    return (
        f"{len(over)} of these do not cancel for every seed, and {len(lacking)} are missing" if over | lacking else None
    )


def _four(answer: Any) -> str | None:
    """See channel_similarity(...).redundancy of both networks for every seed; answer with rises, falls or no direction."""
    rises = [taught > plain for plain, taught in _redundancies().values()]
    right = "rises" if all(rises) else "falls" if not any(rises) else "no direction"
    word = answer.strip().lower() if isinstance(answer, str) else ""
    if word == right:
        return None
    return f"it is not true that it {word}" if word in _WORDS else f"{_short(answer)} is none of the three words"


def _five(answer: Any) -> str | None:
    """Look at the column `gradient_norm` of preset_check(features), row `released`."""
    same = not isinstance(answer, (bool, str)) and float(answer) == _released_gradient()
    return None if same else f"{_short(answer)} is not its gradient norm"


def _six(answer: Any) -> str | None:
    """Give tk.drift a list of two stores, here `draws`, layer 'head_input', and paired=False: other voxels."""
    if not isinstance(answer, Drift):
        return f"a {type(answer).__name__} is no drift"
    stages = answer.provenance.get("stages", [])
    seeds = {stage.get("parameters", {}).get("seed") for stage in stages}
    if len({stage.get("weights") for stage in stages}) != 1 or not len(stages) == len(seeds) == 2:
        return "these are not two draws from one and the same network"
    return None if answer.layer == "head_input" else f"the layer is {answer.layer}"


def _seven(answer: Any) -> str | None:
    """Call tk.mask_latent(network, case, scheme='channel', fraction=0.5, soft=False, skips='zero')."""
    if not isinstance(answer, MaskedLatent):
        return f"a {type(answer).__name__} is no masked latent"
    if answer.skips != "zero":
        return f"the skip connections are still there: skips={answer.skips!r}"
    mine = (answer.layer, answer.scheme, answer.fraction, answer.soft)
    told = f"layer {answer.layer}, scheme {answer.scheme}, fraction {answer.fraction}, soft {answer.soft}"
    return None if mine == ("bottleneck", "channel", 0.5, False) else told


def _eight(answer: Any) -> str | None:
    """Read the column `verdict` of the comparison's table for the method, and answer with that text."""
    if isinstance(answer, str) and answer.strip().lower().startswith("inconclusive"):
        return None
    return f"{_short(answer)} {'claims more than one seed can show' if isinstance(answer, str) else 'is no text'}"


def _short(answer: Any) -> str:
    """An answer in a sentence: as it is written, or what it is."""
    return repr(answer) if isinstance(answer, (str, int, float, np.number)) else f"a {type(answer).__name__}"


_WORDS = ("rises", "falls", "no direction")
_JUDGES: tuple[Callable[[Any], str | None], ...] = (_one, _two, _three, _four, _five, _six, _seven, _eight)
