"""`MusicRequest` and the values that its fields may have."""

from serve_app.music.request import SELF_TEST, MusicRequest, bounds_of
from serve_app.music.vocabulary import (
    MAX_LYRICS_TOKENS,
    MAX_PROMPT_TOKENS,
    MAX_SEED,
    MEDIA_TYPES,
    SAMPLE_RATE,
    TASKS,
    VARIANT_DEFAULTS,
    Format,
    Language,
    TaskType,
    VariantDefaults,
)

__all__ = [
    "MAX_LYRICS_TOKENS",
    "MAX_PROMPT_TOKENS",
    "MAX_SEED",
    "MEDIA_TYPES",
    "SAMPLE_RATE",
    "SELF_TEST",
    "TASKS",
    "VARIANT_DEFAULTS",
    "Format",
    "Language",
    "MusicRequest",
    "TaskType",
    "VariantDefaults",
    "bounds_of",
]
