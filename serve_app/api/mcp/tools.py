"""The tools of the MCP server."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from serve_app.api.compat.translation import translated
from serve_app.api.field_errors import wrong_field
from serve_app.api.file_answer import check_has_songs
from serve_app.api.mcp.arguments import (
    BLIND_WAIT_S,
    WATCHED_WAIT_S,
    Arguments,
    Extension,
    Listing,
    Look,
    SongId,
    Waiting,
    read,
    schema_of,
    split,
)
from serve_app.api.mcp.calls import Call, refused, result, unexpected_errors_hidden
from serve_app.api.mcp.songs import shown
from serve_app.api.models import models_of
from serve_app.api.repeated_calls import WaitingCall
from serve_app.api.submission import Origin, submit
from serve_app.api.waiting_calls import job_of_call
from serve_app.errors import Conflict, NotFound, SophiaError
from serve_app.jobs import Job, Status
from serve_app.music.spellings import our_name
from serve_app.plurals import alternatives

_ORIGIN: Final = Origin("mcp")

_OFFERED: Final = (
    "prompt", "lyrics", "title", "duration", "variations", "seed", "format", "bpm", "keyscale", "timesignature", "vocal_language",
    "steps", "guidance_scale", "thinking", "model", "task_type", "source", "reference", "voice", "cover_strength", "repaint_start",
    "repaint_end",
)  # fmt: skip
"""The fields that the schema of generate_music describes. A call may have every other field of a request, too."""

KEPT: Final = (
    "prompt", "lyrics", "model", "format", "bpm", "keyscale", "timesignature", "vocal_language", "lora", "voice", "reference",
)  # fmt: skip
"""The fields of a song that a longer version of it keeps."""


async def _generate_music(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    waiting, fields = split(Waiting, given)
    return await _made(call, waiting, fields)


async def _extend_song(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    extension, fields = split(Extension, given)
    if not extension.after_s and not extension.before_s:
        raise wrong_field("after_s", "0", "give after_s, before_s or both: how many seconds to add")
    name = extension.name
    earlier = check_has_songs(await call.own_job(UUID(name.job)))
    kept = earlier.request.model_dump(mode="json", include=set(KEPT), exclude_defaults=True)
    longer = {
        **kept,
        "task_type": "repaint",
        "source": f"job:{name.job}/{name.number}",
        "extend_before": extension.before_s,
        "extend_after": extension.after_s,
    }
    given_names = {our_name(field) or field for field in fields}
    return await _made(call, extension, {name: longer[name] for name in longer if name not in given_names} | fields)


async def _made(call: Call, waiting: Waiting, fields: dict[str, Any]) -> types.CallToolResult:
    """Make a song and answer with it, or with its job if it takes too long."""
    wait_s = waiting.wait_s
    if wait_s is None:
        wait_s = WATCHED_WAIT_S if call.is_watched else BLIND_WAIT_S
    asked = translated(fields)

    async def submission(waiting_call: WaitingCall | None = None) -> tuple[Job, bool]:
        return await submit(call.context, asked.song, call.owner, call.key, origin=_ORIGIN, call=waiting_call)

    job: Job | None
    with asked.errors_named_as_given():
        if wait_s == 0:
            job, _ = await submission()
        else:
            waited = job_of_call(None, call.context, call.owner, submission, wait_s, on_change=call.report)
            job = await _in_own_task(waited)
    if job is None:
        raise Conflict("The job was deleted before it had ended")
    return await shown(
        call, job, waiting.inline_audio, is_error=job.status.final and job.status is not Status.SUCCEEDED
    )


_TASKS: Final[set[asyncio.Task[Any]]] = set()
"""Keeps the tasks of cancelled calls until they have ended."""


async def _in_own_task(work: Coroutine[Any, Any, Job | None]) -> Job | None:
    """What a coroutine returns. If the call is cancelled, it is cancelled once, and can still tell the database.

    Where the `mcp` package cancels a call, everything that it awaits is cancelled again and again.
    """
    task = asyncio.create_task(work)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        raise


async def _get_song(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    look = read(Look, given)
    job: Job | None = await call.own_job(look.id)
    if look.wait_s and job is not None:
        with call.context.limits.waits.hold(call.owner):
            job = await call.context.watcher.finished(job, look.wait_s, call.report)
    if job is None:
        raise NotFound(f"Job {look.id} was deleted")
    return await shown(call, job, look.inline_audio)


async def _list_songs(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    listing = read(Listing, given)
    found = await call.context.threads.run(
        call.context.store.jobs.page,
        owner=call.owner,
        states=(listing.state,) if listing.state else (),
        before=str(listing.cursor) if listing.cursor else None,
        limit=listing.limit + 1,  # the extra job shows whether there is another page
    )
    page = found[: listing.limit]
    listed = [
        {
            "id": job.id,
            "state": str(job.status),
            "model": job.model,
            "prompt": job.request.prompt,
            "songs": 0 if job.audio_gone_at else len(job.audio),
        }
        for job in page
    ]
    cursor = page[-1].id if len(found) > listing.limit else None
    return result({"jobs": listed, "next_cursor": cursor})


async def _cancel_song(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    job_id = str(read(SongId, given).id)
    job = await call.context.threads.run(call.context.store.jobs.cancel, job_id, call.owner)
    return await shown(call, job, inline_audio=False)


async def _list_models(call: Call, given: dict[str, Any]) -> types.CallToolResult:
    read(Arguments, given)
    models = await call.context.threads.run(models_of, call.context)
    return result(models.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool as it is listed, and what runs it."""

    listed: types.Tool
    run: Callable[[Call, dict[str, Any]], Awaitable[types.CallToolResult]]


