"""Turns pydantic's validation errors into texts for users, bounded in length."""

import difflib
import json
from collections.abc import Sequence
from typing import Any, Final

from serve_app.api.views.problem import FieldError
from serve_app.music import LoraUse
from serve_app.music.plan_fields import GivenPlan
from serve_app.music.spellings import our_name
from serve_app.validation_texts import validation_text

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
