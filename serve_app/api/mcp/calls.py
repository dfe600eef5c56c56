"""Calls of the MCP server: who makes them, how their progress is reported, and how they fail."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from starlette.requests import Request

from serve_app.api.compat.family import leave_out_none
from serve_app.api.compat.mcp import SESSION, call_key
from serve_app.api.context import Context
from serve_app.errors import SophiaError
from serve_app.jobs import Job, Status

logger = logging.getLogger("ray.serve.sophia")


@dataclass
class Room:
    """What an answer holds of the room for inline audio, until `stack` is closed."""

    stack: ExitStack
    is_used: bool = False

    def hold(self, context: Context, job: Job, size: int) -> None:
        """Raises TooManyRequests."""
        self.stack.enter_context(context.limits.inline_audio.hold(job.owner, size, f"/v1/jobs/{job.id}/audio"))
        self.is_used = True


class Call:
    """One call of a tool or resource, and who makes it."""

    def __init__(self, ctx: ServerRequestContext[Any, Any]) -> None:
        request = ctx.request
        assert isinstance(request, Request)  # noqa: S101 - the transport is HTTP
        self.request = request
        self.context: Context = request.app.state.context
        self.owner: str = request.state.owner
        self.room: Room = request.state.inline_room
        self.key = call_key(request.headers.get(SESSION), ctx.request_id)
        self.is_watched = bool(ctx.meta and "progress_token" in ctx.meta)
        self._session = ctx.session
        self._reported = -1.0

    @property
    def base_url(self) -> str:
        """The address under which the client reached Sophia, without a slash at its end."""
        return str(self.request.base_url).rstrip("/")

    async def report(self, job: Job) -> None:
        """Report a job's progress in percent. A client wants to see it grow."""
        progress = job.progress or {}
        percent = 100.0 if job.status.final else 100 * float(progress.get("fraction", 0))
        if percent <= self._reported:
            return
        self._reported = percent
        stage = progress.get("stage") if job.status is Status.RUNNING else None
        await self._session.report_progress(percent, 100, f"{job.status}: {stage}" if stage else str(job.status))

    async def own_job(self, job_id: UUID) -> Job:
        """The caller's job. Raises NotFound."""
        return await self.context.threads.run(self.context.store.jobs.get, str(job_id), self.owner)


def result(value: dict[str, Any], is_error: bool = False) -> types.CallToolResult:
    """An object, and the same as text for clients that read no objects."""
    text = types.TextContent(text=json.dumps(value, ensure_ascii=False))
    return types.CallToolResult(content=[text], structured_content=value, is_error=is_error)


def refused(error: SophiaError) -> types.CallToolResult:
    """The result of a call that fails, which tells the model what to change."""
    return result(
        leave_out_none({"code": error.code, "message": error.public, "retry_after_s": error.retry_after_s}), True
    )


@contextmanager
def unexpected_errors_hidden() -> Iterator[None]:
    """Log what is a bug, and tell the client no more of it than that."""
    try:
        yield
    except MCPError:
        raise
    except Exception:
        logger.exception("a call of the MCP server failed")
        raise MCPError(
            types.INTERNAL_ERROR, "This is a bug in Sophia. The log has the traceback; please report it"
        ) from None


@contextmanager
def errors_as_mcp() -> Iterator[None]:
    """Raise Sophia's errors as the protocol's, for what is no tool."""
    try:
        yield
    except SophiaError as error:
        code = types.INVALID_PARAMS if error.status < 500 else types.INTERNAL_ERROR
        raise MCPError(code, error.public, {"code": error.code}) from error
