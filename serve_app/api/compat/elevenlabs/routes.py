"""ElevenLabs' music API, for its SDKs: compose, stream, compose with details, and composition plans.

It lies under /elevenlabs, because `POST /v1/music` is also a path of Sophia's own. The SDKs keep a path in their base URL.
"""

import json
from typing import Annotated, Any, Final, NamedTuple, Self, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import model_validator

from serve_app.api.auth import Owner
from serve_app.api.compat.elevenlabs.composition_plans import (
    Body,
    CompositionPlan,
    Milliseconds,
    not_offered,
    plan_view,
)
from serve_app.api.compat.family import Family, leave_out_none
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import wrong_field
from serve_app.api.file_answer import FileStream, answer_file, check_is_kept, joined
from serve_app.api.file_names import file_name
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.plan_calls import written_song
from serve_app.api.planning import has_planner
from serve_app.api.submission import Origin
from serve_app.api.views.problem import Problem
from serve_app.api.waiting_calls import finished_job, succeeded
from serve_app.config import AppArgs
from serve_app.jobs import Job
from serve_app.music import MEDIA_TYPES, Format
from serve_app.music.lyric_text import has_words
from serve_app.music.lyric_times import from_file
from serve_app.music.plan import Plan
from serve_app.music.song_length import INSTRUMENTAL_S
from serve_app.plurals import alternatives

_MODELS: Final = ("music_v1", "music_v2", "music_v2_5")
"""ElevenLabs' models, which stand for the default model."""

_CODEC_OUTPUTS: Final[dict[str, Format]] = {
    **dict.fromkeys(("mp3_22050_32", "mp3_24000_48"), "mp3"),
    **dict.fromkeys((f"mp3_44100_{rate}" for rate in (32, 64, 96, 128, 192)), "mp3"),
    **dict.fromkeys((f"mp3_48000_{rate}" for rate in (128, 192, 240, 320)), "mp3"),
    **dict.fromkeys((f"opus_48000_{rate}" for rate in (32, 64, 96, 128, 192)), "opus"),
}
"""ElevenLabs' output formats that can be served, at a rate of Sophia's choice."""

_OUTPUTS: Final[dict[str, Format]] = {"auto": "mp3", **_CODEC_OUTPUTS, **{name: name for name in get_args(Format)}}

_MOST_WARNINGS: Final = 4000
"""The most characters of the header with warnings: servers and clients limit a header to 8,000 or so."""

_INSTRUMENTAL: Final = "[Instrumental]"
_STATUSES: Final = {"unauthorized": "invalid_api_key"}
"""ElevenLabs' names of errors, where clients know them."""


class ComposeRequest(Body):
    """The body of the routes that answer with a song."""

    prompt: str | None = None
    composition_plan: CompositionPlan | None = None
    music_length_ms: Milliseconds | None = None
    model_id: str | None = None
    seed: int | None = None
    force_instrumental: bool | None = None
    finetune_id: str | None = None
    respect_sections_durations: bool | None = None
    """Has no effect: a plan's sections are as long as the model makes them."""
    store_for_inpainting: bool | None = None
    """Has no effect: songs are kept anyway."""
    sign_with_c2pa: Annotated[bool | None, not_offered("Sophia does not sign songs")] = None
    with_timestamps: bool | None = None
    with_waveform_visual: Annotated[bool | None, not_offered("Sophia draws no waveforms")] = None

    @model_validator(mode="after")
    def _is_from_prompt_or_plan(self) -> Self:
        if (self.prompt is None) == (self.composition_plan is None):
            raise ValueError("must have either prompt or composition_plan")
        if self.composition_plan is not None and (self.music_length_ms or self.force_instrumental):
            raise ValueError("must have music_length_ms and force_instrumental with a prompt only")
        return self

    def translated(self, args: AppArgs, output_format: str) -> Translated:
        """The song that is asked for. Raises InvalidRequest."""
        decided: dict[str, tuple[str, Any]] = {"format": ("output_format", _OUTPUTS[output_format])}
        plan = self.composition_plan
        if plan is None:
            seconds = self.music_length_ms / 1000 if self.music_length_ms else "auto"
            decided["prompt"] = ("prompt", self.prompt)
            decided["duration"] = ("music_length_ms", seconds)
            decided["lyrics"] = ("force_instrumental", _INSTRUMENTAL if self.force_instrumental else "")
        else:
            decided["prompt"] = ("composition_plan", ", ".join(plan.styles))
            decided["duration"] = ("composition_plan", plan.duration_ms / 1000)
            decided["lyrics"] = ("composition_plan", plan.as_lyrics())
        if self.with_timestamps and has_words(decided["lyrics"][1]):
            decided["lyrics_timing"] = ("with_timestamps", True)
        if self.finetune_id:
            decided["lora"] = ("finetune_id", self.finetune_id)
        if self.seed is not None:
            decided["seed"] = ("seed", self.seed)
        decided["model"] = ("model_id", _model(args, self.model_id))
        return translated({}, decided=decided)

    def warnings(self, output_format: str) -> tuple[str, ...]:
        """What of the request has no effect."""
        found = []
        if output_format in _CODEC_OUTPUTS:
            kind = "mp3 with a variable bit rate" if output_format.startswith("mp3") else "opus"
            found.append(f"output_format {output_format} is {kind} at 48 kHz.")
        if self.composition_plan is not None:
            found += self.composition_plan.warnings()
        return tuple(found)


