"""Calls of the service: what is sent, and how an answer's body becomes an object."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import ValidationError

from sophia_client.answer import Answer
from sophia_client.errors import UnexpectedAnswer

AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `body` is a file's content or its path; `silence_s` is the longest time without a byte of the answer."""

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path | None = None
    silence_s: float | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def path_of(*parts: str) -> str:
    """The path of a native route; each part is escaped."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def parsed(kind: type[AnswerT], response: httpx.Response) -> AnswerT:
    """The body as an answer of this kind. Raises UnexpectedAnswer."""
    return parsed_text(kind, response.content)


def parsed_text(kind: type[AnswerT], text: str | bytes) -> AnswerT:
    """JSON as an answer of this kind. Raises UnexpectedAnswer."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UnexpectedAnswer(f"The answer is not Sophia's {kind.__name__}: {where}: {first['msg']}") from error


def checked_url(url: str) -> str:
    """The service's address. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must begin with http:// or https:// and a host name")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("url must have no user, password, query or fragment")
    return url.rstrip("/")


def headers_with(key: str | None, user_agent: str) -> dict[str, str]:
    """The headers of every call. Raises ValueError for a key that a header cannot hold; its text does not have the key."""
    headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
    if not key:
        return headers
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("key must consist of printable ASCII characters without spaces")
    return {**headers, "Authorization": f"Bearer {key}"}
