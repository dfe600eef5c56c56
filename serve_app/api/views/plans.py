"""Answers about plans."""

from typing import Literal

from pydantic import BaseModel, Field

from serve_app.music import Language


class PlanFacts(BaseModel):
    """What a planner has decided about a job's songs, but for their codes."""

    caption: str = Field(
        description="What the music is like, in words.", examples=["A calm piano ballad with soft strings."]
    )
    lyrics: str = Field(description="What is sung; empty if nothing is.", examples=["[verse]\nSoft notes"])
    bpm: int | None = Field(description="Tempo in beats per minute; null if it is not known.", examples=[92])
    keyscale: str | None = Field(description="Key; null if it is not known.", examples=["C major"])
    timesignature: Literal["2", "3", "4", "6"] | None = Field(
        description="Beats per bar; null if they are not known.", examples=["4"]
    )
    duration: float | None = Field(description="Length in seconds; null if it is not known.", examples=[84.0])
    language: Language = Field(description="Language of the lyrics.", examples=["en"])
    instrumental: bool = Field(description="Whether nothing is sung.", examples=[False])
    seed: int | None = Field(
        description="The `plan_seed`; song i, counted from 0, has the codes of it plus i.", examples=[7]
    )


class PlanView(PlanFacts):
    """A plan. As the `plan` of a request, as it is or with changes, it is used instead of a new one."""

    codes: list[list[int]] = Field(
        description="The audio codes of each song, five a second; empty if only the rest was planned.",
        examples=[[[1234, 5678]]],
    )


class JobPlan(BaseModel):
    """Where the plan of a job stands."""

    state: Literal["waiting", "planning", "done", "failed", "cancelled"] = Field(
        description="waiting for a planner, planning, done, failed, or cancelled with its job. A worker takes the job when it is "
        "done.",
        examples=["done"],
    )
    facts: PlanFacts | None = Field(description="What was planned, once it is done.")
    url: str = Field(
        description="Where to get the whole plan, with the audio codes.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/plan"],
    )