class PlanRequest(Body):
    """The body of the route that answers with a composition plan."""

    prompt: str
    music_length_ms: Milliseconds | None = None
    source_composition_plan: Annotated[Any, not_offered("Sophia plans from a prompt alone")] = None
    model_id: str | None = None

    def translated(self, args: AppArgs) -> Translated:
        """The song that is to be planned. Raises InvalidRequest."""
        decided: dict[str, tuple[str, Any]] = {
            "prompt": ("prompt", self.prompt),
            "model": ("model_id", _model(args, self.model_id)),
        }
        if self.music_length_ms is not None:
            decided["duration"] = ("music_length_ms", self.music_length_ms / 1000)
        return translated({}, decided=decided)


def _model(args: AppArgs, model_id: str | None) -> str | None:
    return args.default_model if model_id in _MODELS and model_id not in args.models else model_id


def _check_logging(enable_logging: bool = True) -> None:
    """Raise InvalidRequest for `enable_logging=false`, with which ElevenLabs keeps nothing of a request."""
    if not enable_logging:
        raise wrong_field(
            "enable_logging",
            "false",
            "must be left out: Sophia keeps songs as long as its retention says. DELETE /v1/jobs/{song-id} deletes one",
        )


def _output_format(output_format: Annotated[str, Query()] = "auto") -> str:
    if output_format not in _OUTPUTS:
        raise wrong_field("output_format", output_format, f"must be {alternatives(_OUTPUTS)}")
    return output_format


_Output = Annotated[str, Depends(_output_format)]

router = APIRouter(prefix="/elevenlabs/v1/music", include_in_schema=False, dependencies=[Depends(_check_logging)])


class _Composed(NamedTuple):
    """What was asked for, and the job that has made the song."""

    body: ComposeRequest
    job: Job


async def _composed(
    *,
    body: ComposeRequest,
    request: Request,
    context: ContextDep,
    owner: Owner,
    output_format: _Output,
    idempotency_key: IdempotencyKey = None,
) -> _Composed:
    """Wait for the song. Raises what `finished_job` and `succeeded` raise."""
    asked = body.translated(context.args, output_format)
    origin = Origin("elevenlabs", body.warnings(output_format))
    with asked.errors_named_as_given():
        return _Composed(
            body, succeeded(await finished_job(request, context, asked.song, owner, idempotency_key, origin=origin))
        )


_Song = Annotated[_Composed, Depends(_composed)]


@router.post("")
@router.post("/stream")
async def compose(request: Request, context: ContextDep, song: _Song) -> Response:
    """A song. It is complete before its first byte is sent, also by /stream."""
    answer = await answer_file(request, context, song.job, 0)
    answer.headers.update(_headers(song.job))
    return answer


