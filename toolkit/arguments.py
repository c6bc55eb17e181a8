"""The one checker of arguments: every public call passes through it, so that no error is raw.

A call's own annotations say which types it takes, `LIMITS` which numbers; its docstring is quoted in the error.
"""

from __future__ import annotations

import builtins
import collections.abc
import difflib
import functools
import inspect
import math
import numbers
import os
import re
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from toolkit.errors import ConfigError, ToolkitError

Call = TypeVar("Call", bound=Callable[..., Any])

MANY = 2**31 - 1
# What a number of this name may be, in whichever public call: the least and the greatest.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("batch_size steps samples rows bins copies batch window directions draws null_draws components stride", 1, MANY),
    ("divisor devices keep_checkpoints log_every validation_cases", 1, MANY),
    ("bootstrap bootstraps null_splits cascade skip stage orders perturbations component", 0, MANY),
    ("checkpoint_every validate_every bank_size warm_up warm_up_steps", 0, MANY),
    ("in_channels out_channels width encoder_width channels", 1, 65536),
    ("seed jitter_seed", 0, 2**63 - 1),
    ("max_rows views neighbours", 2, MANY),
    ("dims", 2, 3),
    ("points", 2, 4096),
    ("timeout", 0, math.inf),
    ("workers", 0, 1024),  # more ends some processes without a message
    ("threads", 1, 1024),
    ("tau t_max temperature radius ratio", 1e-12, 1e12),
    ("threshold fraction foreground brightness contrast saturation grey", 0, 1),
    ("hue", 0, 0.5),
    ("overlap", 0, 0.99),
    ("baseline", -1e30, 1e30),
    ("confidence", 1e-6, 1 - 1e-6),
    ("learning_rate clip_norm", 1e-300, 1e12),
    ("weight_decay momentum jitter cross_entropy dice focal focal_gamma scr ifd noise weight penalty", 0, 1e12),
    ("auxiliary complementary consistency divergence", 0, 1e12),
)
LIMITS = {name: (least, most) for names, least, most in _RANGES for name in names.split()}
# Of keywords that a TypedDict names; the others are None.
DEFAULTS: dict[str, Any] = {"overlap": 0.5, "normalisation": "zscore-clip", "flips": ()}
# What a thing of this name must offer where its annotation allows any object.
OFFERS: dict[str, tuple[str, ...]] = {"task": ("cases", "loader")}
_LOOKED_AT = 256  # elements of a sequence whose type is looked at
# classes known by name alone where they are annotated
_NAMED = {"DataFrame", "Features", "Result", "Run", "Case", "Task"}
_HERE = str(Path(__file__).parent)
_NUMBERS: dict[Any, Any] = {bool: (bool, np.bool_), int: numbers.Integral, float: numbers.Real}
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_RAW = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
    *(NameError, OSError, RuntimeError, TypeError, ValueError),
)


def checked(call: Call) -> Call:
    """The function with its arguments checked, and with words for an error that nobody foresaw.

    What is missing, unknown, of another type than annotated or beyond `LIMITS` is a ConfigError; an exception of Python or
    a library from inside a ToolkitError. One of the caller's own code, or of the contract, is passed on as it is.
    """
    signature = _signature(call)

    @functools.wraps(call)
    def door(*values: Any, **named: Any) -> Any:
        bound = _bind(call, signature, values, named)
        for name, value in bound.arguments.items():
            _check(call, signature, name, value)
        try:
            return call(*values, **named)
        except (ToolkitError, TimeoutError, NotImplementedError):
            raise
        except _RAW as error:
            files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
            inside = (_HERE, *_LIBRARIES, "<")  # else the caller's network, loss or data set raised it
            if any(not file.startswith(inside) and os.path.isabs(file) for file in files):
                raise
            raise _unforeseen(call, bound.arguments, error) from error

    door.__checked__, door.__signature__ = True, signature  # type: ignore[attr-defined]
    return typing.cast("Call", door)


def checked_methods(owner: type) -> type:
    """A class whose constructor and public methods are `checked`, in place."""
    for name, value in list(vars(owner).items()):
        public = name == "__init__" or not name.startswith("_")
        plain = inspect.isfunction(value) and not inspect.isgeneratorfunction(value)
        if public and plain and not hasattr(value, "__checked__"):
            setattr(owner, name, checked(value))
    return owner


