"""Wrong and extreme arguments of every public call: answered in the toolkit's words, none of them raw."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import wrong_arguments

import toolkit as tk
from toolkit.arguments import checked

EACH = 5  # values a parameter: about 2 000 calls
BUDGET = 0.01  # of errors without words of their own


def test_every_call_of_the_generator_works_when_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = wrong_arguments.Calls(tmp_path)
    for name, arguments in calls.all().items():
        calls.use(name, getattr(tk, name)(**arguments()))


def test_wrong_arguments_are_answered_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    counts = wrong_arguments.attack(tmp_path, EACH, shown.append)
    assert counts.total() > 1900
    assert counts["raw"] == 0, "\n".join(shown)
    assert counts["unforeseen"] <= BUDGET * counts.total(), "\n".join(shown)


def said(*values: object, **named: object) -> str:
    with pytest.raises(tk.ConfigError) as caught:
        tk.train(*values, **named)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_wrong_type_an_unknown_name_and_a_missing_one() -> None:
    model, task = tk.unet(1, 2, channels=(4, 8)), tk.load_task("phantom-cardiac")
    assert "model takes nn.Module, not Task." in said(task, model)
    assert "any network that gives logits" in said(task, model)  # the docstring's words
    assert "Did you mean 'regularizer'?" in said(model, task, regulariser=None)
    assert "missing a required argument: 'task'" in said(model)
    assert "must offer cases and loader, unlike {}" in said(model, "a folder").replace("'a folder'", "{}")


def test_what_the_callers_own_code_raises_is_passed_on() -> None:
    class Mine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tk.layers(Mine(), torch.zeros(1, 1, 4, 4))


def test_a_raw_error_from_inside_gets_words() -> None:
    import toolkit.measure.collapse as inner

    def broken(count: int) -> float:
        return inner.torch.zeros(count)[count].item()

    broken.__code__ = broken.__code__.replace(co_filename=inner.__file__)
    with pytest.raises(tk.ToolkitError, match=r"failed on these arguments: IndexError") as caught:
        checked(broken)(3)
    assert "count=3" in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)


def test_public_calls_can_be_pickled() -> None:
    for name in ("train", "grad_cam", "unet"):
        assert pickle.loads(pickle.dumps(getattr(tk, name))) is getattr(tk, name)


PROGRAM = """
import pickle, sys
{first}
from toolkit.measure.drift import drift
from toolkit.show.compose_drift import drifts as figure
from toolkit.methods.segreg import sliced_epps_pulley
from toolkit.training.config import TrainConfig
import toolkit as tk
for call, values in ((drift, (3, "a")), (figure, (3, [])), (sliced_epps_pulley, ("a", 3)), (TrainConfig, ("a",))):
    try:
        call(*values)
    except tk.ConfigError as error:
        assert " takes " in str(error), error
    else:
        raise AssertionError(call)
assert drift is tk.drift is pickle.loads(pickle.dumps(drift)) is sys.modules["toolkit.measure.drift"].drift
assert "zarr" not in sys.modules and "pandas" not in sys.modules
"""


@pytest.mark.parametrize("first", ["", "import toolkit; toolkit.drift; toolkit.unet"])
def test_a_call_imported_from_its_module_is_checked_whatever_was_looked_up_before(first: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM.format(first=first)], check=True)


def calls_beside_the_root() -> dict[str, Callable[..., object]]:
    from toolkit.methods import latent_augmentation, med_disseg, segreg, selfreg

    packages = (tk.figures, tk.widgets, segreg, selfreg, latent_augmentation, med_disseg)
    found = {f"{p.__name__}.{name}": getattr(p, name) for p in packages for name in p.__all__}
    explorers = [getattr(tk.widgets, name) for name in tk.widgets.__all__]  # classes: their constructors are checked
    return {name: call for name, call in found.items() if inspect.isfunction(call) or call in explorers}


def test_figures_widgets_and_the_methods_own_functions_have_the_same_door() -> None:
    calls = calls_beside_the_root()
    assert len(calls) > 40
    for name, call in calls.items():
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(call).parameters.values()):
            continue
        with pytest.raises(tk.ConfigError, match=r"missing a required argument|unexpected keyword argument 'nonsense'"):
            pytest.fail(f"{name} took {call(nonsense=3)!r}")
    for name, values in (("epps_pulley", ("a", 3)), ("figures.drifts", (3, [])), ("cam_explorer", (3,))):
        (call,) = [one for full, one in calls.items() if full.endswith(name)]
        with pytest.raises(tk.ConfigError, match=r" takes .*, not (3|'a')\."):
            call(*values)


def test_what_was_raw_has_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = wrong_arguments.Calls(tmp_path)
    fit = {"source": known.features, "layer": "bottleneck", "bootstraps": 2, "rows": 50}
    for call, words in (
        (lambda: tk.grad_cam(known.net, {"image": known.image, "label": 3}, "bottleneck", 1), "single number 3"),
        (lambda: tk.faithfulness(known.net, known.cam, target=1, baseline="nonsense"), "no baseline 'nonsense'"),
        (lambda: tk.task_from_arrays(**known.arrays, label_values={}), "label_values is empty"),
        (lambda: tk.transfer_metrics(np.array([["a", "b"], ["c", "d"]])), "does not hold numbers only"),
        (lambda: tk.classifier_variability(**fit, penalty=0), "penalty=0"),
        (lambda: known.cam.plot(nonsense=1), "unexpected keyword argument 'nonsense'"),
    ):
        with pytest.raises(tk.ToolkitError, match=words):
            call()
