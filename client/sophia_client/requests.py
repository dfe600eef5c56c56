"""What the methods of both clients do with their arguments before they call the service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sophia_client.answers import AudioFile, Job

_KEPT: Final = (
    "prompt",
    "lyrics",
    "model",
    "format",
    "bpm",
    "keyscale",
    "timesignature",
    "vocal_language",
    "lora",
    "voice",
    "reference",
)
"""The fields of a song that a longer version of it keeps."""


def id_of(job: Job | str) -> str:
    """The id of a job."""
    return job if isinstance(job, str) else job.id


def paths_in(fields: Mapping[str, Any]) -> dict[str, Path]:
    """The fields whose values are paths of files."""
    return {name: value for name, value in fields.items() if isinstance(value, Path)}


def audio_of(job: Job, index: int) -> AudioFile:
    """A song of a job. Raises ValueError."""
    if not 0 <= index < len(job.audio):
        raise ValueError(
            f"index: job {job.id} is {job.state} and has {len(job.audio)} songs, numbered from 0, got {index}"
        )
    return job.audio[index]


def extension(job: Job, index: int, before_s: float, after_s: float) -> dict[str, Any]:
    """The request for a longer version of a song."""
    kept = {name: job.request[name] for name in _KEPT if job.request.get(name) is not None}
    return {
        **kept,
        "task_type": "repaint",
        "source": job.song(index),
        "extend_before": before_s,
        "extend_after": after_s,
    }
