"""The values that a request's fields may have: formats, tasks and languages, and the defaults of each model variant."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.config import Variant

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

TaskType = Literal["text2music"]
TASKS: Final[dict[Variant, tuple[TaskType, ...]]] = {
    "turbo": ("text2music",),
    "base": ("text2music",),
    "sft": ("text2music",),
}
"""The tasks that Sophia supports for each variant."""

# The languages of ACE-Step 1.5's lyrics (`VALID_LANGUAGES` in its constants.py).
Language = Literal[
    "ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "ht", "hu",
    "id", "is", "it", "ja", "ko", "la", "lt", "ms", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sa", "sk", "sr",
    "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "yue", "zh", "unknown",
]  # fmt: skip


class VariantDefaults(BaseModel):
    """A variant's values for requests without steps, guidance scale or shift."""

    model_config = ConfigDict(frozen=True)

    steps: int = Field(description="Number of denoising steps.", examples=[8])
    guidance_scale: float = Field(description="Strength of classifier-free guidance; 1 is none.", examples=[1.0])
    shift: float = Field(description="Shift of the timestep schedule.", examples=[3.0])


# The defaults of the original ACE-Step. Turbo is distilled to 8 steps and shift 3, and its weights include guidance. For base
# models, the original's web page uses 64 steps; its command line and HTTP interface use 50.
VARIANT_DEFAULTS: Final[dict[Variant, VariantDefaults]] = {
    "turbo": VariantDefaults(steps=8, guidance_scale=1.0, shift=3.0),
    "base": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0),
    "sft": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0),
}
