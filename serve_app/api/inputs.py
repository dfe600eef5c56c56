"""Routes for inputs: recordings that requests name as their source or reference."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.datastructures import UploadFile

from serve_app import errors
from serve_app.api.auth import Owner
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import UPLOAD, WITH_PARAMETERS, error_responses
from serve_app.api.job_presenter import utc
from serve_app.api.multipart import form_of, is_multipart
from serve_app.api.recording import Recording
from serve_app.api.uploads import chunks_of, keep, new_recording, receive
from serve_app.api.views.inputs import InputList, InputView
from serve_app.errors import InvalidRequest
from serve_app.store.inputs import StoredInput

router = APIRouter(tags=["inputs"])

_PART: Final = "file"
_TEXT_PARTS: Final = 8
_TEXT_BYTES: Final = 4096
"""Parts of text beside the file, which some clients send. They are ignored, and kept in memory meanwhile."""
_BINARY: Final = {"type": "string", "format": "binary"}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "An audio file: wav, flac, mp3, ogg (Vorbis or Opus), aac, m4a, webm, aiff, caf or amr.",
        "content": {
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {_PART: _BINARY}, "required": [_PART]},
                "encoding": {_PART: {"contentType": "audio/*"}},
            },
        },
    }
}

InputId = Annotated[
    str,
    Path(
        pattern="^[0-9a-f]{64}$",
        description="The input's id: the SHA-256 of its file.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    ),
]


@router.post(
    "/v1/inputs",
    status_code=201,
    summary="Upload a recording",
    openapi_extra=_BODY,
    responses={
        200: {"model": InputView, "description": "You have uploaded the same file before"},
        **error_responses(*UPLOAD),
    },
)
async def upload(request: Request, context: ContextDep, owner: Owner, response: Response) -> InputView:
    """Upload an audio file as the body, of any content type, or as the part `file` of a multipart body.

    The whole file is decoded once, so that a file that cannot be used is refused now. The same file has the same id.
    """
    with context.limits.uploads.hold(owner), new_recording(context) as recording:
        await _receive(request, context, recording)
        stored, is_new = await keep(context, recording, owner)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/inputs/{stored.sha256}"
    return _view(stored)


async def _receive(request: Request, context: Context, recording: Recording) -> None:
    if not is_multipart(request):
        await receive(context, recording, request.stream())
        return
    async with form_of(request, max_files=1, max_fields=_TEXT_PARTS, max_part_size=_TEXT_BYTES) as form:
        part = form.get(_PART)
        if not isinstance(part, UploadFile):
            raise InvalidRequest(f"A multipart body must have one file as its part {_PART!r}")
        await receive(context, recording, chunks_of(part))


@router.get("/v1/inputs", summary="List inputs", responses=error_responses(*WITH_PARAMETERS))
async def list_inputs(
    context: ContextDep,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=200, description="Inputs per page.", examples=[50])] = 50,
    cursor: Annotated[
        str | None,
        Query(pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?_[0-9a-f]{64}$", description="`next_cursor` of the previous page."),
    ] = None,
) -> InputList:
    """Your recordings, newest first."""
    before = None
    if cursor is not None:
        created_at, _, sha256 = cursor.partition("_")
        before = (float(created_at), sha256)
    found = await context.threads.run(context.store.inputs.page, owner, before, limit + 1)
    page = found[:limit]
    more = f"{page[-1].created_at!r}_{page[-1].sha256}" if len(found) > limit else None
    return InputList(inputs=[_view(one) for one in page], next_cursor=more)


@router.get(
    "/v1/inputs/{input_id}", summary="Get an input", responses=error_responses(*WITH_PARAMETERS, errors.NotFound)
)
async def get_input(context: ContextDep, owner: Owner, input_id: InputId) -> InputView:
    """What is known about a recording."""
    return _view(await context.threads.run(context.store.inputs.get, owner, input_id))


@router.delete(
    "/v1/inputs/{input_id}",
    status_code=204,
    summary="Delete an input",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound, errors.Conflict, errors.ArtifactsUnavailable),
)
async def delete_input(context: ContextDep, owner: Owner, input_id: InputId) -> None:
    """Delete a recording. One that a queued or running job needs cannot be deleted."""
    # one call, so that the file is deleted even if the caller disconnects in between
    await context.threads.run(_delete, context, owner, input_id)


def _delete(context: Context, owner: str, sha256: str) -> None:
    deleted = context.store.inputs.delete(owner, sha256)
    context.artifacts.delete([deleted.key])


def _view(stored: StoredInput) -> InputView:
    return InputView(
        id=stored.sha256,
        name=f"input:{stored.sha256}",
        bytes=stored.bytes,
        format=stored.format,
        seconds=round(stored.seconds, 6),
        sample_rate=stored.sample_rate,
        channels=stored.channels,
        silent=stored.silent,
        created_at=utc(stored.created_at),
        expires_at=utc(stored.expires_at),
    )
