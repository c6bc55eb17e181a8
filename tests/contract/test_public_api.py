"""Conventions of the public interface, held for every public name at once."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toolkit
from toolkit.errors import ResultError
from toolkit.results import Result

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "toolkit"
MOST_POSITIONAL = 5  # a caller who goes further writes the keyword
MOST_LINES, MEDIAN_LINES = 400, 180
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}


def public_functions() -> dict[str, Callable[..., Any]]:
    return {name: getattr(toolkit, name) for name in toolkit.__all__ if inspect.isfunction(getattr(toolkit, name))}


def public_classes() -> dict[str, type]:
    return {name: getattr(toolkit, name) for name in toolkit.__all__ if inspect.isclass(getattr(toolkit, name))}


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def result_classes() -> list[type[Result]]:
    for path in python_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__") and "nnunet" not in parts[:-1]:  # needs nnU-Net
            importlib.import_module(".".join(parts))
    classes: list[type[Result]] = []
    queue = list(Result.__subclasses__())
    while queue:
        one = queue.pop()
        queue += one.__subclasses__()
        if one.__module__.startswith("toolkit."):
            classes.append(one)
    return sorted(classes, key=lambda one: one.__name__)


def test_the_public_names_are_found_by_completion() -> None:
    assert set(toolkit.__all__) <= set(dir(toolkit))


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_functions_are_documented_and_typed(name: str) -> None:
    function = public_functions()[name]
    text = inspect.getdoc(function) or ""
    assert len(text) > 30, f"{name} needs a docstring"
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name}) has no type"
    assert signature.return_annotation is not inspect.Signature.empty, f"{name} has no return type"
    if len(signature.parameters) > 1:
        missing = [p for p in signature.parameters if p not in text and not p.startswith("_")]
        assert not missing, f"the docstring of {name} does not mention {missing}"


def public_calls() -> dict[str, Callable[..., Any]]:
    """Every function, constructor and public method that users see, those of the public submodules too."""
    calls: dict[str, Callable[..., Any]] = dict(public_functions())
    for submodule in ("recipes", "figures", "widgets", "loggers"):
        offered = vars(getattr(toolkit, submodule))
        public = offered.get("__all__") or [name for name in offered if not name.startswith("_")]
        calls |= {
            f"{submodule}.{name}": value
            for name in public
            if inspect.isfunction(value := getattr(getattr(toolkit, submodule), name)) or submodule == "widgets"
            if value.__module__.startswith("toolkit.")
        }
    for name, one in public_classes().items():
        calls |= {
            f"{name}.{method}": function
            for method, function in vars(one).items()
            if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_"))
        }
    return calls


def positional(call: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(call).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"]


@pytest.mark.parametrize("name", sorted(public_calls()))
def test_positional_parameters_are_few(name: str) -> None:
    assert len(positional(public_calls()[name])) <= MOST_POSITIONAL


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_the_first_parameters_are_never_flags(name: str) -> None:
    first = positional(public_functions()[name])
    assert sum(p.default is inspect.Parameter.empty for p in first) <= 4
    assert not [p.name for p in first[:2] if isinstance(p.default, bool)], "a flag is not a main argument"


# Another word for the same thing -> the word that every call uses.
OTHER_WORDS = {
    "network": "model",
    "net": "model",
    "taps": "aliases",
    "patterns": "layers",
    "layer_names": "layers",
    "input": "inputs",
}


@pytest.mark.parametrize("name", sorted(public_calls()))
def test_one_word_names_one_thing_in_every_call(name: str) -> None:
    parameters = inspect.signature(public_calls()[name]).parameters
    assert not {one: OTHER_WORDS[one] for one in parameters if one in OTHER_WORDS}
    networks = [p.name for p in parameters.values() if str(p.annotation).startswith("nn.Module")]
    assert len(networks) != 1 or networks == ["model"] or name == "Stages.__init__"  # the network before the stages


@pytest.mark.parametrize("name", sorted(public_classes()))
def test_classes_are_documented(name: str) -> None:
    text = public_classes()[name].__doc__ or ""
    assert len(text) > 30, f"{name} needs a docstring"
    assert not text.startswith(f"{name}("), f"{name} has the docstring that a dataclass makes up"


@pytest.mark.parametrize("one", result_classes(), ids=lambda one: one.__name__)
def test_results_have_the_five_ways_out(one: type[Result]) -> None:
    assert dataclasses.is_dataclass(one)
    assert one.table is not Result.table, "a result defines its table"
    for method in ("plot", "figure", "save", "load"):
        assert callable(getattr(one, method))
    assert "provenance" in {field.name for field in dataclasses.fields(one)}
    assert one.kind != Result.kind


def test_every_figure_of_the_papers_has_a_composer() -> None:
    from toolkit.show.figures import compose

    drawn = {one.__name__ for one in result_classes() if compose.dispatch(one) is not compose.dispatch(object)}
    assert drawn >= {"GradCamResult", "ChannelSimilarity", "LayerSimilarity", "Projection", "Drift", "MaskedLatent"}


def test_a_number_needs_no_figure_to_be_public() -> None:
    @dataclasses.dataclass(kw_only=True)
    class Number(Result):
        value: float = 1.0

    with pytest.raises(ResultError, match="There is no figure for a Number"):
        Number(provenance={}).plot()


def test_modules_are_small() -> None:
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in python_files() if p.name != "__init__.py"}
    assert not {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MOST_LINES}
    assert sorted(lines.values())[len(lines) // 2] <= MEDIAN_LINES


def test_modules_say_what_they_are() -> None:
    silent = [p for p in python_files() if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert not silent


def test_no_module_is_a_drawer() -> None:
    names = {part.removesuffix(".py") for p in python_files() for part in p.relative_to(PACKAGE).parts}
    assert not names & FORBIDDEN_NAMES


def prints_in(tree: ast.Module) -> list[int]:
    """Lines that print, outside of `if __name__ == "__main__"` blocks."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    return [
        node.lineno
        for part in body
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]


