"""Route for a song in one request: POST /v1/music waits for the job and answers with its audio."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from serve_app import errors
from serve_app.api.auth import Owner
from serve_app.api.context import ContextDep
from serve_app.api.error_responses import SUBMISSION, error_responses
from serve_app.api.file_answer import FILE_RESPONSES, answer_file
from serve_app.api.multipart import multipart_body
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.submission_route import SubmissionRoute
from serve_app.api.waiting_calls import finished_job, succeeded
from serve_app.music import MusicRequest

router = APIRouter(tags=["jobs"], route_class=SubmissionRoute)


class SongRequest(MusicRequest):
    """A request for one song, answered with its audio; `variations` is therefore 1."""

    variations: int = Field(
        1, ge=1, le=1, description="Always 1. POST /v1/jobs generates several variations.", examples=[1]
    )


@router.post(
    "/v1/music",
    operation_id="music_v1_music_post",
    summary="Generate a song and answer with it",
    openapi_extra=multipart_body("SongRequest"),
    response_class=Response,
    responses={
        **FILE_RESPONSES,
        **error_responses(
            *SUBMISSION,
            errors.Conflict,
            errors.DeadlineExceeded,
            errors.GenerationError,
            errors.ArtifactsUnavailable,
            errors.ServiceStopping,
        ),
    },
)
async def generate_song(
    body: SongRequest,
    request: Request,
    context: ContextDep,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Like POST /v1/jobs, but the answer is the audio: `curl … -o song.mp3`.

    If the caller disconnects, the job is cancelled after a few seconds, unless the request has an Idempotency-Key to fetch the
    result with later. Until then, the same request continues to wait for the same job.
    """
    ended = await finished_job(request, context, body, owner, idempotency_key)
    return await answer_file(request, context, succeeded(ended), 0)