@router.post("/detailed")
async def compose_with_details(context: ContextDep, song: _Song) -> Response:
    """A song and what is known about it, in a multipart body that the SDKs read line by line."""
    job = song.job
    check_is_kept(job)
    head = _multipart_head(job, await context.threads.run(_details, context, song.body, job))
    file = job.audio[0]
    chunks = context.artifacts.stream(file.key, 0, file.bytes)
    first = await anext(chunks)  # so that a missing file gets an error answer instead of a truncated body
    room = context.limits.downloads.hold(job.owner, file.bytes, f"/v1/jobs/{job.id}/audio/0")
    headers = {**_headers(job), "Content-Length": str(len(head) + file.bytes)}
    return FileStream(joined(head + first, chunks), room, 200, headers, f"multipart/mixed; boundary={_boundary(job)}")


@router.post("/plan")
async def plan(body: PlanRequest, request: Request, context: ContextDep, owner: Owner) -> dict[str, Any]:
    """A composition plan that the model's planner writes; without one, an instrumental with the prompt as its style."""
    asked = body.translated(context.args)
    song = asked.song
    planned = Plan(song.prompt, duration=song.duration if body.music_length_ms else None)
    served = context.args.models.get(song.model or context.args.default_model or "")
    if served is None or has_planner(served):
        with asked.errors_named_as_given():
            planned = await written_song(request, context, owner, "sample", song)
    details = [f"{planned.bpm} bpm" if planned.bpm else "", planned.keyscale or ""]
    styles = [planned.caption, *filter(None, details)]
    return plan_view(body.model_id, styles, planned.lyrics, planned.duration or INSTRUMENTAL_S)


def _headers(job: Job) -> dict[str, str]:
    """`song-id` is the job's id. `X-Warnings` has, as a JSON list, what has no effect, as far as a header may be that long."""
    warnings = list(job.warnings)
    while len(json.dumps(warnings)) > _MOST_WARNINGS:
        warnings.pop()
    return leave_out_none({"song-id": job.id, "X-Warnings": json.dumps(warnings) if warnings else None})


def _details(context: Context, body: ComposeRequest, job: Job) -> dict[str, Any]:
    """The JSON of a song's details. Blocks."""
    song = job.request
    file = job.audio[0]
    sung = has_words(song.lyrics)
    plan = body.composition_plan
    details: dict[str, Any] = {
        "composition_plan": plan.model_dump(exclude_none=True, exclude_unset=True)
        if plan
        else plan_view(body.model_id, [song.prompt], song.lyrics, file.seconds),
        "song_metadata": {
            "title": song.title,
            "description": song.prompt,
            "genres": [],
            "languages": [song.vocal_language] if sung else [],
            "is_explicit": None,
        },
    }
    if body.with_timestamps:
        details["words_timestamps"] = _words(context.artifacts.get(file.lyrics)) if file.lyrics else []
    return details


def _words(lyrics: bytes) -> list[dict[str, Any]]:
    return [
        {"word": word.text, "start_ms": round(1000 * word.start), "end_ms": round(1000 * word.end)}
        for line in from_file(lyrics)
        for word in line.words
    ]


def _boundary(job: Job) -> str:
    return f"sophia-{job.id}"


def _multipart_head(job: Job, details: dict[str, Any]) -> bytes:
    """The multipart body up to the audio, which ends it: the SDKs count a closing boundary as audio."""
    file = job.audio[0]
    name = file_name(job, file)
    lines = [
        f"--{_boundary(job)}",
        "Content-Type: application/json",
        "",
        json.dumps(details, ensure_ascii=False),
        f"--{_boundary(job)}",
        f"Content-Type: {MEDIA_TYPES[file.format]}",
        f'Content-Disposition: attachment; filename="{name}"',
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = _STATUSES.get(problem.code, problem.code)
    detail = {"status": status, "message": problem.detail, "request_id": problem.request_id}
    return problem.status, {"detail": detail}


FAMILY: Final = Family(router, ("/elevenlabs/",), _error_shape)
