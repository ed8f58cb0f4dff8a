"""Frozen dataclasses whose values pydantic checks and converts by their annotations.

Below both :mod:`tzn.config` and :mod:`tzn.models.config`, whose sections are such classes, so it can stand in neither.
pydantic itself is imported when the first section is made. Messages are written from the annotations, because what a user
wants to read is the dotted name, the value and everything that would have been right.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import reprlib
import types
import typing
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Ge, Gt, Interval, Lt, Predicate

from tzn.errors import ConfigError

T = TypeVar("T")

# A text among the annotations is how a message describes the whole; pydantic passes it over.
AtLeastZero = Annotated[float, Ge(0), "a number >= 0"]
Positive = Annotated[float, Gt(0), "a number > 0"]
PositiveShare = Annotated[float, Interval(gt=0, le=1), "a number in (0, 1]"]
Share = Annotated[float, Interval(ge=0, le=1), "a number in [0, 1]"]
ShareBelowOne = Annotated[float, Ge(0), Lt(1), "a number in [0, 1)"]
Count = Annotated[int, Interval(ge=1, lt=1 << 31), "an integer >= 1 and below 2^31"]
CountOrZero = Annotated[int, Interval(ge=0, lt=1 << 31), "an integer >= 0 and below 2^31"]
Range = Annotated[tuple[float, float], Predicate(lambda r: 0 <= r[0] < r[1]), "a list of 2 values 0 <= low < high"]

_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_JSON_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


@dataclasses.dataclass(frozen=True)
class Checked:
    """Base of a configuration's sections; ``section`` is the name in YAML files and messages.

    Numbers may come as texts, lists as tuples; NaN, infinities and booleans are no numbers.

    Raises:
        ConfigError: a value that does not fit its annotation; one line with name, value and what was expected.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        for name in hints(type(self)):
            object.__setattr__(self, name, self.convert(name, getattr(self, name)))

    @classmethod
    def convert(cls, name: str, value: Any) -> Any:
        """``value`` as the type of the field ``name``."""
        from pydantic import ValidationError

        hint = hints(cls)[name]
        try:
            if _has_bool(value) != (hint is bool):
                raise TypeError
            kind: Any = cls
            return _adapter(kind, name).validate_python(value)
        except (ValidationError, TypeError, RecursionError):
            pass
        raise ConfigError(f"{cls.section}.{name} = {shown(value)}: expected {describe(hint)}")

    def require(self, condition: bool, name: str, expected: str) -> None:
        """A rule that ties several fields together."""
        if not condition:
            raise ConfigError(f"{self.section}.{name} = {shown(getattr(self, name))}: expected {expected}")

    def replace(self: T, **changes: object) -> T:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def hints(section: Any) -> dict[str, Any]:
    """Annotations of a section's fields by name."""
    return _hints(section)


@cache
def _hints(section: Any) -> dict[str, Any]:
    every = typing.get_type_hints(section, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(section)}


def meanings(section: Any) -> dict[str, str]:
    """What a section's fields mean, by name: the lines of ``Attributes:`` in its docstring; none under ``python -OO``."""
    found: dict[str, str] = {}
    names: list[str] = []
    lines = iter((inspect.getdoc(section) or "").splitlines())
    for line in lines:
        if line.strip() == "Attributes:":
            break
    for line in lines:
        named = re.match(r"    (\w+(?:, \w+)*): +(.*)", line)
        if named:
            names = named[1].split(", ")
            found |= dict.fromkeys(names, named[2])
        elif line.startswith("     "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return {name: re.sub(r":\w+:`~?([^`]*)`|``([^`]*)``", lambda m: m[1] or m[2], text) for name, text in found.items()}


def kinds(hint: Any) -> list[str]:
    """JSON's names of the types that an annotation takes: "integer", "number", "string", "boolean", "array", "null"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kinds(inner[0])
    if origin in (typing.Union, types.UnionType):
        return list(dict.fromkeys(kind for part in inner for kind in kinds(part)))
    if origin is typing.Literal:
        return ["string"]
    return ["array"] if origin is tuple else [_JSON_KINDS[hint]]


def choices(hint: Any) -> list[str]:
    """The texts that an annotation allows, where they are a list; else none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return list(inner)
    return [text for part in inner for text in choices(part)] if origin in (typing.Union, types.UnionType) else []


@cache
def _adapter(section: Any, name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # An override such as training.precision=32 or data.validation=[12] reads as a number.
    return TypeAdapter(hints(section)[name], config=ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True))


def _has_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, (list, tuple)) and any(map(_has_bool, value)))


def shown(value: Any) -> str:
    """``repr`` of a value at a length that fits a message."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__}"


def describe(hint: Any) -> str:
    """What fits an annotation, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return next((note for note in inner[1:] if isinstance(note, str)), None) or describe(inner[0])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(describe, inner))
    if origin is typing.Literal:
        return ", ".join(map(repr, inner[:-1])) + f" or {inner[-1]!r}"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list, each {describe(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)} values, each {describe(inner[0])}"
    return _KINDS[hint]
