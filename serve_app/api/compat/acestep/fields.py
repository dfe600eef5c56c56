"""The fields of a call: found under each of their names, at the top of the body or in an object inside it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from serve_app.api.field_errors import check_field_count, shortened
from serve_app.music.spellings import snake_case

_OBJECTS: Final = ("param_obj", "metas", "meta", "metadata", "user_metadata")
"""The objects inside a body that may have fields, too; what stands at the top counts first, then the earlier object."""

_TRUE: Final = ("1", "true", "yes", "y", "on")
_MOST_TEXT: Final = 40
"""The most characters of a number."""
_MOST_IGNORED: Final = 30
"""The most ignored fields that an answer lists: a body of a megabyte may have a hundred thousand."""


class Given(NamedTuple):
    """A value, and where the client has put it: `audioDuration`, or `param_obj.duration`."""

    name: str
    value: Any


class Ignored(NamedTuple):
    """What a client asked for and does not get."""

    field: str
    value: str
    reason: str

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.field} is ignored: {self.reason}."


@dataclass(frozen=True, slots=True)
class Fields:
    """What a client has sent, and what of it is ignored. Every field can be taken once."""

    left: dict[str, list[Given]]
    """By name in snake case, the values that nobody has taken. The one that counts is first."""
    ignored: list[Ignored]

    def take(self, *names: str) -> Given | None:
        """The value of a field that has these names, None if it is not there. Of several values the first counts."""
        found = [given for name in names for given in self.left.pop(name, ())]
        found.sort(key=lambda given: given.name.count("."))  # what stands at the top counts first
        for other in found[1:]:
            if other.value != found[0].value:
                self.ignore(other, f"{found[0].name} means the same and counts")
        return found[0] if found else None

    def number(self, *names: str) -> Given | None:
        """A number, which may be text. One that cannot be read is ignored."""
        given = self.take(*names)
        if given is None or is_blank(given.value):
            return None
        try:
            return Given(given.name, number(given.value))
        except ValueError:
            self.ignore(given, "it is no number")
            return None

    def switch(self, *names: str, default: bool = False) -> bool:
        """Yes or no."""
        given = self.take(*names)
        return default if given is None or is_blank(given.value) else switch(given.value)

    def ignore(self, given: Given, reason: str) -> None:
        """Report a value as ignored."""
        if len(self.ignored) < _MOST_IGNORED:
            self.ignored.append(Ignored(shortened(given.name), shortened(given.value), reason))

    def ignore_the_rest(self, reason: str) -> None:
        """Report every value as ignored that nobody has taken, unless it is blank."""
        for given in [given for found in self.left.values() for given in found if not is_blank(given.value)]:
            self.ignore(given, reason)
        self.left.clear()


def fields_of(body: Mapping[str, Any]) -> Fields:
    """The fields of a body, without those that are null. Raises InvalidRequest for more fields than anything needs."""
    check_field_count(body)
    left: dict[str, list[Given]] = {}
    inside = []
    for name, value in body.items():
        place = snake_case(name)
        fields = _object(value) if place in _OBJECTS else None
        if fields is not None:
            inside.append((_OBJECTS.index(place), name, fields))
        elif value is not None:
            left.setdefault(place, []).append(Given(name, value))
    for _, name, fields in sorted(inside, key=lambda one: one[0]):
        check_field_count(fields)
        for given in _inside(name, fields):
            left.setdefault(snake_case(given.name.rpartition(".")[2]), []).append(given)
    return Fields(left, [])


def _inside(name: str, fields: Mapping[str, Any]) -> Iterator[Given]:
    return (Given(f"{name}.{field}", value) for field, value in fields.items() if value is not None)


def _object(value: Any) -> dict[str, Any] | None:
    """The object that a field has, or whose JSON it has. None if it has something else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value if isinstance(value, dict) else None


def number(value: Any) -> float:
    """A number, which may be text. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > _MOST_TEXT:
        raise ValueError
    found = float(value)
    if not math.isfinite(found):
        raise ValueError
    return int(found) if found.is_integer() else found


def switch(value: Any) -> bool:
    """Whether a value means yes. Everything that does not means no."""
    return str(value).strip().lower() in _TRUE


def is_blank(value: Any) -> bool:
    """Whether a value is text without a word, with which clients fill fields that they do not set."""
    return isinstance(value, str) and not value.strip()


def is_one_of(value: Any, usual: Sequence[Any]) -> bool:
    """Whether a value, which may be text, is one of `usual`."""
    for one in usual:
        if isinstance(one, bool):
            if switch(value) == one:
                return True
        elif isinstance(one, int | float):
            with suppress(ValueError):
                if number(value) == one:
                    return True
        elif str(value).strip().lower() == one:
            return True
    return False
