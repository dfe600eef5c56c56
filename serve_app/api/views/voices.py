"""Answers about voices."""

from datetime import datetime

from pydantic import BaseModel, Field


class VoiceView(BaseModel):
    """A recording with a name, which the songs of many requests can imitate."""

    name: str = Field(description="The value for a request's `voice`.", examples=["anna"])
    input: str = Field(
        description="Its recording, as a request's `reference` or `source` names it. The input stays as long as the voice.",
        examples=["input:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    seconds: float = Field(description="Length of the recording in seconds.", examples=[30.0])
    created_at: datetime = Field(description="When the name was given first.", examples=["2026-11-24T10:00:00Z"])
    changed_at: datetime = Field(
        description="When the voice got its present recording.", examples=["2026-11-24T10:00:00Z"]
    )


class VoiceList(BaseModel):
    """All voices of a caller, by name."""

    voices: list[VoiceView] = Field(description="The voices.")
