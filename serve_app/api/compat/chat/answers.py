"""How a chat answer has its songs: in ACE-Step's shape, and in OpenAI's."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from serve_app.api.audio_in_text import AudioInText, base64_pieces
from serve_app.api.context import Context
from serve_app.errors import NotFound
from serve_app.jobs import Job
from serve_app.music import MEDIA_TYPES, MusicRequest
from serve_app.music.plan import Plan
from serve_app.music.planned import rendered_request
from serve_app.store import PlanState

_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
"""Tokens are not counted: songs are accounted for in seconds."""


@dataclass(frozen=True)
class Songs:
    """The songs of a finished job, for an answer."""

    context: Context
    job: Job
    audio: AudioInText
    request: MusicRequest
    """As they were rendered."""

    @classmethod
    def of(cls, context: Context, job: Job) -> "Songs":
        """The songs of a job. Raises StoreUnavailable. Blocks."""
        return cls(context, job, AudioInText(context, job), _rendered(context, job))

    @property
    def expires_at(self) -> int:
        """When they may be deleted, in seconds since the epoch."""
        return round((self.job.finished_at or self.job.created_at) + self.context.args.retention.results_s)

    @property
    def description(self) -> str:
        """What they are, in Markdown."""
        song = self.request
        facts = {
            "Caption": song.prompt,
            "BPM": song.bpm,
            "Duration": f"{song.duration:g}s",
            "Key": song.keyscale,
            "Time Signature": song.timesignature,
            "Language": song.vocal_language,
            "Seed": ", ".join(str(file.seed) for file in self.job.audio),
        }
        lines = ["## Metadata", *(f"**{name}:** {value}" for name, value in facts.items() if value)]
        if song.lyrics:
            lines += ["", "## Lyrics", song.lyrics]
        if self.job.warnings:
            lines += ["", "## Notes", *(f"- {warning}" for warning in self.job.warnings)]
        return "\n".join(lines)


def _rendered(context: Context, job: Job) -> MusicRequest:
    try:
        found = context.store.plans.of_job(job.id, job.owner)
    except NotFound:
        return job.request
    if found.state is not PlanState.DONE or found.result is None:
        return job.request
    return rendered_request(job.request, Plan.from_json(found.result))


class Shape(Protocol):
    """How an answer has its songs."""

    def choices(self, songs: Songs) -> list[dict[str, Any]]:
        """The `choices` of an answer, with places for the audio."""

    def stream(self, songs: Songs, chunk: "Chunk") -> AsyncIterator[bytes]:
        """The events of a stream with the songs."""


@dataclass(frozen=True)
class Chunk:
    """Makes the events of one stream."""

    id: str
    created: int
    model: str

    def text(self, delta: dict[str, Any], index: int = 0, finish_reason: str | None = None) -> str:
        """An event with a part of choice `index`."""
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
        fields = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return f"data: {json.dumps({**fields, 'choices': [choice]})}\n\n"

    def event(self, delta: dict[str, Any], index: int = 0, finish_reason: str | None = None) -> bytes:
        """`text` as bytes."""
        return self.text(delta, index, finish_reason).encode()


def completion(songs: Songs, shape: Shape) -> str:
    """The whole answer, with places for the audio."""
    job = songs.job
    return json.dumps(
        {
            "id": f"chatcmpl-{job.id}",
            "object": "chat.completion",
            "created": round(job.created_at),
            "model": job.model,
            "choices": shape.choices(songs),
            "usage": _USAGE,
        }
    )


class ListShape:
    """ACE-Step's shape: one message with a list of songs as data URLs."""

    def choices(self, songs: Songs) -> list[dict[str, Any]]:
        """One choice."""
        message = {"role": "assistant", "content": songs.description, "audio": _urls(songs), "audio_codes": None}
        return [{"index": 0, "message": message, "finish_reason": "stop"}]

    async def stream(self, songs: Songs, chunk: Chunk) -> AsyncIterator[bytes]:
        """The description, all songs in one event, and the end."""
        yield chunk.event({"content": songs.description})
        async for piece in songs.audio.filled(chunk.text({"audio": _urls(songs)})):
            yield piece
        yield chunk.event({}, finish_reason="stop")


def _urls(songs: Songs) -> list[dict[str, Any]]:
    found = []
    for number, file in enumerate(songs.job.audio):
        media_type = MEDIA_TYPES[file.format].partition(";")[0]
        url = f"data:{media_type};base64,{songs.audio.place(number)}"
        found.append({"type": "audio_url", "audio_url": {"url": url}})
    return found


class OpenAiShape:
    """OpenAI's shape: a choice for each song, with its file as base64, and its lyrics as the transcript."""

    def choices(self, songs: Songs) -> list[dict[str, Any]]:
        """A choice for each song."""
        return [_choice(songs, number) for number in range(len(songs.job.audio))]

    async def stream(self, songs: Songs, chunk: Chunk) -> AsyncIterator[bytes]:
        """For each song its lyrics, the pieces of its file, and its end. Each piece can be decoded alone."""
        for number, file in enumerate(songs.job.audio):
            name = _audio_id(songs, number)
            yield chunk.event({"audio": {"id": name, "transcript": songs.request.lyrics}}, number)
            async for piece in base64_pieces(songs.context, file):
                yield chunk.event({"audio": {"id": name, "data": piece.decode()}}, number)
            yield chunk.event({"audio": {"id": name, "expires_at": songs.expires_at}}, number)
            yield chunk.event({}, number, "stop")


def _choice(songs: Songs, number: int) -> dict[str, Any]:
    audio = {
        "id": _audio_id(songs, number),
        "data": songs.audio.place(number),
        "expires_at": songs.expires_at,
        "transcript": songs.request.lyrics,
    }
    message = {"role": "assistant", "content": songs.description, "refusal": None, "audio": audio}
    return {"index": number, "message": message, "finish_reason": "stop"}


def _audio_id(songs: Songs, number: int) -> str:
    return f"audio-{songs.job.id}-{number}"
