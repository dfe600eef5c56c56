"""ElevenLabs' music API, for its SDKs: compose, stream, compose with details, and composition plans.

It lies under /elevenlabs, because `POST /v1/music` is also a path of Sophia's own. The SDKs keep a path in their base URL.
"""

import json
import re
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate, pairwise
from math import ceil
from typing import Annotated, Any, Final, NamedTuple, Self, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family, leave_out_none
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.fetching import wrong_field
from serve_app.api.file_answer import FileStream, answer_file, check_is_kept
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
from serve_app.music.song_length import INSTRUMENTAL_S, timed_sections
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

_LONGEST_MS: Final = 600_000
_SHORTEST_SECTION_MS: Final = 3000
_LONGEST_SECTION_MS: Final = 120_000
"""The longest section of an instrumental that Sophia plans: ElevenLabs takes no longer one."""

_INSTRUMENTAL: Final = "[Instrumental]"
_STATUSES: Final = {"unauthorized": "invalid_api_key"}
"""ElevenLabs' names of errors, where clients know them."""

_DIRECTION: Final = re.compile(r"\{([^{}\n]*)\}")
_LEADING_TAG: Final = re.compile(r"\s*\[([^\[\]\n]*)\]")


def _not_offered(why: str) -> AfterValidator:
    """Refuses every value that asks for something that Sophia does not have."""

    def refuse(value: Any) -> Any:
        if value:
            raise ValueError(f"must be left out: {why}")
        return value

    return AfterValidator(refuse)


