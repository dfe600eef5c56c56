"""The field of a request that chooses adapters."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve_app.config.models import ADAPTER_NAME, LARGEST_SCALE
from serve_app.music import spellings

MAX_ADAPTERS: Final = 8


class LoraUse(BaseModel):
    """One adapter of a song, and how strongly it counts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(
        pattern=ADAPTER_NAME, description="The adapter's name; GET /v1/models lists them.", examples=["violin"]
    )
    scale: float | None = Field(
        None,
        ge=-LARGEST_SCALE,
        le=LARGEST_SCALE,
        description="How strongly the adapter counts, from -10 to 10: 0 is not at all, 1 as it was trained. Default: the adapter's "
        "own, which is 1 unless the operator has set another; the job's `request` contains it.",
        examples=[0.8],
    )

    @field_validator("scale", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return spellings.number(value)


class AdapterFields(BaseModel):
    """Which adapters play along."""

    lora: list[LoraUse] = Field(
        default_factory=list,
        max_length=MAX_ADAPTERS,
        description="Adapters (LoRA, LoKr or DoRA) that change how the model plays, at most 8; their changes add up. An adapter's "
        "name alone means the object with this `name` and the default scale. Default: none.",
        examples=[[{"name": "violin", "scale": 0.8}]],
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _adapters(cls, value: Any) -> Any:
        return spellings.adapters(value)

    @field_validator("lora")
    @classmethod
    def _different(cls, value: list[LoraUse]) -> list[LoraUse]:
        names = [use.name for use in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"must name each adapter once, but names {twice!r} twice")
        return value
