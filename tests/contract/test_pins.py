"""environment.yml, pyproject.toml and constraints.txt say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pip_list() -> list[str]:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    return re.findall(r"^      - (.+)$", text[text.index("  - pip:\n") :], flags=re.MULTILINE)


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in wanted}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    pairs = [line.split("==") for line in kept]
    assert all(len(pair) == 2 for pair in pairs), "every constraint is name==version"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_pip_list_is_what_the_project_declares() -> None:
    names = [canonicalize_name(line) for line in pip_list() if not line.startswith("-")]
    assert len(names) == len(set(names))
    assert set(names) == set(declared())


def test_the_pip_list_takes_the_pins_and_the_project() -> None:
    options = [line for line in pip_list() if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    for name, requirement in declared().items():
        assert name in pinned, f"{name} has no pin"
        assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]} is not {requirement.specifier}"


def test_the_torch_pin_leaves_the_build_open() -> None:
    """No local suffix: a CPU build satisfies it here and a CUDA build on a GPU machine."""
    assert pins()["torch"].local is None


def test_torchvision_stays_out() -> None:
    assert "torchvision" not in pins()
    assert "torchvision" not in declared()


def test_python_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    (python,) = re.findall(r"^  - python=(\d+\.\d+)$", text, flags=re.MULTILINE)
    assert project["project"]["requires-python"] == f">={python}"
    assert project["tool"]["mypy"]["python_version"] == python
    assert project["tool"]["ruff"]["target-version"] == f"py{python.replace('.', '')}"
