"""Routes for a job's songs: each file, and all of them in a zip file."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request, Response

from serve_app import errors
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import WITH_PARAMETERS, error_responses
from serve_app.api.file_answer import FILE_RESPONSES, FileStream, answer_file, check_has_songs, check_is_kept
from serve_app.api.file_names import archive_disposition
from serve_app.api.parameters import VisitedJob
from serve_app.api.song_archive import archive_bytes, archive_chunks
from serve_app.jobs import Job
from serve_app.music import MOST_SONGS

router = APIRouter(tags=["jobs"])

Index = Annotated[
    int, Path(ge=0, le=MOST_SONGS - 1, description="Number of the variation or stem, from 0.", examples=[0])
]
ByteRange = Annotated[
    str | None, Header(alias="Range", description="A part of the file (RFC 9110).", examples=["bytes=0-1023"])
]
_RESPONSES: Final = {
    **FILE_RESPONSES,
    **error_responses(
        *WITH_PARAMETERS,
        errors.NotFound,
        errors.AudioExpired,
        errors.Conflict,
        errors.RangeNotSatisfiable,
        errors.ArtifactsUnavailable,
    ),
}
_ZIP: Final = "application/zip"
_ARCHIVE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The zip file", "content": {_ZIP: {"schema": {"type": "string", "format": "binary"}}}},
    **error_responses(
        *WITH_PARAMETERS, errors.NotFound, errors.AudioExpired, errors.Conflict, errors.ArtifactsUnavailable
    ),
}


@router.get(
    "/v1/jobs/{job_id}/audio",
    operation_id="first_file_v1_jobs__job_id__audio_get",
    summary="Download the first file",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head("/v1/jobs/{job_id}/audio", include_in_schema=False)
async def get_first_file(
    request: Request, context: ContextDep, job: VisitedJob, byte_range: ByteRange = None
) -> Response:
    """The file of the first variation."""
    return await answer_file(request, context, check_has_songs(job), 0, byte_range)


@router.get(
    "/v1/jobs/{job_id}/audio/{index}",
    operation_id="file_v1_jobs__job_id__audio__index__get",
    summary="Download a file",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head("/v1/jobs/{job_id}/audio/{index}", include_in_schema=False)
async def get_file(
    request: Request, context: ContextDep, job: VisitedJob, index: Index, byte_range: ByteRange = None
) -> Response:
    """The file of one variation. Supports `Range`, `If-Range` and `If-None-Match`."""
    return await answer_file(request, context, check_has_songs(job), index, byte_range)


@router.get(
    "/v1/jobs/{job_id}/songs.zip",
    summary="Download all files",
    response_class=Response,
    responses=_ARCHIVE_RESPONSES,
)
@router.head("/v1/jobs/{job_id}/songs.zip", include_in_schema=False)
async def get_archive(request: Request, context: ContextDep, job: VisitedJob) -> Response:
    """All files of a job in one zip file, uncompressed and named as they are when they are downloaded one by one."""
    check_is_kept(check_has_songs(job))
    await context.threads.run(_check_files, context, job)
    size = archive_bytes(job)
    _check_size(context, job, size)
    headers = {"Content-Length": str(size), "Content-Disposition": archive_disposition(job)}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=_ZIP)
    room = context.limits.downloads.hold(job.owner, size, request.url.path)
    return FileStream(archive_chunks(job, context.artifacts), room, 200, headers, _ZIP)


def _check_size(context: Context, job: Job, size: int) -> None:
    """Raise Conflict for a zip file that would fill the room for downloads, which always has room for a single file."""
    most = context.args.api.download_bytes_per_key
    if size > most:
        raise errors.Conflict(
            f"The files of job {job.id} together have {size} bytes, and a zip file may have {most} (api.download_bytes_per_key). "
            "Download them one by one: each entry of the job's `audio` has a `url`"
        )


def _check_files(context: Context, job: Job) -> None:
    """Raise NotFound now if a file is missing, since the answer cannot become an error once it has begun."""
    for file in job.audio:
        context.artifacts.size(file.key)
