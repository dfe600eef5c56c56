"""Makes songs over HTTP and reads their samples."""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
import soundfile

from serve_app.music import SAMPLE_RATE

Samples = npt.NDArray[np.float32]
"""A song at 48 kHz: (2, samples)."""

_POLL_S: Final = 0.05
_UNFINISHED: Final = ("queued", "running")


class NoSong(RuntimeError):
    """The service refused a request, or a job failed. The message has the service's own words."""


@dataclass(frozen=True)
class Made:
    """A finished job."""

    job: Mapping[str, Any]
    """The job as the service shows it."""
    songs: tuple[Samples, ...]
    """Its songs: the variations or stems."""
    files: tuple[bytes, ...]
    """The songs' files."""

    @property
    def name(self) -> str:
        """What a request calls the first song."""
        return f"job:{self.job['id']}/0"

    @property
    def song(self) -> Samples:
        """The first song."""
        return self.songs[0]


class Player:
    """A client of a service. Every request has `fields`, unless it says otherwise."""

    def __init__(self, client: httpx.Client, **fields: Any) -> None:
        self._client = client
        self._fields = {"format": "wav", **fields}

    def make(self, **fields: Any) -> Made:
        """Submits a job and waits for its songs. Raises NoSong."""
        answer = self._client.post("/v1/jobs", json={**self._fields, **fields})
        if answer.status_code != httpx.codes.ACCEPTED:
            raise NoSong(f"the request {fields} was refused: {_told(answer)}")
        job = self._ended(answer.json()["id"])
        if job["state"] != "succeeded":
            raise NoSong(f"the job {fields} ended as {job['state']}: {(job['error'] or {}).get('message')}")
        files = tuple(self._client.get(file["url"]).content for file in job["audio"])
        return Made(job, tuple(read(file) for file in files), files)

    def codes(self, made: Made) -> str:
        """The audio codes of a job's first song, as a request's `audio_codes` takes them."""
        answer = self._client.get(f"/v1/jobs/{made.job['id']}/codes")
        if answer.status_code != httpx.codes.OK:
            raise NoSong(f"there are no audio codes: {_told(answer)}")
        return str(answer.json()["songs"][0]["audio_codes"])

    def lyrics(self, made: Made) -> list[dict[str, Any]]:
        """The lines of a job's first song, with the times at which they and their words are sung. Raises NoSong."""
        answer = self._client.get(f"/v1/jobs/{made.job['id']}/lyrics")
        if answer.status_code != httpx.codes.OK:
            raise NoSong(f"there are no times of the lyrics: {_told(answer)}")
        return list(answer.json()["lines"])

    def upload(self, song: Samples) -> str:
        """Uploads a song as 32-bit WAV. Returns what a request calls it."""
        return self.upload_file(file_of(song))

    def upload_file(self, file: bytes) -> str:
        """Uploads a file of any format. Returns what a request calls it. Raises NoSong."""
        answer = self._client.post("/v1/inputs", content=file)
        if answer.status_code not in (httpx.codes.OK, httpx.codes.CREATED):
            raise NoSong(f"an upload was refused: {_told(answer)}")
        return str(answer.json()["name"])

    def _ended(self, job_id: str) -> dict[str, Any]:
        while (job := self._client.get(f"/v1/jobs/{job_id}").json())["state"] in _UNFINISHED:
            time.sleep(_POLL_S)
        return dict(job)


def read(file: bytes) -> Samples:
    """The samples of an audio file."""
    samples, _rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    song: Samples = samples.T
    return song


def file_of(song: Samples) -> bytes:
    """A 32-bit WAV file of a song."""
    file = io.BytesIO()
    soundfile.write(file, song.T, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _told(answer: httpx.Response) -> str:
    """The service's words for an error."""
    problem = answer.json()
    fields = "; ".join(f"{error['field']}: {error['message']}" for error in problem.get("errors") or ())
    return f"{answer.status_code} {problem.get('code')}: {fields or problem.get('detail')}"
