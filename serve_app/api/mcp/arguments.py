"""The arguments of the MCP server's tools."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.api.compat.family import leave_out_none
from serve_app.api.compat.translation import invalid
from serve_app.api.field_errors import check_field_count, wrong_field
from serve_app.jobs import Status
from serve_app.music import MusicRequest
from serve_app.music.audio_fields import SongName, song_of

WATCHED_WAIT_S: Final = 600.0
BLIND_WAIT_S: Final = 50.0
"""How long a call waits whose client follows its progress, and one whose client does not: many give up after 60 s of silence."""

MOST_INLINE_BYTES: Final = 1_000_000
"""The most bytes of base64 text of a tool's answer."""

PAGE: Final = 50

ArgumentsT = TypeVar("ArgumentsT", bound="Arguments")


class Arguments(BaseModel):
    """The arguments of a tool that are not fields of a song."""

    model_config = ConfigDict(extra="forbid")


class ShowsSongs(Arguments):
    """How finished songs are shown."""

    inline_audio: bool = Field(
        False,
        description=f"Also answer with the audio itself, if it has at most {MOST_INLINE_BYTES // 1_000_000} MB as base64. "
        "Default: false; the answer always has links.",
    )


class Waiting(ShowsSongs):
    """How long a call that makes a song waits for it."""

    wait_s: float | None = Field(
        None,
        ge=0,
        le=WATCHED_WAIT_S,
        description=f"How long to wait for the song, in seconds; 0 answers at once. Default: {WATCHED_WAIT_S:g} if the client "
        f"follows the progress of the call, else {BLIND_WAIT_S:g}. A song that takes longer goes on: get_song waits for it.",
    )


class Extension(Waiting):
    """Which song becomes longer, and by how much."""

    song: str = Field(
        description="The song to extend: the id of its job, or job:ID/N for its song N, from 0.",
        pattern=r"^(job:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[0-9]{1,2})?$",
    )
    after_s: float = Field(0, ge=0, le=600, description="Seconds to add behind its end.")
    before_s: float = Field(0, ge=0, le=600, description="Seconds to add before its beginning.")

    @property
    def name(self) -> SongName:
        """The song. Raises InvalidRequest."""
        found = self.song.removeprefix("job:")
        name = song_of(f"job:{found}" if "/" in found else f"job:{found}/0")
        if name is None:
            raise wrong_field("song", self.song, "must be the id of a job, or job:ID/N with N from 0 to 11")
        return name


class SongId(Arguments):
    """Which job is meant."""

    id: UUID = Field(description="The job's id.")


class Look(SongId, ShowsSongs):
    """Which job is shown, and how long the call waits for its end."""

    wait_s: float = Field(
        0, ge=0, le=WATCHED_WAIT_S, description="How long to wait for the end of the job, in seconds. Default: 0."
    )


class Listing(Arguments):
    """Which jobs are listed."""

    state: Status | None = Field(None, description="Only jobs in this state.")
    limit: int = Field(20, ge=1, le=PAGE, description="How many. Default: 20.")
    cursor: UUID | None = Field(None, description="`next_cursor` of the page before.")


def read(kind: type[ArgumentsT], given: Mapping[str, Any]) -> ArgumentsT:
    """The arguments of a tool. Raises InvalidRequest."""
    check_field_count(given)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error, fields=tuple(kind.model_fields)) from error


def split(kind: type[ArgumentsT], given: Mapping[str, Any]) -> tuple[ArgumentsT, dict[str, Any]]:
    """The arguments of a tool, and the fields of a song that are beside them. Raises InvalidRequest."""
    check_field_count(given)
    own = {name: value for name, value in given.items() if name in kind.model_fields}
    return read(kind, own), {name: value for name, value in given.items() if name not in own}


def _simple(property: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a field by its main type alone: assistants need no other spellings."""
    kind = property.get("anyOf", [{}])[0]
    others = {name: value for name, value in property.items() if name not in ("anyOf", "title", "examples")}
    return {**kind, **leave_out_none(others)}


def schema_of(kind: type[Arguments], song: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema of a tool's arguments: its own, and the fields `song` of a request."""
    own = kind.model_json_schema()
    of_song = MusicRequest.model_json_schema()["properties"]
    properties = {name: of_song[name] for name in song} | own.get("properties", {})
    return {
        "type": "object",
        "properties": {name: _simple(property) for name, property in properties.items()},
        "required": [*required, *own.get("required", ())],
        "additionalProperties": bool(song),
    }
