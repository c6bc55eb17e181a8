"""From a result to panels: the composer is chosen by the type of the result, for one and for several side by side.

A figure of one's own: decorate a function with `@toolkit.figures.compose.register`, its first argument annotated with
the class; `compose_together.register` likewise for several.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toolkit.arguments import checked
from toolkit.errors import ResultError
from toolkit.show.captions import credits
from toolkit.show.panels import Figure, Panel

Composer = Callable[..., Figure]


@functools.singledispatch
def compose(result: Any, **options: Any) -> Figure:
    """The figure of a result, a task, a case or a run, independent of the drawing library.

    Args:
        result: what to draw.
        options: of the composer of its type; see the functions of `toolkit.figures`.

    Raises:
        ResultError: there is no figure for this type.
    """
    kinds = sorted(kind.__name__ for kind in compose.registry if kind is not object)
    fix = f"Figures exist for {', '.join(kinds)}; others have .table()."
    raise ResultError(f"There is no figure for a {type(result).__name__}.", fix=fix)


@compose.register
def _(result: Figure) -> Figure:
    return result


@functools.singledispatch
def compose_together(first: Any, results: Sequence[Any], names: Sequence[str], **options: Any) -> Figure:
    """One figure of several results of one type: by that type's own composer, or one below the other.

    Args:
        first: the first of the results; its type chooses the composer.
        results: of one type.
        names: one a result, for example of the networks.
        options: of the composer.

    Raises:
        ResultError: there is no figure for this type.
    """
    return stacked(results, names, **options)


def composer(kind: type | None = None, *, several: bool = False) -> Callable[[Composer], Composer]:
    """Decorator of a composer: its figure is credited to what it draws, and `note` and `provenance` are options of it.

    Found by `kind`, the type of the result that it draws, if one is given. With `several` it takes `(results, names)`,
    see `for_networks`, and no `provenance`.
    """

    def register(draw: Composer) -> Composer:
        signature, plain = inspect.signature(draw), checked(draw)

        def credited(
            *values: Any, note: str = "", provenance: Mapping[str, Any] | None = None, **options: Any
        ) -> Figure:
            figure, given = plain(*values, **options), signature.bind(*values, **options).arguments
            source, names = figure.sources or (next(iter(given.values())), given.get("names", ()))
            if provenance:
                source = provenance if kind is None else [source, provenance]
            told = credits(source, "; ".join(filter(None, (figure.caption, note))), names)
            return dataclasses.replace(figure, sources=None, **told)

        added = list(inspect.signature(credited).parameters.values())[1 : 2 if several else 3]
        functools.update_wrapper(credited, draw, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        both = signature.replace(parameters=[*signature.parameters.values(), *added])
        credited.__signature__ = both  # type: ignore[attr-defined]
        result = checked(credited)
        if kind is not None:
            for_networks(kind)(result) if several else compose.register(kind, result)
        return result

    return register


def for_networks(kind: type) -> Callable[[Composer], Composer]:
    """Decorator of a composer of `(results, names)`: it draws several of a type, and one, for which `name` is an option."""

    def register(draw: Composer) -> Composer:
        compose_together.register(kind, lambda first, results, names, **options: draw(results, names, **options))
        compose.register(kind, lambda result, *, name="", **options: draw([result], [name], **options))
        return draw

    return register


def stacked(results: Sequence[Any], names: Sequence[str], *, note: str = "", **options: Any) -> Figure:
    """One below the other, each row led by its name; the title and subtitle of the first are kept.

    Args:
        results: of one type.
        names: one a result.
        note: sentence for the caption.
        options: handed to the composer of each.

    Raises:
        ResultError: results of different types, or no figure for them.
    """
    if len({type(result) for result in results}) != 1:
        raise ResultError("Only results of one kind can be stacked.", where="stacked(...)")
    figures = [compose(result, **options) for result in results]
    rows: list[list[Panel | None]] = []
    for figure, name in zip(figures, names, strict=True):
        for row in figure.rows:
            first = row[0]
            head = None if first is None else dataclasses.replace(first, title=f"{name}: {first.title}".rstrip(": "))
            rows.append([head, *row[1:]])
    told = credits([one for one in results if hasattr(one, "provenance")], note, names)
    return Figure(title=figures[0].title, subtitle=figures[0].subtitle, rows=rows, **told)
