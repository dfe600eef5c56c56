"""Jobs and their songs as the MCP server shows them."""

import base64
from typing import Any

import mcp_types as types

from serve_app.api.context import Context
from serve_app.api.file_names import file_name
from serve_app.api.inline_audio import base64_bytes
from serve_app.api.job_presenter import JobPresenter
from serve_app.api.mcp.arguments import MOST_INLINE_BYTES
from serve_app.api.mcp.calls import Call, result
from serve_app.api.signed_links import link_signer
from serve_app.jobs import Job, Status
from serve_app.music import MEDIA_TYPES


async def shown(call: Call, job: Job, inline_audio: bool, is_error: bool = False) -> types.CallToolResult:
    """A job with links to its songs and, if wished and short, their audio."""
    view = await call.context.threads.run(JobPresenter(call.context).view, job)
    shown = view.model_dump(
        mode="json",
        exclude_none=True,
        include={"id", "state", "model", "position", "eta_s", "waiting_for", "progress", "warnings", "error"},
    )
    shown["request"] = job.request.model_dump(mode="json", exclude_defaults=True)
    has_songs = job.status is Status.SUCCEEDED and job.audio_gone_at is None
    if has_songs:
        signer = await link_signer(call.context, call.owner)
        shown["links_expire_at"] = signer.expires_at if signer.digest else None
        shown["songs"] = [
            {
                "url": call.base_url + signer.link(f"/v1/jobs/{job.id}/audio/{number}"),
                "resource": _uri(job, number),
                "format": file.format,
                "seconds": file.seconds,
                "seed": file.seed,
            }
            for number, file in enumerate(job.audio)
        ]
    answer = result(shown, is_error)
    if has_songs:
        answer.content += [types.ResourceLink(**resource_of(job, number)) for number in range(len(job.audio))]
        answer.content += await _inline(call, job) if inline_audio else []
    return answer


async def _inline(call: Call, job: Job) -> list[types.ContentBlock]:
    """The audio of a job's songs, if it is short. Raises TooManyRequests."""
    size = sum(base64_bytes(file.bytes) for file in job.audio)
    if size > MOST_INLINE_BYTES:
        text = (
            f"The audio is too large to be inline ({size} bytes as base64, at most {MOST_INLINE_BYTES}): use the links."
        )
        return [types.TextContent(text=text)]
    call.room.hold(call.context, job, size)
    return [
        types.AudioContent(data=await audio_text(call.context, file.key), mime_type=MEDIA_TYPES[file.format])
        for file in job.audio
    ]


async def audio_text(context: Context, key: str) -> str:
    """A file of the audio store as base64. Raises NotFound and ArtifactsUnavailable."""
    return base64.b64encode(await context.threads.run(context.artifacts.get, key)).decode()


def _uri(job: Job, number: int) -> str:
    return f"sophia://songs/{job.id}/{number}"


def resource_of(job: Job, number: int) -> dict[str, Any]:
    """The fields of a song as a resource."""
    file = job.audio[number]
    return {
        "uri": _uri(job, number),
        "name": file_name(job, file),
        "description": job.request.prompt[:200],
        "mime_type": MEDIA_TYPES[file.format],
        "size": file.bytes,
    }
