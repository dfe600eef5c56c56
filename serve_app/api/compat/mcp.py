"""A server of the Model Context Protocol (MCP, streamable HTTP), with which assistants and editors make songs.

Each POST is served on its own, so that any API process can serve any of them. A call of protocol 2026-07-28 is cancelled by leaving
it. In earlier protocols a POST of its own cancels it, which may reach another process: so `initialize` hands out a session id, and
a session's call has an idempotency key, by which every process finds its job.
"""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family
from serve_app.api.context import Context, ContextDep
from serve_app.api.views.problem import Problem
from serve_app.errors import Conflict
from serve_app.jobs import new_id

SESSION: Final = "mcp-session-id"
"""The header with the id of a session."""

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_LOOKS_S: Final = (0.0, 0.2, 0.8)
"""Pauses before each look for the job of a call to cancel, which may not be in the database yet."""

_INVALID_REQUEST: Final = -32600
_INTERNAL_ERROR: Final = -32603

router = APIRouter(include_in_schema=False)


@router.post("/mcp")
async def exchange(request: Request, context: ContextDep, owner: Owner) -> Response:
    """Serve one JSON-RPC message. The `mcp` package is imported at the first one: that takes 0.6 s and 22 MB."""
    message = _message(await request.body())
    cancelled = _cancelled_call(request, message)
    if cancelled is not None:
        await _cancel(context, owner, cancelled)
    answer_class = await context.threads.run(_answer_class)
    session = new_id() if message.get("method") == "initialize" else None
    return answer_class(context, await request.body(), session)


def _answer_class() -> Callable[[Context, bytes, str | None], Response]:
    from serve_app.api.mcp.server import McpAnswer

    return McpAnswer


def call_key(session: str | None, request_id: object) -> str | None:
    """The idempotency key of a call of a session. None for a call without a session."""
    if session is None or not _SESSION_ID.fullmatch(session) or not isinstance(request_id, str | int):
        return None
    return f"mcp:{session}:{sha256(json.dumps(request_id).encode()).hexdigest()}"


def _message(body: bytes) -> dict[str, Any]:
    """The JSON-RPC message; empty if it is none. The package answers that."""
    with suppress(ValueError, RecursionError):
        message = json.loads(body)
        return message if isinstance(message, dict) else {}
    return {}


def _cancelled_call(request: Request, message: dict[str, Any]) -> str | None:
    """The idempotency key of the call that the message cancels, if it does that."""
    params = message.get("params")
    if message.get("method") != "notifications/cancelled" or not isinstance(params, dict):
        return None
    return call_key(request.headers.get(SESSION), params.get("requestId"))


async def _cancel(context: Context, owner: str, key: str) -> None:
    """Cancel the job of a call, if it has one that has not ended."""
    for pause_s in _LOOKS_S:
        await asyncio.sleep(pause_s)
        job = await context.threads.run(context.store.jobs.of_key, owner, key)
        if job is not None:
            with suppress(Conflict):
                await context.threads.run(context.store.jobs.cancel, job.id, owner)
            return


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    """A JSON-RPC error. It has no id: the message was not read."""
    code = _INVALID_REQUEST if problem.status < 500 else _INTERNAL_ERROR
    error = {"code": code, "message": problem.detail, "data": problem.model_dump(exclude_none=True)}
    return problem.status, {"jsonrpc": "2.0", "id": None, "error": error}


FAMILY: Final = Family(router, ("/mcp",), _error_shape)
