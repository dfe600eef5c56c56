"""Reads and decodes the recordings that a job names, before its songs are generated."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.artifacts import ArtifactStore
from serve_app.artifacts.latents import KeptLatents, from_file
from serve_app.config import InputArgs
from serve_app.decoding import DecodingLimits, decode
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.errors import DecoderLimit, DecodingFailed, InputLost, NotFound, Stopped, UnusableAudio
from serve_app.jobs import Job
from serve_app.music import AUDIO_FIELDS, bounds_of, input_of, song_of
from serve_app.store import Store


class _File(NamedTuple):
    """A file in the audio store, and the SHA-256 that its content must have."""

    key: str
    sha256: str
    latents: str | None = None
    """The file of its latents, if they were kept."""


class SongInputReader:
    """Reads recordings from the audio store. Thread-safe."""

    def __init__(self, store: Store, artifacts: ArtifactStore, args: InputArgs) -> None:
        self._store = store
        self._artifacts = artifacts
        longest_song_s: float = bounds_of("duration")["maximum"]
        self._limits = DecodingLimits.of(args, max(args.max_seconds, longest_song_s))

    def read(
        self, job: Job, on_step: Callable[[str, int, int], None], checkpoint: str, stopped: Callable[[], bool]
    ) -> SongInputs:
        """The recordings of a job, and the latents of its source if they were kept and made by the same `checkpoint`.

        Reports its progress as the stage `preparing`. `stopped` is called before each recording.

        Raises Stopped; InputLost when a recording is gone or damaged; DecodingFailed, StoreUnavailable or ArtifactsUnavailable
        when a later attempt may succeed.
        """
        names = {field: name for field in AUDIO_FIELDS if (name := getattr(job.request, field)) is not None}
        if not names:
            return NO_INPUTS
        audio: dict[str, npt.NDArray[np.float32]] = {}
        for done, (field, name) in enumerate(names.items()):
            if stopped():
                raise Stopped
            on_step("preparing", done, len(names))
            with _explained(field, name):
                audio[field] = self._decoded(self._file(job.owner, name))
        inputs = SongInputs(audio.get("source"), audio.get("reference"))
        kept = self._latents(job.owner, job.request.source, checkpoint)
        return inputs if kept is None else replace(inputs, source_latents=kept.values, source_gain=kept.gain)

    def recording(self, owner: str, source: str) -> npt.NDArray[np.float32]:
        """The samples of one recording, of shape (frames, 2). Raises what `read` raises."""
        with _explained("source", source):
            return self._decoded(self._file(owner, source))

    def _file(self, owner: str, name: str) -> _File:
        """The file that a name of a request means. Raises NotFound."""
        if (sha256 := input_of(name)) is not None:
            return _File(self._store.inputs.get(owner, sha256, even_expired=True).key, sha256)
        song = song_of(name)
        if song is None:
            raise NotFound("it is neither an input nor a song")
        audio = self._store.jobs.get(song.job, owner).audio
        if song.number >= len(audio):
            raise NotFound(f"job {song.job} has no song {song.number}")
        found = audio[song.number]
        return _File(found.key, found.sha256, found.latents)

    def _latents(self, owner: str, source: str | None, checkpoint: str) -> KeptLatents | None:
        """The kept latents of a source; None if there are none that can be used. The samples are enough then."""
        if song_of(source) is None:
            return None
        try:
            key = self._file(owner, str(source)).latents
            return from_file(self._artifacts.get(key), checkpoint) if key else None
        except NotFound:
            return None

    def _decoded(self, file: _File) -> npt.NDArray[np.float32]:
        try:
            data = self._artifacts.get(file.key)
        except NotFound as error:
            raise NotFound("its file is missing in the audio store") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise NotFound("its file in the audio store has been changed or damaged")
        with os.fdopen(os.memfd_create("input"), "wb") as copy:
            copy.write(data)
            copy.flush()
            del data  # up to 250 MB, which the decoder does not need twice
            return decode(copy.fileno(), self._limits)


@contextmanager
def _explained(field: str, name: str) -> Iterator[None]:
    """Turn the errors of reading one recording into those of a job."""
    try:
        yield
    except NotFound as error:
        raise InputLost(f"The recording {name} of {field!r} is gone: {error.message}") from error
    except DecoderLimit as error:
        raise DecodingFailed(
            f"The recording {name} of {field!r} could not be decoded in time: {error.message}"
        ) from error
    except UnusableAudio as error:
        raise InputLost(f"The recording {name} of {field!r} cannot be used any more: {error.message}") from error
