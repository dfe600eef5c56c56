"""Answers about audio codes."""

from pydantic import BaseModel, Field


class SongCodes(BaseModel):
    """The audio codes of one song."""

    url: str = Field(
        description="Where to download the song.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio/0"]
    )
    seed: int = Field(description="The song's seed.", examples=[7])
    track: str | None = Field(description="The track that it is, if it is a stem; else null.", examples=["drums"])
    seconds: float = Field(
        description="The song's length. A cover of the whole song needs it as its `duration`.", examples=[30.0]
    )
    audio_codes: str = Field(
        description="The codes, five a second, as a request's `audio_codes` takes them.",
        examples=["<|audio_code_1234|><|audio_code_5678|>"],
    )


class JobCodes(BaseModel):
    """The audio codes of a job's songs, in the order of its files."""

    songs: list[SongCodes] = Field(description="The songs.")
