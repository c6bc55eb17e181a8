"""Names for objects of the toolkit and of its extensions: a run directory stores `name + keyword arguments`, never code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, ParamSpec, TypeVar

from toolkit.arguments import at_the_door
from toolkit.errors import ConfigError, ToolkitWarning, choose

Factory = TypeVar("Factory", bound=Callable[..., Any])
Given = ParamSpec("Given")
Built = TypeVar("Built")

ENTRY_POINTS = "toolkit.extensions"  # group in which an installed package names its modules that register objects
_FACTORIES: dict[str, dict[str, Callable[..., Any]]] = {}
_PACKAGES: list[str] = []
_LOADED: set[str] = set()


def offer(*packages: str) -> None:
    """Name packages whose modules register objects; they are imported when a stored name is first looked up."""
    _PACKAGES.extend(name for name in packages if name not in _PACKAGES)


def packages() -> list[str]:
    """What was offered, by the toolkit or by an installed package's entry point in the group `toolkit.extensions`."""
    offer(*(point.module for point in entry_points(group=ENTRY_POINTS)))
    return list(_PACKAGES)


def load() -> None:
    """Import every module that registers objects (the toolkit's import torch and NumPy only)."""
    for name in packages():
        if name in _LOADED:
            continue
        _LOADED.add(name)
        try:
            package = importlib.import_module(name)
            for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
                importlib.import_module(module.name)
        except Exception as error:
            if name.startswith("toolkit."):
                raise
            warnings.warn(f"The extension {name!r} cannot be imported: {error!r}.", ToolkitWarning, stacklevel=2)


def register(kind: str, name: str) -> Callable[[Factory], Factory]:
    """Class or function decorator: gives a model, objective, regularizer, task or strategy a name that runs store.

    A run with a registered object is rebuilt from the name and the keyword arguments, in every process that has
    imported the module that registers it; an installed package names that module as an entry point in the group
    `toolkit.extensions` and is then imported on its own. What a registered model factory returns remembers how it was called.

    Args:
        kind: "model", "objective", "regularizer", "task" or "strategy".
        name: how it is stored; it belongs to one class or function.

    Raises:
        ConfigError: the name belongs to another class or function.

    Example:
        >>> import toolkit as tk
        >>> @tk.register("model", "tiny")
        ... def tiny(classes: int):
        ...     return tk.unet(1, classes, channels=(4, 8))
    """

    def decorate(factory: Factory) -> Factory:
        owner = _FACTORIES.setdefault(kind, {}).get(name)
        if owner is not None and place(owner) != place(factory):
            what = f"The {kind} name {name!r} belongs to {place(owner)}."
            fix = "Register it under another name."
            raise ConfigError(what, where=f"register({kind!r}, {name!r}) on {place(factory)}", fix=fix)
        registered: Any = factory
        if isinstance(factory, type):
            registered.registered_name = (kind, name)
            if factory.__module__.startswith("toolkit."):
                at_the_door(factory)  # however it is made: by its public name, from a record, by another class
            if not dataclasses.is_dataclass(factory):
                _remember_calls(factory)
        elif kind == "model":
            registered = _describing(factory, name)
        _FACTORIES[kind][name] = registered
        return registered

    return decorate


def network(name: str, built: Callable[Given, Built]) -> Callable[Given, Built]:
    """The registered model factory of a class of networks, with the signature and the docstring of the class."""

    def build(*values: Given.args, **named: Given.kwargs) -> Built:
        return built(*values, **named)

    signature = inspect.signature(built)
    build.__signature__ = signature.replace(return_annotation=built.__name__)  # type: ignore[attr-defined]
    build.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    build.__module__, build.__name__, build.__qualname__, build.__doc__ = built.__module__, name, name, built.__doc__
    return register("model", name)(build)


def place(value: Any) -> str:
    """`module:qualified name` of a class or function."""
    return f"{value.__module__}:{value.__qualname__}"


def names(kind: str) -> list[str]:
    """Registered names of one kind (`model`, `objective`, `regularizer`, `task`, `strategy`), sorted."""
    load()
    return sorted(_FACTORIES.get(kind, {}))


def registered_by(module: str) -> list[tuple[str, str, Callable[..., Any]]]:
    """Kind, name and class or function of all that one module, such as a user's script, has registered."""
    rows = [(kind, name, made) for kind, named in _FACTORIES.items() for name, made in named.items()]
    return [row for row in rows if row[2].__module__ == module]


def attributes(kind: str, attribute: str) -> dict[str, Any]:
    """What the registered classes of one kind hold under a name, by registered name, where it is not empty."""
    load()
    values = {name: getattr(factory, attribute, None) for name, factory in _FACTORIES.get(kind, {}).items()}
    return {name: value for name, value in values.items() if value}


def factory(kind: str, name: str) -> Callable[..., Any]:
    """The class or function of a name."""
    if name not in _FACTORIES.get(kind, {}):
        choose(f"{kind} called", name, names(kind))
    return _FACTORIES[kind][name]


def settings(obj: object) -> dict[str, Any] | None:
    """Keyword arguments that make an equal object: a dataclass's init fields, or the call that was remembered."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if field.init}
    return getattr(obj, "_call", None)


def remember_call(obj: object, function: Callable[..., Any], values: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Keep the arguments with which `function` makes or initialises `obj`, unless it takes any number of them."""
    signature = inspect.signature(function)
    if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        bound = signature.bind(*values, **named)
        bound.apply_defaults()
        object.__setattr__(obj, "_call", dict(bound.arguments))


def remember_new(obj: object, values: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """For the `__new__` of a base class: keep the arguments that its subclass's `__init__` is about to get."""
    if dataclasses.is_dataclass(obj):
        return
    with contextlib.suppress(TypeError):  # `__init__` itself will say what is wrong with them
        remember_call(obj, functools.partial(type(obj).__init__, obj), values, named)
    if not values and not named and "_call" not in vars(obj):
        object.__setattr__(obj, "_call", {})


def describe(obj: object) -> dict[str, Any] | None:
    """Name and arguments of an object whose very class or factory is registered, else None.

    A subclass of a registered class is another class: it has no description of its own unless it is registered too.
    """
    config = vars(obj).get("toolkit_config") if hasattr(obj, "__dict__") else None
    if config is not None:
        return dict(config)
    _, name = vars(type(obj)).get("registered_name", ("", ""))
    arguments = settings(obj)
    return {"name": name, "arguments": arguments} if name and arguments is not None else None


def build(kind: str, config: Mapping[str, Any]) -> Any:
    """Rebuild the object that `describe` described."""
    make = factory(kind, config.get("name", ""))
    try:
        return make(**config.get("arguments", {}))
    except TypeError as error:
        raise ConfigError(f"The {kind} {config['name']!r} cannot be rebuilt: {error}.") from error


def _remember_calls(cls: Any) -> None:
    original = cls.__init__

    @functools.wraps(original)
    def init(self: Any, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        if type(self) is cls:
            remember_call(self, functools.partial(original, self), values, named)

    cls.__init__ = init


def _describing(make: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The model factory, whose models carry the name and the arguments that rebuild them."""

    @functools.wraps(make)
    def described(*values: Any, **named: Any) -> Any:
        model = make(*values, **named)
        remember_call(model, make, values, named)
        try:
            arguments = json.loads(json.dumps(vars(model).pop("_call", None)))
        except (TypeError, ValueError):
            arguments = None  # values that JSON cannot hold: the model must be passed again
        model.toolkit_config = None if arguments is None else {"name": name, "arguments": arguments}
        return model

    return described
