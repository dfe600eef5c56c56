"""Route for the audio codes of a job's songs."""

from fastapi import APIRouter

from serve_app import errors
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import WITH_PARAMETERS, error_responses
from serve_app.api.file_answer import check_has_songs, check_is_kept
from serve_app.api.parameters import OwnJob
from serve_app.api.views.codes import JobCodes, SongCodes
from serve_app.artifacts.latents import codes_from_file
from serve_app.errors import NotFound
from serve_app.jobs import Job, StoredAudio
from serve_app.music.spellings import audio_codes_text

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/jobs/{job_id}/codes",
    summary="Get the audio codes",
    responses=error_responses(
        *WITH_PARAMETERS, errors.NotFound, errors.AudioExpired, errors.Conflict, errors.ArtifactsUnavailable
    ),
)
async def get_codes(context: ContextDep, job: OwnJob) -> JobCodes:
    """The audio codes of each song. A request with one of them as its `audio_codes` makes a cover of that song.

    There are none if the request or the operator has switched `keep_latents` off, or if the model has no audio tokenizer.
    """
    check_is_kept(check_has_songs(job))
    songs = await context.threads.run(_codes, context, job)
    return JobCodes(songs=songs)


def _codes(context: Context, job: Job) -> list[SongCodes]:
    return [_codes_of(context, job, number, file) for number, file in enumerate(job.audio)]


def _codes_of(context: Context, job: Job, number: int, file: StoredAudio) -> SongCodes:
    codes = codes_from_file(context.artifacts.get(file.latents)) if file.latents else None
    if codes is None:
        raise NotFound(
            f"Song {number} of job {job.id} has no audio codes. They are kept with its latents (keep_latents), if its model has an "
            "audio tokenizer"
        )
    return SongCodes(
        url=f"/v1/jobs/{job.id}/audio/{number}",
        seed=file.seed,
        track=file.track,
        seconds=file.seconds,
        audio_codes=audio_codes_text(codes),
    )
