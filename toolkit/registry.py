"""Names for the toolkit's own objects, so that a run directory stores `name + keyword arguments` and never code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from toolkit.errors import ConfigError

Factory = TypeVar("Factory", bound=Callable[..., Any])

_FACTORIES: dict[str, dict[str, Callable[..., Any]]] = {}
_PACKAGES: list[str] = []


def offer(*packages: str) -> None:
    """Name packages whose modules register objects; they are imported when a stored name is first looked up."""
    _PACKAGES.extend(name for name in packages if name not in _PACKAGES)


def packages() -> list[str]:
    """What was offered."""
    return list(_PACKAGES)


def register(kind: str, name: str) -> Callable[[Factory], Factory]:
    """Class or function decorator: `build(kind, {"name": name, "arguments": ...})` will call it.

    A registered dataclass also gets a class attribute `registered_name = (kind, name)`.
    """

    def decorate(factory: Factory) -> Factory:
        _FACTORIES.setdefault(kind, {})[name] = factory
        if isinstance(factory, type):
            factory.registered_name = (kind, name)  # type: ignore[attr-defined]
        return factory

    return decorate


def names(kind: str) -> list[str]:
    """Registered names of one kind (`model`, `objective`, `regularizer`, `task`), sorted."""
    return sorted(_FACTORIES.get(kind, {}))


def attributes(kind: str, attribute: str) -> dict[str, Any]:
    """What the registered classes of one kind hold under a name, by registered name, where it is not empty."""
    values = {name: getattr(factory, attribute, None) for name, factory in _FACTORIES.get(kind, {}).items()}
    return {name: value for name, value in values.items() if value}


def describe(obj: object) -> dict[str, Any] | None:
    """The JSON-able recipe of a toolkit object, or None for a foreign one.

    An object describes itself with a `toolkit_config` attribute (`{"name": ..., "arguments": {...}}`) or, if it is
    a registered dataclass, by its init fields.
    """
    config = getattr(obj, "toolkit_config", None)
    if config is not None:
        return dict(config)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type) and hasattr(obj, "registered_name"):
        arguments = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj) if f.init}
        return {"name": obj.registered_name[1], "arguments": arguments}
    return None


def build(kind: str, config: dict[str, Any]) -> Any:
    """Rebuild the object that `describe` described.

    Raises:
        ConfigError: unknown name, or arguments the factory does not take.
    """
    name = config.get("name", "")
    factory = _FACTORIES.get(kind, {}).get(name)
    if factory is None:
        raise ConfigError(f"There is no {kind} called {name!r}.", fix=f"Known: {', '.join(names(kind)) or 'none'}.")
    try:
        return factory(**config.get("arguments", {}))
    except TypeError as error:
        raise ConfigError(f"The {kind} {name!r} cannot be rebuilt: {error}.", where=str(config)) from error
