"""Routes for the times at which a job's lyrics are sung."""

import json
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response

from serve_app import errors
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import WITH_PARAMETERS, error_responses
from serve_app.api.file_answer import check_has_songs, check_is_kept, file_of
from serve_app.api.file_names import lyrics_disposition
from serve_app.api.files import Index
from serve_app.api.parameters import OwnJob
from serve_app.api.views.lyrics import LyricsView
from serve_app.jobs import Job, StoredAudio
from serve_app.music import MAX_SEED
from serve_app.music.lyric_times import from_file, to_lrc

router = APIRouter(tags=["jobs"])

LyricsFormat = Annotated[
    Literal["json", "lrc"],
    Query(description="json: lines and their words. lrc: lines only, as players read them.", examples=["lrc"]),
]
_LRC: Final = "text/x-lrc"
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The lines and their times", "content": {_LRC: {"schema": {"type": "string"}}}},
    **error_responses(
        *WITH_PARAMETERS, errors.NotFound, errors.AudioExpired, errors.Conflict, errors.ArtifactsUnavailable
    ),
}


@router.get(
    "/v1/jobs/{job_id}/lyrics",
    operation_id="first_lyrics_v1_jobs__job_id__lyrics_get",
    summary="When the lyrics of the first song are sung",
    response_model=LyricsView,
    responses=_RESPONSES,
)
async def get_first_lyrics(context: ContextDep, job: OwnJob, format: LyricsFormat = "json") -> Response:
    """The lyrics of the first variation, of a job that had `lyrics_timing`."""
    return await context.threads.run(_lyrics, context, job, 0, format)


@router.get(
    "/v1/jobs/{job_id}/lyrics/{index}",
    operation_id="lyrics_v1_jobs__job_id__lyrics__index__get",
    summary="When the lyrics of a song are sung",
    response_model=LyricsView,
    responses=_RESPONSES,
)
async def get_lyrics(context: ContextDep, job: OwnJob, index: Index, format: LyricsFormat = "json") -> Response:
    """The lyrics of one variation, of a job that had `lyrics_timing`."""
    return await context.threads.run(_lyrics, context, job, index, format)


def _lyrics(context: Context, job: Job, index: int, format: str) -> Response:
    """Raises NotFound if the job did not ask for the times; AudioExpired, Conflict and ArtifactsUnavailable as for its audio."""
    check_is_kept(check_has_songs(job))
    file = file_of(job, index)
    if file.lyrics is None:
        raise errors.NotFound(
            f"It is not known when the lyrics of job {job.id} are sung, because its request did not ask for it. To find out, POST "
            f"the job's `request` with {_fields_to_time(job, file)}"
        )
    content = context.artifacts.get(file.lyrics)
    try:
        lines = from_file(content)
    except (ValueError, KeyError, TypeError) as error:
        raise errors.NotFound(f"The file with the times of the lyrics of job {job.id} is damaged") from error
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    if format == "json":
        return Response(content, media_type="application/json", headers=headers)
    headers["Content-Disposition"] = lyrics_disposition(job, file)
    return Response(to_lrc(lines), media_type=_LRC, headers=headers)


def _fields_to_time(job: Job, file: StoredAudio) -> str:
    """The fields that differ in a request for the same song and its times, as JSON without braces."""
    fields: dict[str, Any] = {"lyrics_timing": True}
    if job.request.best_of > 1:  # the song is one of the candidates, which are numbered as variations are
        fields |= {"best_of": 1, "seed": file.seed}
        if job.request.retake_seed is not None:
            fields["retake_seed"] = (job.request.retake_seed + file.seed - (job.request.seed or 0)) % (MAX_SEED + 1)
    return ", ".join(f'"{name}": {json.dumps(value)}' for name, value in fields.items())
