"""The values that a request's fields may have: formats, tasks and languages, and the defaults of each model variant."""

from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from serve_app.config import Variant
from serve_app.config.sources import PACKAGED

SAMPLE_RATE: Final = 48_000
"""Sample rate of every song in Hz: that of ACE-Step 1.5's VAE."""

MAX_PROMPT_TOKENS: Final = 256
MAX_LYRICS_TOKENS: Final = 2048
"""The model reads this many tokens of the prompt and of the lyrics, as the original ACE-Step does; the rest is ignored."""

MAX_SEED: Final = 2**32 - 1

Format = Literal["mp3", "flac", "wav", "wav32", "ogg", "opus", "aac"]
MEDIA_TYPES: Final[dict[str, str]] = {
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "wav32": "audio/wav",
    "ogg": "audio/ogg",
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/mp4",
}

AUDIO_FIELDS: Final = ("source", "reference")
"""The fields of a request that name a recording: `input:<sha256>`, or `job:<id>/<n>` for the song n of an earlier job."""

TaskType = Literal[
    "text2music", "cover", "cover-nofsq", "repaint", "extract", "lego", "complete", "stems", "edit"
]  # fmt: skip
COMMON_TASKS: Final[tuple[TaskType, ...]] = ("text2music", "cover", "cover-nofsq", "repaint")
"""The tasks of every variant."""

_BASE_MODELS: Final[tuple[TaskType, ...]] = ("extract", "lego", "complete", "stems")
TASKS: Final[dict[Variant, tuple[TaskType, ...]]] = {
    "turbo": COMMON_TASKS,
    "base": (*COMMON_TASKS, *_BASE_MODELS, "edit"),
    "sft": (*COMMON_TASKS, "edit"),
}
"""The tasks of each variant, as in the original's constants.py. `stems` is `extract` for each track, `edit` its flow edit."""

SOURCE_TASKS: Final[tuple[TaskType, ...]] = (*COMMON_TASKS[1:], *_BASE_MODELS, "edit")
"""The tasks that make a song from another one, the source."""

Track = Literal[
    "woodwinds", "brass", "fx", "synth", "strings", "percussion", "keyboard", "guitar", "bass", "drums",
    "backing_vocals", "vocals",
]  # fmt: skip
"""The tracks that base models know (`TRACK_NAMES` in the original's constants.py)."""

MAX_VARIATIONS: Final = 8
MOST_SONGS: Final = max(MAX_VARIATIONS, len(get_args(Track)))
"""The most songs of one job: its variations, or the stems of all tracks."""

RepaintMode = Literal["conservative", "balanced", "aggressive"]
Sampler = Literal["euler", "heun", "sde"]
GuidanceMode = Literal["apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip"]
DcwMode = Literal["low", "high", "double", "pix"]
ChunkMaskMode = Literal["auto", "explicit"]

# The languages of ACE-Step 1.5's lyrics (`VALID_LANGUAGES` in its constants.py).
Language = Literal[
    "ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "ht", "hu",
    "id", "is", "it", "ja", "ko", "la", "lt", "ms", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sa", "sk", "sr",
    "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "yue", "zh", "unknown",
]  # fmt: skip


class VariantDefaults(BaseModel):
    """A model's values for requests that omit these fields."""

    model_config = ConfigDict(frozen=True)

    steps: int = Field(description="Number of denoising steps.", examples=[8])
    guidance_scale: float = Field(description="Strength of classifier-free guidance; 1 is none.", examples=[1.0])
    shift: float = Field(description="Shift of the timestep schedule.", examples=[3.0])
    dcw: bool = Field(description="Whether each step is corrected in the wavelet domain.", examples=[True])
    chunk_mask_mode: ChunkMaskMode = Field(
        "auto",
        description="How the model is told which frames are new, where the request names no part.",
        examples=["auto"],
    )


# The defaults of the original ACE-Step. Turbo is distilled to 8 steps and shift 3, and its weights include guidance. For base
# models, the original's web page uses 64 steps; its command line and HTTP interface use 50.
VARIANT_DEFAULTS: Final[dict[Variant, VariantDefaults]] = {
    "turbo": VariantDefaults(steps=8, guidance_scale=1.0, shift=3.0, dcw=True),
    "base": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0, dcw=False),
    "sft": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0, dcw=False),
}


def defaults_of(variant: Variant, source: str | None = None) -> VariantDefaults:
    """The defaults of a model.

    The packaged models are toys that were trained with masks of 0 and 1, and DCW spoils their timbres and silences.
    """
    defaults = VARIANT_DEFAULTS[variant]
    toys: dict[str, Any] = {"dcw": False, "chunk_mask_mode": "explicit"}
    return defaults.model_copy(update=toys) if source in PACKAGED else defaults