def _tool(
    name: str,
    run: Callable[[Call, dict[str, Any]], Awaitable[types.CallToolResult]],
    description: str,
    schema: dict[str, Any],
    *,
    reads: bool = False,
) -> _Tool:
    hints = types.ToolAnnotations(read_only_hint=reads, destructive_hint=name == "cancel_song", open_world_hint=False)
    return _Tool(types.Tool(name=name, description=description, input_schema=schema, annotations=hints), run)


TOOLS: Final[Mapping[str, _Tool]] = {
    tool.listed.name: tool
    for tool in (
        _tool(
            "generate_music",
            _generate_music,
            "Make a song from a description of the music and, if wished, lyrics. Answers with links to the finished files. Every "
            "field of POST /v1/jobs is accepted, also those that are not listed here.",
            schema_of(Waiting, _OFFERED, required=("prompt",)),
        ),
        _tool(
            "extend_song",
            _extend_song,
            "Make a longer version of a song of yours: it goes on behind its end or begins earlier. Prompt, lyrics, key, tempo and "
            "the like are the earlier song's unless given.",
            schema_of(Extension, ("prompt", "lyrics", "seed", "format")),
        ),
        _tool(
            "get_song",
            _get_song,
            "The state of a job, its progress, and links to its songs once they are finished. Can wait for the end.",
            schema_of(Look),
            reads=True,
        ),
        _tool("list_songs", _list_songs, "Your jobs, newest first.", schema_of(Listing), reads=True),
        _tool("cancel_song", _cancel_song, "Cancel a job that is queued or running.", schema_of(SongId)),
        _tool(
            "list_models", _list_models, "The models, and what each of them can do.", schema_of(Arguments), reads=True
        ),
    )
}


async def list_tools(_: ServerRequestContext[Any], __: object) -> types.ListToolsResult:
    """All tools."""
    return types.ListToolsResult(tools=[tool.listed for tool in TOOLS.values()])


async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    """Run a tool. What Sophia refuses is in the result, where the assistant reads it. Raises MCPError for an unknown tool."""
    tool = TOOLS.get(params.name)
    if tool is None:
        raise MCPError(types.INVALID_PARAMS, f"There is no tool {params.name[:100]!r}. Use {alternatives(TOOLS)}")
    with unexpected_errors_hidden():
        try:
            return await tool.run(Call(ctx), params.arguments or {})
        except SophiaError as error:
            return refused(error)
