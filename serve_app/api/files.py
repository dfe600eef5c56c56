"""Routes for a job's audio files."""

from typing import Annotated, Final

from fastapi import APIRouter, Header, Path, Request, Response

from serve_app import errors
from serve_app.api.context import ContextDep
from serve_app.api.error_responses import WITH_PARAMETERS, error_responses
from serve_app.api.file_answer import FILE_RESPONSES, answer_file, check_has_audio
from serve_app.api.parameters import OwnJob

router = APIRouter(tags=["jobs"])

Index = Annotated[int, Path(ge=0, le=7, description="Number of the variation, from 0.", examples=[0])]
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


@router.get(
    "/v1/jobs/{job_id}/audio",
    operation_id="first_file_v1_jobs__job_id__audio_get",
    summary="Download the first file",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head("/v1/jobs/{job_id}/audio", include_in_schema=False)
async def get_first_file(request: Request, context: ContextDep, job: OwnJob, byte_range: ByteRange = None) -> Response:
    """The file of the first variation."""
    return await answer_file(request, context, check_has_audio(job), 0, byte_range)


@router.get(
    "/v1/jobs/{job_id}/audio/{index}",
    operation_id="file_v1_jobs__job_id__audio__index__get",
    summary="Download a file",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head("/v1/jobs/{job_id}/audio/{index}", include_in_schema=False)
async def get_file(
    request: Request, context: ContextDep, job: OwnJob, index: Index, byte_range: ByteRange = None
) -> Response:
    """The file of one variation. Supports `Range`, `If-Range` and `If-None-Match`."""
    return await answer_file(request, context, check_has_audio(job), index, byte_range)
