"""Turns pydantic's validation errors into texts for users, bounded in length."""

import difflib
import json
from collections.abc import Sequence
from typing import Any, Final

from serve_app.api.views.problem import FieldError
from serve_app.music import MusicRequest
from serve_app.music.spellings import our_name

_MAX_SHOWN: Final = 100  # characters of a given value
_MAX_MESSAGE: Final = 1000
_SIMILARITY: Final = 0.9
"""How similar an unknown name must be to a field's name to count as a typo of it: `lyrcs` is a typo of `lyrics`, `speed` is not one
of `seed`."""

_PATTERN_MESSAGES: Final = {
    "prompt": "must not contain a NUL character",
    "lyrics": "must not contain a NUL character",
    "model": "must not contain a NUL character",
    "webhook_url": "must be a URL such as 'https://example.com/hooks/sophia'",
}
"""By field, what its regular expression asks for."""


def field_error(entry: dict[str, Any]) -> FieldError:
    """The user's view of one entry of pydantic's `errors()`."""
    path = [str(part) for part in entry["loc"][1:]] or [str(entry["loc"][0])]
    field = shortened(".".join(path))
    if entry["type"] == "missing":
        return FieldError(field=field, message="is required")
    message = _message(path[-1], entry)
    return FieldError(field=field, value=shortened(entry.get("input")), message=message[:_MAX_MESSAGE])


def _message(name: str, entry: dict[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return _unknown_field(name[:_MAX_SHOWN])
    if entry["type"] == "string_pattern_mismatch":
        return _PATTERN_MESSAGES.get(name, "contains characters that are not allowed")
    message = str(entry["msg"]).replace("Input should", "must").replace("String should", "must")
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _unknown_field(name: str) -> str:
    ours = our_name(name)
    if ours is not None:
        return f"is not a field of Sophia, where it is called {ours!r}"
    fields: Sequence[str] = list(MusicRequest.model_fields)
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
