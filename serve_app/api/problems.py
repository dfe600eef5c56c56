"""Turns every error into application/problem+json (RFC 9457)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from serve_app import errors
from serve_app.api.field_errors import MAX_LISTED, field_error, shortened, with_count
from serve_app.api.views.problem import FieldError, Problem
from serve_app.errors import SophiaError

logger = logging.getLogger("ray.serve.sophia")

_MAX_IN_DETAIL: Final = 5
"""Invalid fields that `detail` names."""

_BY_STATUS: Final[dict[int, type[SophiaError]]] = {404: errors.NotFound, 405: errors.MethodNotAllowed}


class ProblemResponse(JSONResponse):
    """A JSON response with the media type of RFC 9457."""

    media_type = "application/problem+json"


ErrorShape = Callable[[Problem], tuple[int, Any]]
"""Returns the status and the JSON body with which a foreign API reports a problem."""


def install(app: FastAPI, shapes: Mapping[str, ErrorShape]) -> None:
    """Register the handlers for all errors of the application.

    `shapes` has the shapes of foreign APIs by the beginning of their paths.
    """
    app.state.error_shapes = shapes
    app.add_exception_handler(SophiaError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_unexpected)


def problem(scope: Scope, error: SophiaError, wrong: list[FieldError] | None = None) -> JSONResponse:
    """The response for an error: its status, headers and public message, and the invalid fields `wrong`.

    Under the paths of a foreign API it has that API's shape.
    """
    found = Problem(
        type="about:blank",
        title=error.title,
        status=error.status,
        code=error.code,
        detail=error.public,
        request_id=scope.get("request_id", ""),
        errors=wrong or None,
    )
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    headers |= error.headers
    shape = _foreign_shape(scope)
    if shape is None:
        return ProblemResponse(found.model_dump(exclude_none=True), error.status, headers)
    status, body = shape(found)
    return JSONResponse(body, status, headers)


def _foreign_shape(scope: Scope) -> ErrorShape | None:
    """The shape of the foreign API to which the path belongs; the longest beginning counts. None for a native path."""
    shapes: Mapping[str, ErrorShape] = scope["app"].state.error_shapes
    matching = [prefix for prefix in shapes if _is_under(scope["path"], prefix)]
    return shapes[max(matching, key=len)] if matching else None


def _is_under(path: str, beginning: str) -> bool:
    """Whether a path begins so. `/health` begins `/health/x`, but not `/healthz`."""
    return path == beginning or path.startswith(f"{beginning.rstrip('/')}/")


async def _answer_ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SophiaError)  # noqa: S101 - the handler is registered for this class only
    wrong = None
    if isinstance(error, errors.InvalidRequest):
        wrong = [
            FieldError(field=field.field, value=shortened(field.value), message=field.message)
            for field in error.wrong_fields
        ]
    return problem(request.scope, error, wrong)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that Starlette raises: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class only
    kind = _BY_STATUS.get(error.status_code, errors.BadRequest)
    if kind is errors.BadRequest:
        return problem(request.scope, kind(str(error.detail)))
    ours = kind(f"There is no {request.method} {request.url.path}. GET /docs lists all routes")
    if kind is errors.MethodNotAllowed:
        ours.headers = {"Allow": _allowed_methods(request)}
    return problem(request.scope, ours)


def _allowed_methods(request: Request) -> str:
    """Every method of the path. Starlette's own header names only those of the first matching route."""
    routes = request.app.router.routes

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    return ", ".join(filter(is_allowed, ("GET", "HEAD", "POST", "DELETE")))


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.exception("request %s failed", request.scope.get("request_id", ""), exc_info=error)
    detail = "This is a bug in Sophia. The log has the traceback under the request id; please report it"
    return problem(request.scope, SophiaError(detail))


async def _answer_nobody(request: Request, _: Exception) -> JSONResponse:
    """Answer a client that has disconnected; the server drops the answer. Without it, the log would show a failure."""
    return problem(request.scope, errors.BadRequest("The client disconnected before the answer"))


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that failed validation."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for this class only
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return problem(request.scope, errors.MalformedBody(f"The request body is not valid JSON: {reason}"))
    media_type = _media_type(request)
    if found[0]["loc"] == ("body",) and not _is_json(media_type):
        given = f"as {shortened(media_type)}" if media_type else "without a Content-Type"
        detail = (
            f"The body was sent {given}. Send JSON with 'Content-Type: application/json', or a request with files as "
            "multipart/form-data. POST /v1/inputs takes a file alone"
        )
        return problem(request.scope, errors.UnsupportedMediaType(detail))
    return _answer_wrong_fields(request, found)


def _answer_wrong_fields(request: Request, found: Sequence[dict[str, Any]]) -> JSONResponse:
    fields = _body_fields(request)
    wrong = [field_error(entry, fields) for entry in found[:MAX_LISTED]]
    detail = "; ".join(f"{entry.field}: {entry.message}" for entry in wrong[:_MAX_IN_DETAIL])
    return problem(request.scope, errors.InvalidRequest(with_count(detail, len(wrong), len(found))), wrong)


def _body_fields(request: Request) -> list[str]:
    """The names of the fields that the route's body may have; none for a body that may be any object."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(body.field_info.annotation, "model_fields", ())) if body else []


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")
