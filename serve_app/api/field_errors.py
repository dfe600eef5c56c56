"""The errors for wrong fields: pydantic's entries as texts for users, bounded in length and number."""

import difflib
import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from serve_app.api.views.problem import FieldError
from serve_app.errors import InvalidRequest, WrongField
from serve_app.music import LoraUse
from serve_app.music.plan_fields import GivenPlan
from serve_app.music.spellings import our_name
from serve_app.validation_texts import validation_text

MAX_LISTED: Final = 20
"""Invalid fields that one answer lists: a body of a megabyte may have fifty thousand."""

_MOST_FIELDS: Final = 1000
"""The most fields of an object of a foreign client. A song has about a hundred, under all of their names."""

_MAX_SHOWN: Final = 100  # characters of a given value
_MAX_MESSAGE: Final = 1000
_SIMILARITY: Final = 0.9
"""How similar an unknown name must be to a field's name to count as a typo of it: `lyrcs` is a typo of `lyrics`, `speed` is not one
of `seed`."""

_AUDIO_PATTERN: Final = (
    "must be input:ID for an upload, job:ID/N for song N of one of your jobs (job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/0), or an "
    "https:// address"
)
_NAME_PATTERN: Final = "must have at most 64 letters, digits, '.', '_' and '-', and begin with a letter or digit"
_PATTERN_MESSAGES: Final = {
    "prompt": "must not contain a NUL character",
    "lyrics": "must not contain a NUL character",
    "source_prompt": "must not contain a NUL character",
    "source_lyrics": "must not contain a NUL character",
    "caption": "must not contain a NUL character",
    "plan_negative_prompt": "must not contain a NUL character",
    "job": "must be job:ID with the id of one of your jobs (job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d)",
    "model": "must not contain a NUL character",
    "source": _AUDIO_PATTERN,
    "reference": _AUDIO_PATTERN,
    "input_id": "must be the id of an input, 64 hexadecimal digits",
    "voice": _NAME_PATTERN,
    "name": _NAME_PATTERN,
    "webhook_url": "must be a URL such as 'https://example.com/hooks/sophia'",
}
"""By field, what its regular expression asks for."""
_FIELDS_INSIDE: Final = {"lora": list(LoraUse.model_fields), "plan": list(GivenPlan.model_fields)}
"""The fields of objects inside a request, by the field that has them."""


def wrong_field(field: str, value: str, message: str) -> InvalidRequest:
    """The error for one wrong field."""
    return wrong_fields_error((WrongField(field, value, message),))


def wrong_fields_error(wrong: Sequence[WrongField], count: int | None = None) -> InvalidRequest:
    """The error for several wrong fields. `count` is how many there are, if `wrong` has only the first of them."""
    listed = tuple(wrong[:MAX_LISTED])
    texts = "; ".join(f"{one.field}: {one.message}" for one in listed)
    error = InvalidRequest(with_count(texts, len(listed), count or len(wrong)))
    error.wrong_fields = listed
    error.wrong_count = count or len(wrong)
    return error


def with_count(texts: str, listed: int, count: int) -> str:
    """The text of an error, which says how many errors there are if not all of them are listed."""
    if count <= listed:
        return texts
    return f"{texts}; there are {count} errors in all, of which the first {listed} are listed"


def check_field_count(given: Collection[object]) -> None:
    """Raise InvalidRequest for more fields than anything needs, before each of them costs time."""
    if len(given) > _MOST_FIELDS:
        raise InvalidRequest(f"The request has {len(given)} fields in one object; it may have at most {_MOST_FIELDS}")


def field_error(entry: dict[str, Any], fields: Sequence[str]) -> FieldError:
    """The user's view of one entry of pydantic's `errors()`. `fields` are the names of the body's fields."""
    path = [str(part) for part in entry["loc"][1:]] or [str(entry["loc"][0])]
    field = shortened(".".join(path))
    if entry["type"] == "missing":
        return FieldError(field=field, message=validation_text(entry))
    message = _message(path, entry, fields)
    return FieldError(field=field, value=shortened(entry.get("input")), message=message[:_MAX_MESSAGE])


def _message(path: Sequence[str], entry: dict[str, Any], fields: Sequence[str]) -> str:
    name = path[-1]
    if entry["type"] == "extra_forbidden":
        return _unknown_field(name[:_MAX_SHOWN], _FIELDS_INSIDE.get(path[0], fields))
    if entry["type"] == "string_pattern_mismatch":
        return _PATTERN_MESSAGES.get(name, "contains characters that are not allowed")
    return validation_text(entry)


def _unknown_field(name: str, fields: Sequence[str]) -> str:
    """What is wrong with a name that is none of `fields`."""
    ours = our_name(name)
    if ours in fields:
        return f"is not a known field; Sophia calls it {ours!r}"
    similar = difflib.get_close_matches(name.lower(), fields, n=1, cutoff=_SIMILARITY)
    if similar:
        return f"is not a known field; did you mean {similar[0]!r}?"
    return f"is not a known field; the fields are {', '.join(fields)}"


def shortened(value: Any) -> str:
    """A given value as text of at most 100 characters."""
    if isinstance(value, dict | list) and len(value) > _MAX_SHOWN:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return _encodable(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…")


def _encodable(text: str) -> str:
    """The text with lone surrogates escaped: JSON allows them, but UTF-8 cannot encode them."""
    return text.encode(errors="backslashreplace").decode()
