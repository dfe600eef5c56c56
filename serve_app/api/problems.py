"""Errors become application/problem+json (RFC 9457) here, all of them."""

import difflib
import json
import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serve_app import errors
from serve_app.api.views import Problem
from serve_app.errors import SophiaError
from serve_app.music import MusicRequest
from serve_app.music.spellings import our_name

logger = logging.getLogger("ray.serve.sophia")

_SHOWN: Final = 100  # characters of a wrong value
_MOST_ERRORS: Final = 20
"""Wrong fields that one answer tells: a body of a megabyte may have fifty thousand."""
_LONGEST_MESSAGE: Final = 1000
_ALIKE: Final = 0.9
"""How like one of our names a wrong one must be to be taken for a slip: `lyrcs` is one for lyrics, `speed` is none for seed."""
_BY_STATUS: Final[dict[int, type[SophiaError]]] = {404: errors.NotFound, 405: errors.MethodNotAllowed}


class ProblemResponse(JSONResponse):
    """A JSON answer of RFC 9457's type."""

    media_type = "application/problem+json"


ASKING: Final = (
    errors.Unauthorized,
    errors.WrongHost,
    errors.CrossSite,
    errors.TooManyRequests,
    errors.StoreUnavailable,
)
"""What every route can answer with that asks who is calling."""


def responses(*kinds: type[SophiaError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: the errors that it can answer with, for the OpenAPI page."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = found.setdefault(kind.status, {"description": "", "content": _content()})
        entry["description"] = f"{entry['description']}; {kind.title}".removeprefix("; ") + f" (`{kind.code}`)"
    return found


def _content() -> dict[str, Any]:
    return {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""
    app.add_exception_handler(SophiaError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    request_id: str,
    kind: type[SophiaError],
    detail: str,
    wrong: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
    retry_after_s: int | None = None,
) -> ProblemResponse:
    """The answer for one error; `Retry-After` tells `retry_after_s`, or what the error's class says."""
    body = Problem(
        type="about:blank",
        title=kind.title,
        status=kind.status,
        code=kind.code,
        detail=detail,
        request_id=request_id,
        errors=wrong,  # type: ignore[arg-type]  # dicts of FieldError's shape
    ).model_dump(exclude_none=True)
    extra = {"WWW-Authenticate": "Bearer"} if kind.status == 401 else {}
    wait_s = retry_after_s if retry_after_s is not None else kind.retry_after_s
    if wait_s is not None:
        extra["Retry-After"] = str(wait_s)
    return ProblemResponse(body, kind.status, {**extra, **(headers or {})})


def request_id_of(request: Request) -> str:
    """The request's id, given by the middleware."""
    return str(request.scope.get("request_id", ""))


async def _ours(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, SophiaError)  # noqa: S101 - the handler is registered for this class only
    headers = dict(error.headers)
    return problem(
        request_id_of(request), type(error), error.public, headers=headers, retry_after_s=error.retry_after_s
    )


async def _http(request: Request, error: Exception) -> ProblemResponse:
    """What Starlette raises itself: no route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class only
    kind = _BY_STATUS.get(error.status_code, errors.BadRequest)
    detail = f"There is no {request.method} {request.url.path} here; GET /docs lists what there is"
    if kind is errors.BadRequest:
        return problem(request_id_of(request), kind, str(error.detail))
    headers = {"Allow": _methods(request)} if kind is errors.MethodNotAllowed else {}
    return problem(request_id_of(request), kind, detail, headers=headers)


def _methods(request: Request) -> str:
    """Every method of the path; Starlette names those of the first route that has it only."""
    routes = request.app.router.routes

    def has(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    return ", ".join(filter(has, ("GET", "HEAD", "POST", "DELETE")))


async def _unexpected(request: Request, error: Exception) -> ProblemResponse:
    logger.exception("request %s failed", request_id_of(request), exc_info=error)
    return problem(request_id_of(request), SophiaError, "This is a bug in Sophia; the log has it under the request id")


async def _invalid(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for this class only
    found = error.errors()
    count = len(found)
    found = found[:_MOST_ERRORS]
    if found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return problem(request_id_of(request), errors.MalformedBody, f"The body is not valid JSON: {reason}")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found[0]["loc"] == ("body",) and media_type != "application/json" and not media_type.endswith("+json"):
        detail = f"Send the body as 'Content-Type: application/json', not {media_type[:_SHOWN] or 'without a type'}"
        return problem(request_id_of(request), errors.UnsupportedMediaType, detail)
    wrong = [_field_error(entry) for entry in found]
    detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in wrong[:5])
    if count > len(wrong):
        detail = f"{detail}; and more: {count} in all, of which the first {len(wrong)} are told"
    return problem(request_id_of(request), errors.InvalidRequest, detail, wrong)


def _field_error(entry: dict[str, Any]) -> dict[str, Any]:
    kind = entry["type"]
    given = entry.get("input")
    path = [str(part) for part in entry["loc"][1:]] or [str(entry["loc"][0])]
    if kind == "extra_forbidden":
        return {"field": _shown(".".join(path)), "value": _shown(given), "message": _unknown_field(path[-1][:_SHOWN])}
    message = str(entry["msg"]).replace("Input should", "must").replace("String should", "must")
    message = _in_words(path[-1], kind, message.removeprefix("Value error, "))
    message = "is required" if kind == "missing" else message[:1].lower() + message[1:]
    field = {"field": _shown(".".join(path)), "message": message[:_LONGEST_MESSAGE]}
    return field if kind == "missing" else field | {"value": _shown(given)}


def _in_words(field: str, kind: str, message: str) -> str:
    """A sentence in place of a regular expression."""
    if kind != "string_pattern_mismatch":
        return message
    if field == "prompt":
        return "must say something, and hold no NUL character"
    if field == "webhook_url":
        return "must be an address such as 'https://example.com/hooks/sophia'"
    return "must hold no NUL character" if field in ("lyrics", "model") else "has characters that are not allowed here"


def _unknown_field(name: str) -> str:
    ours = our_name(name)
    if ours is not None:
        return f"there is no such field; here it is called {ours!r}"
    known: Sequence[str] = list(MusicRequest.model_fields)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=_ALIKE)
    return "there is no such field" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list) and len(value) > _SHOWN:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return _printable(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _printable(text: str) -> str:
    """A lone surrogate is legal in JSON, and in no encoding."""
    return text.encode(errors="backslashreplace").decode()
