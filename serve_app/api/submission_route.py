"""The route class of every route that takes a MusicRequest."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from serve_app.api.context import Context
from serve_app.api.submission import wrong_fields
from serve_app.config import AppArgs


class SubmissionRoute(APIRoute):
    """Reports every wrong field of a request in one answer.

    FastAPI rejects a body that is not a valid MusicRequest before `submission.submit` can check it against the configuration. This
    class adds the result of that check to FastAPI's errors.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_and_report(request: Request) -> Response:
            context: Context = request.app.state.context
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise RequestValidationError(_all_errors(context.args, error), body=error.body) from error

        return handle_and_report


def _all_errors(args: AppArgs, error: RequestValidationError) -> list[dict[str, Any]]:
    """FastAPI's errors, with those of the configuration in place of FastAPI's for the same field."""
    body = error.body
    if not isinstance(body, dict):
        return list(error.errors())
    wrong = list(wrong_fields(args, body.get("prompt"), body.get("model"), body.get("webhook_url")))
    replaced = {("body", field.field) for field in wrong}
    ours = [
        {"type": "value_error", "loc": ("body", field.field), "msg": field.message, "input": field.value}
        for field in wrong
    ]
    return [*ours, *(entry for entry in error.errors() if tuple(entry["loc"]) not in replaced)]
