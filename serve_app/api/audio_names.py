"""Finds the recordings that a request names, and fetches those that it names by an address."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from serve_app.api.context import Context
from serve_app.api.explanations import why_no_songs
from serve_app.api.field_errors import wrong_field
from serve_app.api.recording import Recording
from serve_app.api.uploads import keep, new_recording
from serve_app.errors import InvalidRequest, NotFound, UnusableAudio, WrongField
from serve_app.jobs import Status, StoredAudio
from serve_app.music import (
    AUDIO_FIELDS,
    SAMPLE_RATE,
    SOURCE_TASKS,
    MusicRequest,
    SongName,
    TaskType,
    bounds_of,
    input_of,
    song_of,
    source_plan,
)
from serve_app.plurals import counted
from serve_app.store.inputs import StoredInput
from serve_app.store.voices import Voice

_HEARD_TASKS: Final[tuple[TaskType, ...]] = ("cover", "cover-nofsq", "extract", "stems")
"""The tasks that can make nothing of a silent source. The others add something to it, or put something in its place."""


@dataclass(frozen=True, slots=True)
class NamedAudio:
    """What a request's names of recordings lead to, before any address is fetched."""

    request: MusicRequest
    """The request with its voice replaced by an input."""
    seconds: Mapping[str, float]
    """The length of each recording that is kept here, by field."""
    wrong: tuple[WrongField, ...]
    """The names that lead to nothing of the caller's, or to a recording that cannot be used."""


async def named_audio(context: Context, request: MusicRequest, owner: str) -> NamedAudio:
    """Look up the recordings that a request names and that are kept here. Raises StoreUnavailable."""
    if request.voice is None and all(getattr(request, field) is None for field in AUDIO_FIELDS):
        return NamedAudio(request, {}, ())
    return await context.threads.run(_named_audio, context, request, owner)


def _named_audio(context: Context, request: MusicRequest, owner: str) -> NamedAudio:
    seconds: dict[str, float] = {}
    wrong: list[WrongField] = []
    if request.voice is not None:
        try:
            voice = _voice(context, request.voice, owner)
            request = request.model_copy(update={"voice": None, "reference": f"input:{voice.sha256}"})
        except InvalidRequest as error:
            wrong.extend(error.wrong_fields)
    for field in AUDIO_FIELDS:
        name: str | None = getattr(request, field)
        if name is None or (song_of(name) is None and input_of(name) is None):
            continue
        try:
            seconds[field] = _kept_seconds(context, request, field, name, owner)
        except InvalidRequest as error:
            wrong.extend(error.wrong_fields)
    return NamedAudio(request, seconds, tuple(wrong))


def _kept_seconds(context: Context, request: MusicRequest, field: str, name: str, owner: str) -> float:
    """The length of a song or input that a field names. Raises InvalidRequest unless it can be used there."""
    if (song := song_of(name)) is not None:
        return find_song(context, field, name, song, owner).seconds
    found = _kept_input(context, field, name, owner)
    _check_use(request, field, found)
    return found.seconds


async def with_known_audio(context: Context, named: NamedAudio, owner: str) -> MusicRequest:
    """The request with every address replaced by an input, and with the duration that its source gives the song.

    `named.wrong` must be empty. Raises InvalidRequest, UnusableAudio, QuotaExceeded, StoreUnavailable and ArtifactsUnavailable.
    """
    request = named.request
    changed: dict[str, str] = {}
    seconds = dict(named.seconds)
    for field in AUDIO_FIELDS:
        name: str | None = getattr(request, field)
        if name is None or field in seconds:
            continue
        found = await _fetched(context, field, name, owner)
        _check_use(request, field, found)
        changed[field] = f"input:{found.sha256}"
        seconds[field] = found.seconds
    known = request.model_copy(update=changed) if changed else request
    return _as_long_as_its_source(known, seconds["source"]) if known.task_type in SOURCE_TASKS else known


def _check_use(request: MusicRequest, field: str, recording: StoredInput) -> None:
    """Raise InvalidRequest for a silent recording where sound is needed."""
    if field == "reference" or request.task_type in _HEARD_TASKS:
        check_sound(field, recording)


def _voice(context: Context, name: str, owner: str) -> Voice:
    try:
        return context.store.voices.get(owner, name)
    except NotFound as error:
        raise wrong_field("voice", name, f"names no voice of yours. {error.message}") from error


def _as_long_as_its_source(request: MusicRequest, source_s: float) -> MusicRequest:
    """The request with the song's duration, as its source, the part to repaint and the extensions make it."""
    try:
        plan = source_plan(request, round(source_s * SAMPLE_RATE))
    except ValueError as error:
        field, _, message = str(error).partition(": ")
        raise wrong_field(field, str(getattr(request, field)), message) from error
    bounds = bounds_of("duration")
    if not bounds["minimum"] <= plan.duration <= bounds["maximum"]:
        allowed = f"from {bounds['minimum']:g} to {bounds['maximum']:g} s"
        longer = next((name for name in ("extend_after", "extend_before") if getattr(request, name)), "source")
        raise wrong_field(
            longer, str(getattr(request, longer)), f"would make a song of {plan.duration:g} s; it must be {allowed}"
        )
    return request.model_copy(update={"duration": plan.duration})


def find_song(context: Context, field: str, name: str, song: SongName, owner: str) -> StoredAudio:
    """A song that a field names. Raises InvalidRequest unless it is there and belongs to the owner."""
    try:
        job = context.store.jobs.get(song.job, owner)
    except NotFound as error:
        raise wrong_field(field, name, f"names no job of yours. {error.message}") from error
    if job.status is not Status.SUCCEEDED:
        raise wrong_field(field, name, f"names a job that has no songs: {why_no_songs(job)}")
    if job.audio_gone_at is not None:
        raise wrong_field(field, name, "names a song that was deleted at the end of its retention time")
    if song.number >= len(job.audio):
        count = counted(len(job.audio), "song")
        raise wrong_field(field, name, f"names song {song.number}, but the job has {count}, numbered from 0")
    return job.audio[song.number]


async def find_input(context: Context, field: str, name: str, owner: str) -> StoredInput:
    """The input that a field names, or what the address in it leads to, kept as an input.

    Raises InvalidRequest unless the input is there and belongs to the owner, and the errors of `keep`.
    """
    if input_of(name) is None:
        return await _fetched(context, field, name, owner)
    return await context.threads.run(_kept_input, context, field, name, owner)


def _kept_input(context: Context, field: str, name: str, owner: str) -> StoredInput:
    try:
        return context.store.inputs.get(owner, str(input_of(name)))
    except NotFound as error:
        raise wrong_field(field, name, f"names no input of yours. {error.message}") from error


def check_sound(field: str, recording: StoredInput) -> None:
    """Raise InvalidRequest for a silent recording."""
    if recording.silent:
        raise wrong_field(
            field,
            f"input:{recording.sha256}",
            "names a silent recording, which has no sound to imitate or to take apart",
        )


async def keep_as(field: str, context: Context, recording: Recording, owner: str) -> StoredInput:
    """Keep a recording that came as a field of a request. An error about the file names the field."""
    try:
        stored, _ = await keep(context, recording, owner)
    except UnusableAudio as error:
        raise type(error)(f"{field}: {error.message}") from error
    return stored


async def _fetched(context: Context, field: str, url: str, owner: str) -> StoredInput:
    """Fetch a recording and keep it as an input."""
    with context.limits.uploads.hold(owner), new_recording(context) as recording:
        await context.fetchers.run(context.fetcher.fetch, field, url, recording)
        return await keep_as(field, context, recording, owner)
