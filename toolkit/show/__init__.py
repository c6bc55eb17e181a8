"""Figures, reports and widgets; the package itself can be called: `toolkit.show(a, b)` is `toolkit.show.draw.show`."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from typing import Any


class _CallablePackage(types.ModuleType):
    """`toolkit.show` is a folder of the package and a public call; Python binds the folder to that name."""

    def __call__(self, *results: Any, names: Sequence[str] | None = None, static: bool = False, **options: Any) -> Any:
        """See `toolkit.show.draw.show`."""
        from toolkit.show.draw import show

        return show(*results, names=names, static=static, **options)


sys.modules[__name__].__class__ = _CallablePackage
