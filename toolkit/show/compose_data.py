"""Figures of data: a case with its label, some cases of every site of a task, predictions beside their reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.data.case import Case
from toolkit.data.task import Task
from toolkit.errors import ResultError
from toolkit.show.compose import compose, composer
from toolkit.show.panels import Figure, Image, Panel, range_note
from toolkit.show.slices import choose_view


@compose.register
def case(case: Case, *, position: int | None = None, side: int = 260, note: str = "") -> Figure:
    """The normalised image of a case, and the same with the contours of its label.

    Raises:
        DataError: the case cannot be read.
        ResultError: no such slice.
    """
    kinds = (False, True) if case.has_label else (False,)
    panels: list[Panel | None] = [_panel(case, position, side, contours=contours) for contours in kinds]
    spacing = f", spacing {' x '.join(f'{s:g}' for s in case.spacing)} mm" if case.spacing else ""
    about = f"Site {case.site}, subject {case.subject}, split {case.split}{spacing}."
    return Figure(title=f"Case {case.id}", rows=[panels], subtitle=about, caption=note)


@compose.register
def task(task: Task, *, columns: int = 6, side: int = 130, split: str | None = None, note: str = "") -> Figure:
    """One row of cases per site, spread over the site, with the contours of every class.

    Args:
        task: what to look at.
        columns: cases a site.
        split: of this split only; None = all.

    Raises:
        DataError: a case cannot be read.
    """
    rows: list[list[Panel | None]] = []
    for site in task.sites:
        cases = task.cases(split, site=site) if split else task.cases(site=site)
        places = np.unique(np.linspace(0, len(cases) - 1, min(columns, len(cases))).round().astype(int)).tolist()
        rows += [[_panel(cases[place], None, side, contours=True) for place in places]] if places else []
    sites = f"{len(task.sites)} sites, one a row: {', '.join(map(str, task.sites))}" if len(task.sites) > 1 else ""
    return Figure(
        title=f"{task.name}: {len(task.cases())} cases",
        subtitle=f"{sites}{'. ' if sites else ''}Contours are the reference labels; of a volume the slice with the most foreground is shown.",
        rows=rows,
        caption="\n".join(filter(None, (note, f"licence {task.licence}" if task.licence else ""))),
    )


@composer()
def qualitative(cases: Sequence[Any], predictions: Mapping[str, Sequence[Any]], *, side: int = 130) -> Figure:
    """One row a case: the image, the contours of every network's prediction, and those of the reference.

    Args:
        cases: 2D cases with labels.
        predictions: per network, one label map (H, W) a case.

    Raises:
        ResultError: a network without one map a case.
    """
    if any(len(maps) != len(cases) for maps in predictions.values()):
        raise ResultError("Every network needs one label map a case.", where="qualitative(predictions=...)")
    rows: list[list[Panel | None]] = []
    for index, case in enumerate(cases):
        image, label = np.asarray(case.image, dtype=float), np.asarray(case.label)
        picture = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        view = choose_view(label.shape, label.shape, spacing=getattr(case, "spacing", None), largest=10**6)
        classes = getattr(case, "classes", None) or {}
        row: list[Panel | None] = [view.panel(Image(pixels=picture, title=str(case.id)), side)]
        for name, maps in predictions.items():
            prediction = np.asarray(maps[index])
            shared, total = ((prediction > 0) & (label > 0)).sum(), (prediction > 0).sum() + (label > 0).sum()
            score = f"Dice {2 * shared / total:.2f}" if total else "nothing to find"
            if total and (prediction > 0).all():  # a map without any contour
                score += ", all foreground"
            drawn = Image(title=name, note=score, pixels=picture, labels=prediction, class_names=classes)
            row.append(view.panel(drawn, side))
        row.append(view.panel(Image(title="reference", pixels=picture, labels=label, class_names=classes), side))
        rows.append(row)
    return Figure(
        title="Predictions beside the reference",
        subtitle="Contours of the most likely class; Dice of this image over all foreground. The cases are "
        f"{', '.join(str(case.id) for case in cases)}.",
        rows=rows,
        sources=({}, ()),
    )


def _panel(case: Case, position: int | None, side: int, *, contours: bool) -> Image:
    image = np.asarray(case.image_array())
    label = np.asarray(case.label_array()) if case.has_label else None
    size = tuple(image.shape[1:])
    focus = None if label is None else label > 0
    view = choose_view(size, size, focus=focus, position=position, spacing=case.spacing)
    picture = view.picture(image)
    labels = view.plane(label) if contours and label is not None else None
    title, note = ("", f"{case.id}{view.note}") if contours else (str(case.id), f"{range_note(picture)}{view.note}")
    return view.panel(Image(title=title, note=note, pixels=picture, labels=labels, class_names=case.classes), side)
