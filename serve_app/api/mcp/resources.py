"""Songs as resources of the MCP server."""

import re
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext

from serve_app.api.file_answer import check_has_songs, check_is_kept, file_of
from serve_app.api.inline_audio import base64_bytes
from serve_app.api.mcp.arguments import PAGE, Listing, SongId, read
from serve_app.api.mcp.calls import Call, errors_as_mcp, unexpected_errors_hidden
from serve_app.api.mcp.songs import audio_text, resource_of
from serve_app.errors import Conflict, NotFound
from serve_app.jobs import Status
from serve_app.music import MEDIA_TYPES

_MOST_BYTES: Final = 10_000_000
"""The most bytes of base64 text of a resource."""

_RESOURCE: Final = re.compile(r"sophia://songs/([0-9a-f-]{36})/([0-9]{1,2})")


async def list_resources(
    ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
) -> types.ListResourcesResult:
    """The caller's finished songs, newest first. Raises MCPError."""
    with unexpected_errors_hidden(), errors_as_mcp():
        call = Call(ctx)
        cursor = read(Listing, {"cursor": params.cursor if params else None}).cursor
        found = await call.context.threads.run(
            call.context.store.jobs.page,
            owner=call.owner,
            states=(Status.SUCCEEDED,),
            before=str(cursor) if cursor else None,
            limit=PAGE + 1,
        )
    page = found[:PAGE]
    songs = [resource_of(job, number) for job in page if job.audio_gone_at is None for number in range(len(job.audio))]
    return types.ListResourcesResult(
        resources=[types.Resource(**song) for song in songs],
        next_cursor=page[-1].id if len(found) > PAGE else None,
    )


async def list_templates(_: ServerRequestContext[Any], __: object) -> types.ListResourceTemplatesResult:
    """The address of every song."""
    template = types.ResourceTemplate(
        uri_template="sophia://songs/{id}/{number}",
        name="song",
        description="The file of song {number}, from 0, of the job {id}.",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(
    ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    """The file of a song. Raises MCPError."""
    with unexpected_errors_hidden(), errors_as_mcp():
        call = Call(ctx)
        found = _RESOURCE.fullmatch(str(params.uri))
        if found is None:
            raise NotFound(f"There is no resource {str(params.uri)[:100]}. Songs are sophia://songs/ID/NUMBER")
        job = await call.own_job(read(SongId, {"id": found[1]}).id)
        check_is_kept(check_has_songs(job))
        file = file_of(job, int(found[2]))
        size = base64_bytes(file.bytes)
        if size > _MOST_BYTES:
            raise Conflict(
                f"The song has {size} bytes as base64, and a resource may have {_MOST_BYTES}. get_song returns a link to it"
            )
        call.room.hold(call.context, job, size)
        blob = await audio_text(call.context, file.key)
    content = types.BlobResourceContents(uri=params.uri, mime_type=MEDIA_TYPES[file.format], blob=blob)
    return types.ReadResourceResult(contents=[content])
