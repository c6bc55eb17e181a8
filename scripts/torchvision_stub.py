"""Write a stand-in for torchvision, so that packages that only import it run beside a torch without a matching build.

`python scripts/torchvision_stub.py FOLDER` writes an installable project; `pip install FOLDER` then meets the
requirement "torchvision" of timm, segmentation_models_pytorch and nnU-Net. Every name can be imported and subclassed;
nothing can be computed with it. It belongs into a test environment of its own, never beside a real torchvision.
"""

from __future__ import annotations

import sys
from pathlib import Path

VERSION = "0.28.0"
PROJECT = f"""[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "torchvision"
version = "{VERSION}"
description = "Stand-in without operators"

[tool.setuptools]
packages = ["torchvision"]
"""
PACKAGE = f'''"""A stand-in: names can be imported, nothing can be computed."""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "{VERSION}"


class _Names(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{{cls.__name__}}.{{name}}"


def _named(module):
    def find(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {{"__module__": module, "__init__": _refuse}})

    return find


def _refuse(self, *args, **options):
    raise RuntimeError("This torchvision is a stand-in without operators.")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("torchvision.") and not name.endswith("._C"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = _named(spec.name)
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
__getattr__ = _named(__name__)
'''


def write(folder: Path) -> None:
    """The project: pyproject.toml and torchvision/__init__.py."""
    (folder / "torchvision").mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "torchvision" / "__init__.py").write_text(PACKAGE)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