def test_nothing_prints_but_the_commands() -> None:
    assert prints_in(ast.parse("def f():\n    print(1)")) == [2]
    names = ("__main__.py", "apps/demo.py", "apps/gpu_check.py")
    commands = {PACKAGE / name for name in names}
    printing = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files()
        if path not in commands
        for line in prints_in(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not printing


def test_nothing_is_left_to_be_done() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    left = [str(p.relative_to(ROOT)) for p in python_files() if pattern.search(p.read_text(encoding="utf-8"))]
    assert not left


def test_the_global_random_state_is_never_touched() -> None:
    pattern = re.compile(
        r"\b(torch\.manual_seed|np\.random\.(seed|rand|randn|randint|normal|uniform|choice)|random\.seed)\("
    )
    allowed = {"process_state.py"}  # saves and restores it
    touching = [
        str(p.relative_to(ROOT))
        for p in python_files()
        if p.name not in allowed and pattern.search(p.read_text(encoding="utf-8"))
    ]
    assert not touching


def test_the_readme_uses_names_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    names = set(re.findall(r"\btk\.(\w+)", " ".join(blocks)))
    assert names <= set(toolkit.__all__)
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_pictures_of_the_readme_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_nothing_tracked_names_a_machine_or_the_workshop() -> None:
    """Texts that people read speak of the project alone."""
    pattern = re.compile(r"/(home|Users|root|work)/\w|\bissue #?\d|\bthis session\b", flags=re.IGNORECASE)
    texts = [*ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb"), *python_files(), ROOT / "Makefile"]
    named = [
        f"{p.relative_to(ROOT)}: {m.group()}" for p in texts for m in pattern.finditer(p.read_text(encoding="utf-8"))
    ]
    assert not named


BUILDING_BLOCKS = {
    "segreg.sliced_epps_pulley": "z, directions, *, t_max=3.0, points=17, weights=None, scaled=False",
    "selfreg.semantic_consistency": "student, teacher, student_channels=None, teacher_channels=None, generator=None",
    "selfreg.internal_distillation": "features, order='score', stop_gradient='none'",
    "med_disseg.dispersive_loss": "z, variant='infonce_l2', tau=0.5, preset='default', *, margin=1.0, bank=None",
    "latent_augmentation.targeted_mask": "gradient, axis='channel', fraction=0.5, annealing=None, *, score='signed',"
    " code=None, inclusive=False",
    "latent_augmentation.dropout_mask": "code, rate=0.5, generator=None",
}


@pytest.mark.parametrize("path", BUILDING_BLOCKS)
def test_each_method_offers_the_functions_its_paper_defines(path: str) -> None:
    package, name = path.split(".")
    function = getattr(importlib.import_module(f"toolkit.methods.{package}"), name)
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    assert str(inspect.Signature(bare)) == f"({BUILDING_BLOCKS[path]})"