def at_the_door(value: Any) -> Any:
    """A public name as users get it: functions checked, and constructors of classes; anything else as it is."""
    if inspect.isfunction(value) and not hasattr(value, "__checked__"):
        value = checked(value)
        setattr(sys.modules[value.__module__], value.__name__, value)  # so that it pickles
    elif inspect.isclass(value) and not issubclass(value, BaseException):
        start = vars(value).get("__init__")
        if inspect.isfunction(start) and not hasattr(start, "__checked__"):
            setattr(value, "__init__", checked(start))  # noqa: B010
    return value


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of a call, each keyword of a `**name: Unpack[Keywords]` by itself."""
    signature = inspect.signature(call)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for keywords in _unpacked(call):
        for name, kind in keywords.__annotations__.items():
            kind = getattr(kind, "__forward_arg__", kind)
            only = inspect.Parameter.KEYWORD_ONLY
            named.append(inspect.Parameter(name, only, default=DEFAULTS.get(name), annotation=kind))
        return signature.replace(parameters=named)
    return signature


def _unpacked(call: Callable[..., Any]) -> list[type]:
    """The TypedDict that names the keywords of a call, if one does."""
    if not any("Unpack" in str(text) for text in call.__annotations__.values()):
        return []  # nothing is evaluated before its module is complete
    kinds = [one for kind in _hints(call).values() for one in typing.get_args(kind)]
    return [kind for kind in kinds if typing.is_typeddict(kind)]


def _bind(
    call: Callable[..., Any], signature: inspect.Signature, values: tuple[Any, ...], named: Mapping[str, Any]
) -> inspect.BoundArguments:
    try:
        return signature.bind(*values, **named)
    except TypeError as error:
        names = [name for name in signature.parameters if name != "self"]
        unknown = next((name for name in named if name not in names), "")
        near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.5)
        near = near or [name for name in names if unknown and unknown.lower() in name]
        hint = f"Did you mean {near[0]!r}? " if near else ""
        fix = f"{hint}It takes: {', '.join(names)}."
        raise ConfigError(f"{_name(call)}: {error}.", where=f"{_name(call)}(...)", fix=fix) from None


def _check(call: Callable[..., Any], signature: inspect.Signature, name: str, value: Any) -> None:
    parameter = signature.parameters[name]
    several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if name == "self" or several or value is parameter.default:
        return
    if not _fits(value, _hints(call).get(name, Any)):
        expected = str(parameter.annotation).replace("collections.abc.", "").replace("os.PathLike[str]", "a path")
        error = _refused(call, signature, name, f"takes {expected}, not {_described(value)}", value)
        if inspect.isclass(value):
            error = ConfigError(error.what, where=error.where, fix=f"Call the class first: toolkit.{value.__name__}().")
        raise error
    if _hints(call).get(name) is Any and not all(hasattr(value, one) for one in OFFERS.get(name, ())):
        raise _refused(call, signature, name, f"must offer {' and '.join(OFFERS[name])}, unlike {_described(value)}")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        least, most, number = *LIMITS.get(name, (-math.inf, math.inf)), typing.cast("Any", value)
        if not least <= number <= most:  # NaN is between nothing
            below = most >= MANY and number < least
            range_ = f"is at least {least:g}" if below else f"is a number from {least:g} to {most:g}"
            raise _refused(call, signature, name, f"{range_}, not {value}", value)


def _refused(
    call: Callable[..., Any], signature: inspect.Signature, name: str, what: str, value: Any = ...
) -> ConfigError:
    owner = getattr(sys.modules[call.__module__], call.__qualname__.removesuffix(".__init__"), call)
    texts = "\n".join(inspect.getdoc(one) or "" for one in (owner, *_unpacked(call)))
    lines = re.search(rf"^ *{name}: (.+(?:\n {{8,}}.*)*)", texts, flags=re.MULTILINE)
    text = f"{name}: {' '.join(lines[1].split())}" if lines else ""
    order = ", ".join(p for p in signature.parameters if p != "self")
    where = f"{_name(call)}({name}={value if isinstance(value, (str, int, float, type(None))) else '...'})"[:200]
    return ConfigError(f"{name} {what}.", where=where, fix=text or f"Its arguments are: {order}.")


def _name(call: Callable[..., Any]) -> str:
    return f"toolkit.{call.__qualname__.removesuffix('.__init__')}"


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (str, bytes, int, float, type(None))):
        text = repr(value)
        return text if len(text) < 60 else f"{text[:50]}... ({kind})"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{kind} {tuple(shape)}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {kind} of {', '.join(sorted({type(one).__name__ for one in value}))}"
    return f"the class {value.__name__}" if inspect.isclass(value) else kind


def _unforeseen(call: Callable[..., Any], arguments: Mapping[str, Any], error: Exception) -> ToolkitError:
    if isinstance(error, OSError):
        paths = [str(value) for value in arguments.values() if isinstance(value, os.PathLike)]
        where = error.filename or ", ".join(paths) or arguments.get("out") or arguments.get("path") or _name(call)
        what = f"{_name(call)} could not read or write a file ({type(error).__name__}: {error.strerror or error})."
        fix = "Check that it exists, that the disk has free space and that you may use it; then call again."
        return ToolkitError(what, where=where, fix=fix)
    unknown = re.match(r"(\w+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown and unknown[2] in arguments.get("options", ()):
        fix = f"Its options are those of toolkit.figures.{unknown[1]}."
        return ConfigError(f"There is no option {unknown[2]!r}.", where=f"{_name(call)}({unknown[2]}=...)", fix=fix)
    given = ", ".join(f"{name}={_described(value)}" for name, value in arguments.items() if name != "self")
    what = f"{_name(call)} failed on these arguments: {type(error).__name__}: {str(error).strip()[:300]}"
    fix = "See which argument the error speaks of; its origin is in the traceback above."
    return ToolkitError(what, where=f"{_name(call)}({given})"[:500], fix=fix)


class ByName(type):
    """Makes a class that only a type checker sees (`pd.DataFrame`), whose values are told by the name of their class."""

    def __instancecheck__(cls, value: object) -> bool:
        return cls.__name__ not in _NAMED or any(base.__name__ == cls.__name__ for base in type(value).__mro__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return ByName(name, (), {})

    def __getitem__(cls, item: Any) -> Any:
        return Any


class _Names(dict[str, Any]):
    """What the names in annotations mean: those of the module, else Python's, else classes known by name alone."""

    def __missing__(self, name: str) -> Any:
        homes = (builtins, collections.abc, typing)
        return next((getattr(home, name) for home in homes if hasattr(home, name)), None) or ByName(name, (), {})


