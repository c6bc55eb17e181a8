"""Writes one page of the reference per subject from the package's own list of public names."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import toolkit

# Title of a page, and the packages whose public names it holds, in reading order.
PAGES = {
    "data": ("Data", ("toolkit.data",)),
    "training": ("Training", ("toolkit.training", "toolkit.models", "toolkit.evidence")),
    "methods": ("Methods", ("toolkit.methods",)),
    "inference": ("Prediction and features", ("toolkit.inference", "toolkit.features")),
    "explain": ("Explanations", ("toolkit.explain",)),
    "measure": ("Measures and statistics", ("toolkit.measure",)),
    "integrations": ("Other libraries", ("toolkit.integrations",)),
    "show": ("Figures and reports", ("toolkit.show",)),
    "errors": ("Errors and results", ("toolkit.errors", "toolkit.results", "toolkit.registry")),
}
BLOCKS = {  # functions that the papers define and that live in their method's package, and the checks of a contract
    "toolkit.methods.segreg": ("sliced_epps_pulley",),
    "toolkit.methods.selfreg": ("semantic_consistency", "internal_distillation"),
    "toolkit.methods.med_disseg": ("dispersive_loss",),
    "toolkit.methods.latent_augmentation": ("targeted_mask", "dropout_mask"),
    "toolkit.testing": ("check_regularizer", "check_objective", "check_network"),
}
PREPARED = (
    "Examples write ``tk`` for ``toolkit`` and take a ``task``, one of its cases as ``case`` with its ``image`` and ``label``,",
    "a trained ``model`` and its ``run``, training settings ``config``, and stored ``features`` (``later``: of a later stage)",
    "as given. ``tests/contract/test_examples.py`` makes small ones, runs the examples and names five that it cannot run.",
)


def entry(path: str, value: Any) -> list[str]:
    """The directive of one public name."""
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", "   :show-inheritance:", ""]
    return [f".. autofunction:: {path}", ""]


def page(title: str, packages: tuple[str, ...], homes: dict[str, str]) -> list[str]:
    """The lines of one page."""
    names = [name for name, home in homes.items() if any(f"{home}.".startswith(f"{p}.") for p in packages)]
    lines = [title, "=" * len(title), ""]
    for name in names:
        lines += entry(f"toolkit.{name}", getattr(toolkit, name))
    for home, blocks in BLOCKS.items():
        if any(f"{home}.".startswith(f"{p}.") for p in packages) or (home == "toolkit.testing" and title == "Methods"):
            module = importlib.import_module(home)
            for name in blocks:
                lines += entry(f"{home}.{name}", getattr(module, name))
    return lines


def write(app: Any) -> None:
    """Write all pages and their table of contents."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    homes = {name: home for home, names in toolkit._PUBLIC.items() for name in names}
    placed: set[str] = set()
    for stem, (title, packages) in PAGES.items():
        placed |= {n for n, home in homes.items() if any(f"{home}.".startswith(f"{p}.") for p in packages)}
        (folder / f"{stem}.rst").write_text("\n".join(page(title, packages, homes)), encoding="utf-8")
    if missing := sorted(set(homes) - placed):
        raise RuntimeError(f"No page of the reference holds {', '.join(missing)}; add their package to PAGES.")
    contents = ["Reference", "=========", "", *PREPARED, "", ".. toctree::", "", *(f"   {stem}" for stem in PAGES), ""]
    (folder / "index.rst").write_text("\n".join(contents), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
