"""The OpenAPI page: FastAPI's, with Sophia's errors and with what this service's configuration allows."""

from collections.abc import Callable
from typing import Any, Final, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from serve_app.api.submission import NOT_BLANK
from serve_app.api.views.problem import Problem
from serve_app.config import AppArgs

_REQUESTS: Final = ("MusicRequest-Input", "SongRequest")
"""The schemas of POST /v1/jobs and POST /v1/music."""


def openapi_of(app: FastAPI, args: AppArgs) -> Callable[[], dict[str, Any]]:
    """A function that returns the page and builds it on the first call, for `app.openapi`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, args)
        return app.openapi_schema

    return openapi


def _build(app: FastAPI, args: AppArgs) -> dict[str, Any]:
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = page["components"]["schemas"]
    _replace_errors(schemas)
    for name in _REQUESTS:
        _restrict(schemas[name]["properties"], args)
    events = page["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    del events["schema"]  # FastAPI calls every stream a string; `itemSchema` describes the events of this one
    return page


def _replace_errors(schemas: dict[str, Any]) -> None:
    """Put Problem in place of FastAPI's own validation errors, which Sophia never sends."""
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem


def _restrict(properties: dict[str, Any], args: AppArgs) -> None:
    """Describe what `submission.submit` accepts: the served models, and a webhook only if this service can sign it."""
    properties["prompt"]["pattern"] = NOT_BLANK
    served: Any = Literal[tuple(args.models)]
    properties["model"]["anyOf"][0] = TypeAdapter(served).json_schema()
    properties["model"]["examples"] = [args.default_model]
    if not args.webhook_secret:
        properties["webhook_url"] = {
            "type": "null",
            "title": properties["webhook_url"]["title"],
            "description": "Not available here: the operator has set no `webhook_secret`.",
            "examples": [None],
        }
