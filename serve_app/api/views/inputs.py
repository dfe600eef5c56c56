"""Answers about uploaded recordings."""

from datetime import datetime

from pydantic import BaseModel, Field

_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class InputView(BaseModel):
    """An uploaded recording."""

    id: str = Field(description="SHA-256 of the file, in hex.", examples=[_SHA256])
    name: str = Field(description="The value for a request's `source` or `reference`.", examples=[f"input:{_SHA256}"])
    bytes: int = Field(description="File size in bytes.", examples=[2_400_000])
    format: str = Field(description="Container of the file, as found in it.", examples=["mp3"])
    seconds: float = Field(description="Length in seconds, found by decoding the whole file.", examples=[60.0])
    sample_rate: int = Field(description="Sample rate of the file in Hz.", examples=[44_100])
    channels: int = Field(description="Number of channels of the file.", examples=[2])
    silent: bool = Field(description="Whether the recording is silent.", examples=[False])
    created_at: datetime = Field(description="When it was uploaded first.", examples=["2026-11-24T10:00:00Z"])
    expires_at: datetime = Field(
        description="When it may be deleted. Each use renews this: an upload of the same file, or a job that names it. A "
        "voice of it keeps it beyond this.",
        examples=["2026-12-01T10:00:00Z"],
    )


class InputList(BaseModel):
    """One page of inputs, newest first."""

    inputs: list[InputView] = Field(description="The inputs on this page.")
    next_cursor: str | None = Field(
        description="Pass this as `cursor` to get the next page; null on the last page.", examples=[None]
    )
