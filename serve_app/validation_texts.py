"""What pydantic's validation errors say to users: what is allowed, without the given value and without Python's names of types."""

from collections.abc import Mapping
from typing import Any, Final

_ID: Final = "must be an id such as 0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
_TEXTS: Final[Mapping[str, str]] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer",
    "int_type": "must be an integer",
    "list_type": "must be a list",
    "missing": "is required",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "path_type": "must be a path",
    "string_type": "must be a string",
    "string_unicode": "must be valid unicode text",
    "uuid_parsing": _ID,
    "uuid_type": _ID,
}


def validation_text(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, as the end of a sentence that begins with its field. `error` is one of pydantic's `errors()`."""
    kind = error["type"]
    if kind in _TEXTS:
        return _TEXTS[kind]
    limits = error.get("ctx", {})
    if kind == "too_short":
        least = limits["min_length"]
        return "must not be empty" if least == 1 else f"must have at least {least} entries"
    if kind == "too_long":
        return f"must have at most {limits['max_length']} entries"
    message = str(error["msg"]).replace("Input should", "must").replace("String should", "must")
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
