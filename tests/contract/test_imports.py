"""The direction of dependencies between packages, and the price of `import toolkit`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "toolkit"

# What each package may import besides itself. Packages on one level do not import each other.
FOUNDATION = {"errors", "registry", "results", "files", "locks", "arguments", "process_state"}
BELOW_MODELS = FOUNDATION | {"data"}
BELOW_FEATURES = BELOW_MODELS | {"models"}
BELOW_INFERENCE = BELOW_FEATURES | {"features"}
BELOW_MIDDLE = BELOW_INFERENCE | {"inference"}
BELOW_METHODS = BELOW_MIDDLE | {"explain", "measure", "training"}
BELOW_SHOW = BELOW_METHODS | {"methods", "integrations"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "process_state": set(),
    "registry": {"errors", "arguments"},
    "files": {"errors"},
    "locks": {"errors", "files"},
    "arguments": {"errors"},
    "results": {"errors", "registry", "files", "arguments"},
    "data": FOUNDATION,
    "models": BELOW_MODELS,
    "features": BELOW_FEATURES,
    "inference": BELOW_INFERENCE,
    "explain": BELOW_MIDDLE,
    "measure": BELOW_MIDDLE,
    "training": BELOW_MIDDLE | {"explain", "measure"},
    "methods": BELOW_METHODS,
    "integrations": BELOW_METHODS,
    "show": BELOW_SHOW,
    "testing": BELOW_SHOW,
    "apps": BELOW_SHOW | {"show", "testing"},
}
# `__init__` maps names lazily and `__main__` starts commands: they stand above the packages.
ABOVE = {"__init__", "__main__"}
CHEAP = {"torch", "numpy"} | set(sys.stdlib_module_names)
HEAVY = (
    "pandas",
    "monai",
    "plotly",
    "matplotlib",
    "lightning_fabric",
    "zarr",
    "pydantic",
    "sklearn",
    "scipy",
    "nibabel",
    "umap",
    "numba",
    "captum",
    "ipywidgets",
    "PIL",
    "tqdm",
    "safetensors",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> list[tuple[str, int]]:
    """Absolute names of everything a file imports, inside functions too, with line numbers."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = module_of(node, path)
            found += (
                [(f"toolkit.{alias.name}", node.lineno) for alias in node.names]
                if module == "toolkit"
                else [(module, node.lineno)]
            )
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found += [
                (argument.value, node.lineno)
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
    return found


def module_of(node: ast.ImportFrom, path: Path) -> str:
    """The absolute name after `from`."""
    package = ("toolkit", *path.relative_to(PACKAGE).parts[:-1])
    base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
    return ".".join(filter(None, (base, node.module or "")))


def violations(source: str, path: Path) -> list[str]:
    package = package_of(path)
    if package in ABOVE:
        return []
    wrong = []
    for name, line in imported(ast.parse(source), path):
        parts = name.split(".")
        if parts[0] != "toolkit" or len(parts) < 2:
            continue
        if parts[1] != package and parts[1] not in ALLOWED[package] and parts[1] not in ABOVE | {"__version__"}:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


def test_every_package_has_a_place() -> None:
    assert {package_of(path) for path in modules()} - ABOVE <= set(ALLOWED)


def test_the_rule_itself_has_no_cycle() -> None:
    for package, below in ALLOWED.items():
        assert package not in below
        assert all(package not in ALLOWED[other] for other in below)


def test_no_arrow_points_back() -> None:
    wrong = [one for path in modules() for one in violations(path.read_text(encoding="utf-8"), path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("data", "from toolkit.models.unet import unet"),
        ("measure", "def late():\n    from toolkit.explain.gradcam import grad_cam"),
        ("training", "import toolkit.show.draw"),
        ("features", "from ..training import run"),
        ("measure", "import importlib\nimportlib.import_module('toolkit.show.draw')"),
    ],
)
def test_a_backward_arrow_is_found(package: str, statement: str) -> None:
    assert len(violations(statement, PACKAGE / package / "made_up.py")) == 1


def edges() -> dict[str, set[str]]:
    """What each module imports of the package, inside functions and by `import_module` too; TYPE_CHECKING aside."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in modules()
    }
    return {
        name: wanted(path.read_text(encoding="utf-8"), path, set(names)) - {name, "toolkit"}
        for name, path in names.items()
    }


def wanted(source: str, path: Path, names: set[str]) -> set[str]:
    """The modules among `names` that a file imports; a string that names one counts where it calls `import_module`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = module_of(node, path)
            modules |= {f"{module}.{alias.name}" for alias in node.names} & names or {module}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    if "import_module" in source:
        modules |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return modules & names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {name: set(targets) for name, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            further = set().union(*(reach.get(one, set()) for one in targets)) - targets
            targets |= further
            changed = changed or bool(further)
    groups = {
        tuple(sorted(o for o in reach if o in reach[name] and name in reach[o]))
        for name in reach
        if name in reach[name]
    }
    return sorted(map(list, groups))


def test_no_modules_import_each_other_in_a_circle() -> None:
    # `toolkit/__init__` stands above all: it maps every public name, and its drawing hook is the one exception.
    assert not circles({name: targets for name, targets in edges().items() if name != "toolkit"})


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    names = {"toolkit.data.task", "toolkit.data.case", "toolkit.data.splits"}
    source = (
        "import importlib\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toolkit.data.splits import deal\n"
        "def late():\n    from toolkit.data import task\n    importlib.import_module('toolkit.data.case')\n"
    )
    assert wanted(source, PACKAGE / "data" / "made_up.py", names) == {"toolkit.data.task", "toolkit.data.case"}


def test_heavy_packages_are_imported_inside_functions() -> None:
    wrong = []
    for path in modules():
        if path.relative_to(PACKAGE).as_posix() == "integrations/nnunet/trainers.py":
            continue  # its classes are subclasses of nnU-Net's own; nnU-Net imports it, nothing here does
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for name, line in imported(ast.Module([node], []), path):
                top = name.split(".")[0]
                if top not in CHEAP | {"toolkit"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {top} at module level")
    assert not wrong, "\n".join(wrong)


def test_importing_toolkit_loads_nothing_heavy() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import toolkit; "
        "print('\\n'.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(output.stdout.split())
    assert "toolkit" in loaded
    assert not loaded & set(HEAVY)


def test_every_public_name_can_be_imported() -> None:
    import toolkit

    for name in toolkit.__all__:
        assert getattr(toolkit, name) is not None, name
