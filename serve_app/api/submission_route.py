"""The route class of every route that takes a MusicRequest."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from serve_app.api.adapters import known_adapters, wrong_adapters
from serve_app.api.context import Context
from serve_app.api.multipart import as_json, is_multipart
from serve_app.api.planning import wrong_thinking
from serve_app.api.submission import wrong_fields
from serve_app.errors import StoreUnavailable


class SubmissionRoute(APIRoute):
    """Takes multipart bodies, and reports every wrong field of a request in one answer.

    FastAPI rejects a body that is not a valid MusicRequest before `submission.submit` can check it against the configuration. This
    class adds the result of that check to FastAPI's errors.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_and_report(request: Request) -> Response:
            context: Context = request.app.state.context
            if is_multipart(request):
                request = await as_json(context, request)
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise RequestValidationError(await _all_errors(context, error), body=error.body) from error

        return handle_and_report


async def _all_errors(context: Context, error: RequestValidationError) -> list[dict[str, Any]]:
    """FastAPI's errors, with those of the configuration in place of FastAPI's for the same field."""
    body = error.body
    if not isinstance(body, dict):
        return list(error.errors())
    wrong = list(wrong_fields(context.args, body.get("prompt"), body.get("model"), body.get("webhook_url")))
    wrong += wrong_thinking(context.args, body.get("thinking"), body.get("model"))
    if body.get("lora"):
        with suppress(StoreUnavailable):  # then these errors are left out, as the others need no database
            wrong += wrong_adapters(body["lora"], await known_adapters(context, body.get("model")))
    replaced = {field.field for field in wrong}
    ours = [
        {"type": "value_error", "loc": ("body", field.field), "msg": field.message, "input": field.value}
        for field in wrong
    ]
    return [*ours, *(entry for entry in error.errors() if ".".join(map(str, entry["loc"][1:])) not in replaced)]
