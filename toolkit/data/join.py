"""`join_tasks`: several tasks as one, with the classes that all of them label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit import registry
from toolkit.data.case import Case
from toolkit.data.table import recipe
from toolkit.data.task import Task
from toolkit.errors import ConfigError
from toolkit.registry import register

ClassOf = int | str | Sequence[int | str]


@register("task", "join_tasks")
def join_tasks(
    tasks: Sequence[Task | Mapping[str, Any]],
    *,
    classes: Mapping[str, Mapping[str, ClassOf]],
    name: str | None = None,
    patch_size: Sequence[int] | None = None,
) -> Task:
    """Join tasks of the same kind; everything that is not a joint class becomes background.

    A structure that one task labels and another calls background must be left out: the second task's pixels of it
    would teach the opposite. Spacing stays as each case has it; unknown stays unknown. Cases, volumes and subjects
    are named `task/...`; sites keep their names unless two tasks share one.

    Args:
        tasks: tasks (or their stored configurations) with the same dims, channels and normalisation.
        classes: joint class -> {task name: its class, by number or name, or several that are merged}; each class
            needs an entry for every task. Numbered 1, 2, ... in this order.
        name: name of the result; default the names joined by "+".
        patch_size: default the largest of the tasks' sides.

    Raises:
        ConfigError: tasks that do not fit, a class that a task does not have, or an entry that is missing.

    Example:
        >>> other = tk.load_task("phantom-cardiac", normalisation=task.normalisation)
        >>> both = tk.join_tasks([task, other], classes={"LV": {task.name: "LV", other.name: 3}})
    """
    loaded = [task if isinstance(task, Task) else registry.build("task", dict(task)) for task in tasks]
    _check_fit(loaded)
    named = {0: "background", **dict(enumerate(classes, start=1))}
    crowd = [site for task in loaded for site in task.sites]
    cases: list[Case] = []
    sites: list[str] = []
    for task in loaded:
        renamed = {site: f"{task.name}/{site}" if crowd.count(site) > 1 else site for site in task.sites}
        sites += renamed.values()
        table = _table(task, classes)
        for case in task.cases():
            own: dict[str, Any] = {key: f"{task.name}/{getattr(case, key)}" for key in ("id", "volume", "subject")}
            relabel = tuple(table[stored] for stored in case.relabel or range(len(table)))
            cases.append(dataclasses.replace(case, **own, site=renamed[case.site], classes=named, relabel=relabel))
    configs = [registry.describe(task) for task in loaded]
    arguments = {"tasks": configs, "classes": classes, "name": name, "patch_size": patch_size}
    return loaded[0].restricted(
        cases,
        name=name or "+".join(task.name for task in loaded),
        classes=named,
        regions=None,
        patch_size=patch_size or tuple(max(sides) for sides in zip(*(t.patch_size for t in loaded), strict=True)),
        manifest=None,
        sites=sites,
        flips=[axis for axis in loaded[0].flips if all(axis in task.flips for task in loaded)],
        licence="; ".join(dict.fromkeys(f"{task.name}: {task.licence}" for task in loaded if task.licence)),
        citation="; ".join(dict.fromkeys(task.citation for task in loaded if task.citation)),
        toolkit_config=None if None in configs else recipe("join_tasks", arguments),
    )


def _table(task: Task, classes: Mapping[str, Mapping[str, ClassOf]]) -> tuple[int, ...]:
    """New class of every class of `task`."""
    numbers = {label: number for number, label in task.classes.items()}
    table = [0] * len(task.classes)
    for new, (name, members) in enumerate(classes.items(), start=1):
        if task.name not in members:
            what = f"The class {name!r} has no entry for the task {task.name!r}."
            fix = "Leave the class out, unless every task labels it: elsewhere it would be taught as background."
            raise ConfigError(what, where="join_tasks(classes=...)", fix=fix)
        own = members[task.name]
        for wanted in (own,) if isinstance(own, (int, str)) else own:
            number = numbers.get(wanted, -1) if isinstance(wanted, str) else int(wanted)
            if number not in task.classes or number == 0 or table[number]:
                what = f"The class {wanted!r} of {task.name!r} cannot become {name!r}."
                fix = f"Its classes are {task.classes}; background and a class already used cannot be taken."
                raise ConfigError(what, where="join_tasks(classes=...)", fix=fix)
            table[number] = new
    return tuple(table)


def _check_fit(tasks: Sequence[Task]) -> None:
    if len(tasks) < 2:
        raise ConfigError("Joining takes at least two tasks.", where="join_tasks")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two tasks share a name: {names}.", where="join_tasks", fix="Give each its own name.")
    for what in ("dims", "channels", "normalisation"):
        values = {task.name: getattr(task, what) for task in tasks}
        if len(set(values.values())) > 1:
            fix = f"Load them with the same {what}."
            raise ConfigError(f"The tasks differ in {what}: {values}.", where="join_tasks", fix=fix)