_Words = Annotated[str, StringConstraints(pattern=r"^[^\[\]\r\n\x00]*$")]
"""A text that can stand inside a section tag."""
_Duration = Annotated[int, Field(ge=_SHORTEST_SECTION_MS, le=_LONGEST_MS)]
_NoParts = Annotated[Any, _not_offered("Sophia cannot make a song from parts of another one here; POST /v1/jobs can")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Section(_Body):
    """A section of a plan for music_v1."""

    section_name: _Words = Field(min_length=1, max_length=100)
    positive_local_styles: list[_Words] = []
    negative_local_styles: list[_Words] = []
    duration_ms: _Duration
    lines: list[str] = []
    source_from: _NoParts = None

    def as_lyrics(self) -> str:
        """The section's tag, with its styles, and its lines."""
        return "\n".join([_tag(self.section_name, self.positive_local_styles), *self.lines])


class _Chunk(_Body):
    """A section of a plan for music_v2."""

    text: str
    duration_ms: _Duration
    positive_styles: list[_Words] = []
    negative_styles: list[_Words] | None = None
    context_adherence: str | None = None
    conditioning_ref: _NoParts = None
    condition_strength: Any = None

    def as_lyrics(self, known_styles: Sequence[str]) -> str:
        """The text with its directions as tags, and with the styles that are not those of the whole song in its first tag."""
        styles = [style for style in self.positive_styles if style not in known_styles]
        text = _DIRECTION.sub(r"[\1]", self.text)
        tag = _LEADING_TAG.match(text)
        if not styles:
            return text
        if tag is None:
            return f"{_tag('', styles)}\n{text}"
        return _tag(tag[1], styles) + text[tag.end() :]


class _CompositionPlan(_Body):
    """What a song consists of: sections as of music_v1, or chunks as of music_v2."""

    positive_global_styles: list[str] = []
    negative_global_styles: list[str] = []
    sections: list[_Section] = []
    chunks: list[_Chunk] = []

    @model_validator(mode="after")
    def _is_one_song(self) -> Self:
        if bool(self.sections) == bool(self.chunks):
            raise ValueError("must have either sections or chunks")
        if not any(style.strip() for style in self.styles):
            field = "positive_global_styles" if self.sections else "positive_styles in its first chunk"
            raise ValueError(f"must have {field}, which say what the music is like")
        if self.duration_ms > _LONGEST_MS:
            raise ValueError(f"must be {_LONGEST_MS} ms long at most, but is {self.duration_ms} ms long")
        return self

    @property
    def styles(self) -> list[str]:
        """The styles of the whole song."""
        return self.positive_global_styles or (self.chunks[0].positive_styles if self.chunks else [])

    @property
    def duration_ms(self) -> int:
        """The length of the song."""
        return sum(section.duration_ms for section in self.sections) + sum(chunk.duration_ms for chunk in self.chunks)

    def as_lyrics(self) -> str:
        """The lyrics of the whole song, with section tags."""
        chunks = [chunk.as_lyrics(self.styles) for chunk in self.chunks]
        return "\n\n".join([*(section.as_lyrics() for section in self.sections), *chunks])

    def warnings(self) -> list[str]:
        """What of the plan has no effect."""
        negative = [
            *self.negative_global_styles,
            *(style for section in self.sections for style in section.negative_local_styles),
            *(style for chunk in self.chunks for style in chunk.negative_styles or ()),
        ]
        found = []
        if len(self.sections) + len(self.chunks) > 1:
            found.append("duration_ms of a section is ignored: the song is as long as all of them together.")
        if negative:
            found.append("negative styles are ignored: the model knows no styles to avoid.")
        if any(chunk.context_adherence or chunk.condition_strength for chunk in self.chunks):
            found.append("context_adherence and condition_strength are ignored: the song is made as a whole.")
        return found


class ComposeRequest(_Body):
    """The body of the routes that answer with a song."""

    prompt: str | None = None
    composition_plan: _CompositionPlan | None = None
    music_length_ms: Annotated[int, Field(ge=_SHORTEST_SECTION_MS, le=_LONGEST_MS)] | None = None
    model_id: str | None = None
    seed: int | None = None
    force_instrumental: bool | None = None
    finetune_id: str | None = None
    respect_sections_durations: bool | None = None
    """Has no effect: a plan's sections are as long as the model makes them."""
    store_for_inpainting: bool | None = None
    """Has no effect: songs are kept anyway."""
    sign_with_c2pa: Annotated[bool | None, _not_offered("Sophia does not sign songs")] = None
    with_timestamps: bool | None = None
    with_waveform_visual: Annotated[bool | None, _not_offered("Sophia draws no waveforms")] = None

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


class PlanRequest(_Body):
    """The body of the route that answers with a composition plan."""

    prompt: str
    music_length_ms: Annotated[int, Field(ge=_SHORTEST_SECTION_MS, le=_LONGEST_MS)] | None = None
    source_composition_plan: Annotated[Any, _not_offered("Sophia plans from a prompt alone")] = None
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
    return FileStream(_joined(head + first, chunks), room, 200, headers, f"multipart/mixed; boundary={_boundary(job)}")


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
    return _plan_view(body.model_id, styles, planned.lyrics, planned.duration or INSTRUMENTAL_S)


def _headers(job: Job) -> dict[str, str]:
    """`song-id` is the job's id. `X-Warnings` has, as a JSON list, what has no effect."""
    return leave_out_none({"song-id": job.id, "X-Warnings": json.dumps(job.warnings) if job.warnings else None})


def _details(context: Context, body: ComposeRequest, job: Job) -> dict[str, Any]:
    """The JSON of a song's details. Blocks."""
    song = job.request
    file = job.audio[0]
    sung = has_words(song.lyrics)
    plan = body.composition_plan
    details: dict[str, Any] = {
        "composition_plan": plan.model_dump(exclude_none=True, exclude_unset=True)
        if plan
        else _plan_view(body.model_id, [song.prompt], song.lyrics, file.seconds),
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


def _plan_view(model_id: str | None, styles: Sequence[str], lyrics: str, duration_s: float) -> dict[str, Any]:
    """The composition plan of a song, in the form of ElevenLabs' model."""
    parts = _parts(lyrics, round(1000 * duration_s))
    if model_id is None or not model_id.startswith("music_v2"):
        sections = [
            {
                "section_name": name,
                "positive_local_styles": [],
                "negative_local_styles": [],
                "duration_ms": duration_ms,
                "lines": list(lines),
            }
            for name, lines, duration_ms in parts
        ]
        return {"positive_global_styles": list(styles), "negative_global_styles": [], "sections": sections}
    chunks = [
        {"text": "\n".join([f"[{name}]", *lines]), "duration_ms": duration_ms, "positive_styles": list(styles)}
        for name, lines, duration_ms in parts
    ]
    return {"chunks": chunks}


def _parts(lyrics: str, duration_ms: int) -> list[tuple[str, Sequence[str], int]]:
    """The name, the lines and the length in ms of each section. Together they are as long as the song."""
    sections = timed_sections(lyrics, duration_ms / 1000)
    if len(sections) * _SHORTEST_SECTION_MS > duration_ms:  # too many for ElevenLabs' shortest section
        lines = [line for section in sections for line in section.lines]
        return [(sections[0].tag.capitalize() or "Verse", lines, duration_ms)]
    if not sections:
        count = ceil(duration_ms / _LONGEST_SECTION_MS)
        return [("Instrumental", (), length) for length in _whole([1.0] * count, duration_ms)]
    lengths = _whole([section.seconds for section in sections], duration_ms)
    return [
        (section.tag.capitalize() or "Verse", section.lines, length)
        for section, length in zip(sections, lengths, strict=True)
    ]


def _whole(weights: Sequence[float], total_ms: int) -> list[int]:
    """Share `total_ms` by weight, in whole numbers of at least `_SHORTEST_SECTION_MS` that add up to it."""
    free_ms = total_ms - _SHORTEST_SECTION_MS * len(weights)
    ends = [round(free_ms * end / sum(weights)) for end in accumulate(weights, initial=0.0)]
    return [_SHORTEST_SECTION_MS + end - start for start, end in pairwise(ends)]


def _tag(name: str, styles: Sequence[str]) -> str:
    """A section tag, with the styles of the section as ACE-Step takes them: `[Verse - soft, whispered]`."""
    return f"[{' - '.join(filter(None, (name, ', '.join(styles))))}]"


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


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = _STATUSES.get(problem.code, problem.code)
    detail = {"status": status, "message": problem.detail, "request_id": problem.request_id}
    return problem.status, {"detail": detail}


FAMILY: Final = Family(router, ("/elevenlabs/",), _error_shape)
