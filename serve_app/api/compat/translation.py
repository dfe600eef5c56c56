"""From the fields of another service's request to a MusicRequest, and its errors back to the names that the client used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from serve_app.api.field_errors import (
    MAX_LISTED,
    check_field_count,
    field_error,
    shortened,
    wrong_field,
    wrong_fields_error,
)
from serve_app.errors import InvalidRequest, WrongField
from serve_app.music import MusicRequest
from serve_app.music.spellings import our_name

_FIELDS: Final = tuple(MusicRequest.model_fields)


class Translated(NamedTuple):
    """A request, and for each of its fields the name by which the client knows it."""

    song: MusicRequest
    names: Mapping[str, str]

    @contextmanager
    def errors_named_as_given(self) -> Iterator[None]:
        """Raise every InvalidRequest of the block with the client's names of the fields."""
        try:
            yield
        except InvalidRequest as error:
            if not error.wrong_fields:
                raise
            raise _renamed(error, self.names) from error


def translated(
    given: Mapping[str, Any],
    inside: str = "",
    decided: Mapping[str, tuple[str, Any]] = MappingProxyType({}),
    own_names: Mapping[str, str] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Translated:
    """The request with the fields `given`, which may have Sophia's names or those in `spellings.FOREIGN_NAMES`.

    `inside` is the part of the client's body that has them, for errors. `decided` has, by Sophia's name, fields that the
    family sets from elsewhere: the client's name and the value. `own_names` has Sophia's name for names that mean this in one
    family only; they count before all others. `defaults` has, by Sophia's name, values for fields that are left out. Raises
    InvalidRequest, which names fields as the client does.
    """
    check_field_count(given)
    prefix = f"{inside}." if inside else ""
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        ours = own_names.get(name) or (name if name in _FIELDS else our_name(name) or name)
        if value is None:
            continue
        if ours in fields and fields[ours] != value:
            raise wrong_field(
                f"{prefix}{name}", shortened(value), f"means the same as {names[ours]}, which has another value"
            )
        fields[ours] = value
        names.setdefault(ours, f"{prefix}{name}")
    for ours, (name, value) in decided.items():
        fields[ours] = value
        names[ours] = name
    try:
        return Translated(MusicRequest.model_validate({**defaults, **fields}), names)
    except ValidationError as error:
        raise _renamed(invalid(error, prefix), names) from error


def invalid(error: ValidationError, prefix: str = "", fields: Sequence[str] = _FIELDS) -> InvalidRequest:
    """The error for a body with these `fields`. Missing ones are named with `prefix` before them."""
    wrong = []
    for entry in error.errors(include_url=False, include_context=True)[:MAX_LISTED]:
        found = field_error({**entry, "loc": ("body", *entry["loc"])}, fields)
        name = found.field if entry["type"] != "missing" else f"{prefix}{found.field}"
        wrong.append(WrongField(name, found.value or "", found.message))
    return wrong_fields_error(wrong, error.error_count())


def _renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """The error with the client's names of the fields, in its entries and its text."""
    renamed = [WrongField(_client_name(one.field, names), one.value, one.message) for one in error.wrong_fields]
    return wrong_fields_error(renamed, error.wrong_count)


def _client_name(field: str, names: Mapping[str, str]) -> str:
    """The client's name of a field; only the first part of a path such as `lora.0.name` is translated."""
    first, dot, rest = field.partition(".")
    return f"{names.get(first, first)}{dot}{rest}"
