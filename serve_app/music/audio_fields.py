"""The fields of a request that name recordings, and what their values mean."""

import re
from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from serve_app.music.vocabulary import MOST_SONGS, SOURCE_TASKS

_INPUT: Final = r"input:[0-9a-f]{64}"
_NUMBER: Final = "|".join(str(number) for number in range(MOST_SONGS))
_JOB: Final = rf"job:[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}(/({_NUMBER}))?"
_URL: Final = r"https?://[!-~]{1,1900}"
_AUDIO: Final = rf"^({_INPUT}|{_JOB}|{_URL})$"
_SONG: Final = re.compile(rf"job:([0-9a-f-]{{36}})/({_NUMBER})")

_NAMES: Final = (
    "`input:ID` for a recording uploaded with POST /v1/inputs, `job:ID/N` for song N (from 0) of one of your jobs, or an https:// "
    "address, which is fetched now and replaced by an `input:`."
)


VOICE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class SongName(NamedTuple):
    """One song of an earlier job."""

    job: str
    number: int


def _first_song(name: str) -> str:
    """A job without a number means its first song."""
    return f"{name}/0" if name.startswith("job:") and "/" not in name else name


AudioName = Annotated[str, Field(pattern=_AUDIO), AfterValidator(_first_song)]
"""The name of a recording."""


class NewVoice(BaseModel):
    """A recording that gets a name, so that the songs of many requests can have the same voice."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(
        pattern=VOICE_NAME,
        description="The voice's name for requests, of letters, digits, `.`, `_` and `-`. If you have a voice of this name, it "
        "gets the new recording.",
        examples=["anna"],
    )
    source: AudioName = Field(
        description=f"The recording. A song is copied, so that its job can be deleted. {_NAMES}",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/0"],
    )


class AudioFields(BaseModel):
    """The recordings that a song is made from."""

    source: AudioName | None = Field(
        None,
        validate_default=True,
        description=f"The recording to change, for every task but text2music: {_NAMES}",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/0"],
    )
    reference: AudioName | None = Field(
        None,
        description=f"A recording whose sound the song imitates, its voice and instruments: {_NAMES}",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/0"],
    )
    voice: str | None = Field(
        None,
        pattern=VOICE_NAME,
        description="One of your voices (POST /v1/voices). Its recording becomes the `reference`, which the job's `request` shows: "
        "changing or deleting the voice later does not change the job.",
        examples=["anna"],
    )
    keep_latents: bool = Field(
        True,
        description="Whether the song's latents are kept beside its audio, so that a later job with the song as its `source` "
        "starts from them instead of from the decoded file, and its audio codes, which GET /v1/jobs/{job_id}/codes returns. "
        "Default: true, unless the operator has switched it off.",
        examples=[True],
    )

    @field_validator("voice")
    @classmethod
    def _instead_of_reference(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("reference") is not None:
            raise ValueError(
                "must be left out, because the request has a `reference`, and a song imitates one recording"
            )
        return name

    @field_validator("source")
    @classmethod
    def _source_of_its_task(cls, name: str | None, info: ValidationInfo) -> str | None:
        task = info.data.get("task_type")
        if name is None and task in SOURCE_TASKS:
            raise ValueError(
                f"is required, because task_type {task!r} makes a song from another one: input:ID for an upload, job:ID/N for a "
                "song of yours, or an https:// address"
            )
        if name is not None and task == "text2music":
            raise ValueError(
                "must be left out, because task_type 'text2music' makes a song from words alone; name the task, or send the "
                "recording as 'reference'"
            )
        return name


def input_of(name: str | None) -> str | None:
    """The id of the input that `input:ID` names; None for anything else."""
    return name.removeprefix("input:") if name and name.startswith("input:") else None


def song_of(name: str | None) -> SongName | None:
    """The song that `job:ID/N` names; None for anything else."""
    found = _SONG.fullmatch(name or "")
    return SongName(found[1], int(found[2])) if found else None
