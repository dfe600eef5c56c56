"""Answers about the served models."""

from typing import Literal

from pydantic import BaseModel, Field

from serve_app.config import Variant
from serve_app.config.sources import EMBEDDED, NOTES
from serve_app.music import Format, TaskType, VariantDefaults
from serve_app.music.plan import Thinking


class AdapterView(BaseModel):
    """An adapter of a model."""

    name: str = Field(description="The value for `name` in a request's `lora`.", examples=["violin"])
    scale: float = Field(description="How strongly it counts in requests that name no scale.", examples=[1.0])


class PlannerView(BaseModel):
    """The planner of a model."""

    source: str = Field(description="Where it comes from.", examples=["ACE-Step/acestep-5Hz-lm-0.6B"])
    thinking: Thinking = Field(
        description="What is planned for requests without `thinking`: none, metadata or codes.", examples=["none"]
    )
    tasks: list[TaskType] = Field(description="The tasks whose songs it plans.", examples=[["text2music"]])


class ModelView(BaseModel):
    """A served model."""

    name: str = Field(description="The value for a request's `model`.", examples=["ace-step"])
    is_default: bool = Field(description="Whether requests without `model` use it.", examples=[True])
    source: str = Field(
        description="Where its checkpoint comes from.", examples=["ACE-Step/acestep-v15-xl-turbo-diffusers"]
    )
    revision: str | None = Field(
        description="The revision of the checkpoint.", examples=["200ba991ae448051e14b0183157e35c2d27c9fb0"]
    )
    variant: Variant | None = Field(
        description="turbo, base or sft; null until a worker has read the checkpoint.", examples=["turbo"]
    )
    tasks: list[TaskType] = Field(description="The tasks that it supports.", examples=[["text2music"]])
    defaults: VariantDefaults | None = Field(description="The values it uses for fields that a request leaves out.")
    adapters: list[AdapterView] = Field(description="The adapters that requests may choose.")
    planner: PlannerView | None = Field(
        description="Its planner, which `thinking` and POST /v1/plan, /v1/format, /v1/sample and /v1/understand need; null if it "
        "has none."
    )
    aligns_lyrics: bool | None = Field(
        description="Whether it can tell when a song's words are sung, which `lyrics_timing` and `best_of` need; null until a "
        "worker has loaded it.",
        examples=[True],
    )
    ready_workers: int = Field(description="Workers that can generate now.", examples=[1])
    noise: bool = Field(
        description="Whether it generates no music, because its weights are random or it is a simulation.",
        examples=[False],
    )
    note: str | None = Field(
        description="What it is, if it is not a full checkpoint; else null.", examples=[NOTES[EMBEDDED]]
    )


class ModelEntry(BaseModel):
    """A served model as clients of OpenAI's API read it."""

    id: str = Field(description="The value for a request's `model`.", examples=["ace-step"])
    object: Literal["model"] = Field("model", description="Always model.", examples=["model"])
    created: int = Field(
        0,
        description="Always 0: when the model was made is not known, but OpenAI's clients expect a time.",
        examples=[0],
    )
    owned_by: Literal["sophia"] = Field("sophia", description="Always sophia.", examples=["sophia"])
    name: str = Field(description="The same as `id`, for ACE-Step's clients.", examples=["ace-step"])
    input_modalities: list[Literal["text", "audio"]] = Field(
        ["text", "audio"], description="What a request may consist of.", examples=[["text", "audio"]]
    )
    output_modalities: list[Literal["audio"]] = Field(["audio"], description="What it makes.", examples=[["audio"]])


class ModelList(BaseModel):
    """The served models and the limits that apply to all of them."""

    object: Literal["list"] = Field("list", description="Always list, for OpenAI's clients.", examples=["list"])
    data: list[ModelEntry] = Field(
        description="The same models as in `models`, the default one first, for clients of OpenAI's and ACE-Step's APIs."
    )
    models: list[ModelView] = Field(description="The served models.")
    formats: list[Format] = Field(description="The supported file formats.", examples=[["mp3", "flac"]])
    max_duration_s: float = Field(description="Maximum length of a song, in seconds.", examples=[600])
    max_variations: int = Field(description="Maximum number of variations per request.", examples=[8])
    max_best_of: int = Field(
        description="Maximum number of songs of which a request can get the best one.", examples=[8]
    )
