"""The envelope around every answer of ACE-Step's server."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi.responses import JSONResponse

from serve_app.api.compat.acestep.fields import Ignored
from serve_app.api.views.problem import Problem

_STATUSES: Final[Mapping[int, int]] = {410: 404, 422: 400}
"""The error statuses of ACE-Step's server where Sophia has more precise ones."""


def enveloped(data: Any, ignored: Sequence[Ignored] = ()) -> dict[str, Any]:
    """An answer. `ignored` is what the client asked for and does not get."""
    extra = {"ignored": [one._asdict() for one in ignored]} if ignored else None
    return {"data": data, "code": 200, "error": None, "timestamp": _now_ms(), "extra": extra}


def refused(status: int, message: str, code: str, request_id: str = "") -> dict[str, Any]:
    """The body of an error. Some clients read its text in `error`, some in `detail`; `extra` has Sophia's own code."""
    return {
        "data": None,
        "code": status,
        "error": message,
        "detail": message,
        "timestamp": _now_ms(),
        "extra": {"code": code, "request_id": request_id},
    }


def without_planner(model: str) -> JSONResponse:
    """The answer to a call that needs a planner, as of ACE-Step's server without a language model."""
    message = (
        f"No language model is loaded: {model!r} has no planner. An operator adds one under models.{model}.planner"
    )
    return JSONResponse(refused(503, message, "no_planner"), 503)


def error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    """See `Family.error_shape`."""
    status = _STATUSES.get(problem.status, problem.status)
    return status, refused(status, problem.detail, problem.code, problem.request_id)


def _now_ms() -> int:
    return round(1000 * time.time())