@functools.cache
def _hints(call: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function as types; `Any` for one that has no meaning at run time."""
    names, hints = _Names(call.__globals__), {}
    for name, text in call.__annotations__.items():
        try:
            hints[name] = eval(text, {}, names) if isinstance(text, str) else text
        except Exception:  # an annotation that only a type checker understands
            hints[name] = Any
        for keywords in typing.get_args(hints[name]):
            if typing.is_typeddict(keywords):
                hints |= typing.get_type_hints(keywords)
    return hints


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; what cannot be told is accepted."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is os.PathLike or kind is Path:
        return isinstance(value, (str, os.PathLike))
    if origin is collections.abc.Callable:
        return callable(value)
    if inspect.isclass(origin):
        iterable = issubclass(origin, collections.abc.Iterable)  # unlike Popen[bytes]
        return _fits_container(value, origin, arguments) if iterable else isinstance(value, origin)
    if inspect.isclass(kind) and kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and (kind is bool or not isinstance(value, bool))
    try:
        return isinstance(value, kind)
    except TypeError:
        return True


def _fits_container(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    if issubclass(origin, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            return False
        return all(all(map(_fits, pair, arguments)) for pair in list(value.items())[:_LOOKED_AT])
    kinds = [one for one in arguments if one is not Ellipsis]
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return False
    if origin in (collections.abc.Iterable, collections.abc.Iterator):
        items = list(value)[:_LOOKED_AT] if isinstance(value, collections.abc.Collection) else []
        return not kinds or all(_fits(item, kinds[0]) for item in items)
    if issubclass(origin, (collections.abc.Sequence, list, tuple)):
        if isinstance(value, (collections.abc.Mapping, collections.abc.Set)) or not hasattr(value, "__len__"):
            return False
        if not isinstance(value, collections.abc.Sequence):  # an array, a tensor, a column of a table
            if kinds in ([], [Any]):
                return True
            value = value.tolist() if hasattr(value, "tolist") else list(value)
        if origin is tuple and kinds and Ellipsis not in arguments:
            return len(value) == len(kinds) and all(map(_fits, value, kinds))
        return not kinds or all(_fits(item, kinds[0]) for item in value[:_LOOKED_AT])
    return True
