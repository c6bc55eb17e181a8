"""Sphinx configuration: the pages of this folder, the API from the docstrings, the notebooks as they were executed.

`make docs` builds the site into build/site. Notebooks are taken from build/notebooks, where `make notebooks` leaves
them with their outputs; nothing is executed twice.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import toolkit  # noqa: E402

project = "toolkit"
author = "the toolkit authors"
release = version = toolkit.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "api_pages"]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = "toolkit"
html_show_sphinx = False
html_copy_source = False
nitpicky = False
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Class attributes", "params_style"), ("Warns", "returns_style")]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing", "docutils", "ref.python"]


def _copied(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            shutil.copy(path, target / path.name)


executed = ROOT / "build" / "notebooks"
_copied(executed if executed.is_dir() else ROOT / "notebooks", HERE / "notebooks", ("*.ipynb",))
shutil.copytree(ROOT / "notebooks" / "images", HERE / "notebooks" / "images")
_copied(HERE, HERE / "methods", ())
for readme in sorted((ROOT / "toolkit" / "methods").glob("*/README.md")):
    shutil.copy(readme, HERE / "methods" / f"{readme.parent.name}.md")
shutil.copy(ROOT / "CHANGELOG.md", HERE / "changelog.md")
