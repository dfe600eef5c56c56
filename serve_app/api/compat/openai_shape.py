"""What OpenAI's API and the services that have taken it over share: errors, names of models, and what SDKs repeat."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.views.problem import Problem
from serve_app.config import AppArgs
from serve_app.errors import SophiaError

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MODEL_FIELDS: Final = ("model", "model_id")


def openai_error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """The error as OpenAI reports it: invalid fields have status 400, and an unknown model 404."""
    field = problem.errors[0].field if problem.errors else None
    status = 400 if problem.status == 422 else problem.status
    code = problem.code
    if field in _MODEL_FIELDS:
        status = 404
        code = "model_not_found"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": problem.detail, "type": kind, "param": field, "code": code, "request_id": problem.request_id}
    return status, {"error": error}


def served_name(args: AppArgs, model: object) -> object:
    """A model's name without the service before it, such as `openai/ace-step`; unchanged if it is served as it stands."""
    if isinstance(model, str) and model not in args.models:
        return model.rpartition("/")[2]
    return model


def do_not_repeat(error: SophiaError) -> None:
    """Tell SDKs that repeat failed requests on their own not to repeat this one, because its song was begun."""
    error.headers = {**error.headers, "x-should-retry": "false"}


@contextmanager
def not_to_repeat() -> Iterator[None]:
    """`do_not_repeat` for every error of the block."""
    try:
        yield
    except SophiaError as error:
        do_not_repeat(error)
        raise


class FinishedAnswer(Response):
    """An answer with a song that is finished. SDKs do not repeat the request if it cannot be sent."""

    def __init__(self, answer: Response) -> None:
        super().__init__(status_code=answer.status_code)
        self.raw_headers = answer.raw_headers
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        with not_to_repeat():
            await self._answer(scope, receive, send)
