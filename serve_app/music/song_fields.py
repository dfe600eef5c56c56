"""The fields of a request that say what the song is, and how it is delivered."""

from typing import Final, Literal

from pydantic import BaseModel, Field

from serve_app.music.vocabulary import MAX_SEED, Format, Language

# No NUL, which PostgreSQL's text type cannot hold.
TEXT: Final = r"^[^\x00]*$"
_OneLine = r"^[^\x00-\x1f\x7f]*$"

MAX_PROMPT: Final = 4000
MAX_LYRICS: Final = 20_000
SLOWEST_BPM: Final = 30
FASTEST_BPM: Final = 300
LONGEST_S: Final = 600
"""The longest song, in seconds."""


class SongFields(BaseModel):
    """What the song is: its words, length, tempo, key and file."""

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT,
        pattern=TEXT,
        description="Describes the music: genre, instruments, mood, voice. The model reads the first 256 tokens, about 200 words. "
        "If the prompt is longer, the job's `warnings` report that it was cut.",
        examples=["warm lo-fi piano, rain, slow"],
    )
    title: str | None = Field(
        None,
        max_length=200,
        pattern=_OneLine,
        description="Title for the file's name and tags. It has no effect on the music. Default: the start of the prompt.",
        examples=["Rainy day"],
    )
    lyrics: str = Field(
        "",
        max_length=MAX_LYRICS,
        pattern=TEXT,
        description="Lyrics to sing, with section tags such as [verse] and [chorus]. Leave it empty, or send [Instrumental], for "
        "music without vocals. The model reads the first 2048 tokens.",
        examples=["[verse]\nSoft notes in the morning light"],
    )
    duration: float = Field(
        60.0,
        ge=1,
        le=LONGEST_S,
        description="Length of the song in seconds, from 1 to 600. Default: 60. With `auto` the planner decides if the song is "
        "planned (see `auto_duration`); else the length is estimated from the lyrics, the tempo and the time signature (120 "
        "without lyrics), and the job's `request` contains the result. With `audio_codes`, they decide unless a length is given. "
        "For a task with a source, the source decides instead, and the job's `warnings` report another length that was given.",
        examples=[30],
    )
    variations: int = Field(
        1,
        ge=1,
        le=8,
        description="Number of variations to generate, from 1 to 8. Default: 1. Variation i, counted from 0, uses the seed "
        "`seed` + i; seed 0 follows the largest seed.",
        examples=[2],
    )
    seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SEED,
        description="Seed of the random noise that generation starts from. The same request with the same seed gives the same "
        "song. Default, and for -1: a random seed, which the job's `request` contains.",
        examples=[7],
    )
    format: Format = Field(
        "mp3",
        description="File format: mp3 (VBR), flac, wav (16-bit), wav32 (32-bit float), ogg (Vorbis), opus or aac (m4a). Default: "
        "mp3. Every file is stereo at 48 kHz.",
        examples=["flac"],
    )
    bpm: int | None = Field(
        None,
        ge=SLOWEST_BPM,
        le=FASTEST_BPM,
        description="Tempo in beats per minute, from 30 to 300. Default: the model chooses.",
        examples=[92],
    )
    keyscale: str | None = Field(
        None,
        pattern=r"^[A-G][#b♯♭]? (major|minor)$",
        description="Key, such as `C major` or `F# minor`. Default: the model chooses.",
        examples=["C major"],
    )
    timesignature: Literal["2", "3", "4", "6"] | None = Field(
        None,
        description="Beats per bar: 2 (2/4), 3 (3/4), 4 (4/4) or 6 (6/8). Default: the model chooses.",
        examples=["4"],
    )
    vocal_language: Language = Field(
        "en", description="Language of the lyrics, as an ISO 639 code. Default: en.", examples=["en"]
    )
    fade_in: float = Field(
        0.0, ge=0, le=60, description="Seconds over which the song fades in, from 0 to 60. Default: 0.", examples=[0.5]
    )
    fade_out: float = Field(
        0.0, ge=0, le=60, description="Seconds over which the song fades out, from 0 to 60. Default: 0.", examples=[3.0]
    )
