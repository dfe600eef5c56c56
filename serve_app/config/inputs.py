"""Inputs: the recordings that clients upload as sources and references."""

from pydantic import Field

from serve_app.config.section import Section


class InputArgs(Section):
    """Limits on uploaded recordings and on their decoding."""

    max_bytes: int = Field(
        250_000_000,
        ge=1024,
        description="The largest file in bytes; a larger one gets 413. The default has room for ten minutes of 32-bit stereo at "
        "48 kHz.",
    )
    max_seconds: float = Field(
        600,
        ge=1,
        le=3600,
        description="The longest recording in seconds. Decoding stops there, whatever the file's header says.",
    )
    max_owner_bytes: int = Field(
        5_000_000_000,
        ge=65_536,
        description="The most bytes that the inputs of one API key may take; a further one gets 429. Each counts at least 64 KiB.",
    )
    ttl_s: float = Field(
        604_800,
        ge=1,
        description="Seconds after its last use at which an input is deleted. An upload of the same file and a job that names the "
        "input are uses. An input that a voice, or a queued or running job, names stays.",
    )
    voices_per_key: int = Field(
        100, ge=1, le=1000, description="The most voices of one API key; a further one gets 429."
    )
    uploads_per_key: int = Field(8, ge=1, description="The most uploads of one API key at once; further ones get 429.")
    upload_timeout_s: float = Field(
        300, gt=0, le=3600, description="Seconds within which an upload must arrive; a slower one gets 408."
    )
    fetch_timeout_s: float = Field(
        60,
        gt=0,
        le=600,
        description="Seconds within which a file must arrive that a request names by an https:// address.",
    )
    fetchers: int = Field(
        32,
        ge=1,
        le=256,
        description="Files that an API process fetches at once. More wait. Above `uploads_per_key`, no key can take all of them.",
    )
    allow_private: bool = Field(
        False,
        description="Also fetch files from private, loopback and other internal addresses, and over plain http://. Only for "
        "deployments where every client is trusted: clients can then reach whatever this machine reaches.",
    )
    decoders: int = Field(
        2,
        ge=1,
        le=64,
        description="Files that an API process decodes at once, each in a process of its own. More wait.",
    )
    decode_timeout_s: float = Field(60, gt=0, le=600, description="Seconds that decoding one file may take.")
    decode_memory_bytes: int = Field(
        268_435_456,
        ge=1_048_576,
        description="Bytes of memory that decoding one file may take, beyond the program itself and the samples.",
    )
