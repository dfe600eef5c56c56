"""The publisher: encodes and stores songs, and publishes their jobs, while the worker generates the next ones."""

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Final

import numpy as np

from serve_app.artifacts.latents import to_file
from serve_app.audio import Encoders, SharedSamples, Song, Tags
from serve_app.errors import Stopped
from serve_app.jobs import Job, StoredAudio, artifact_folder
from serve_app.music import SAMPLE_RATE, lyric_times
from serve_app.worker.claims import Claim, StoredSong
from serve_app.worker.heartbeat import PROGRESS_S
from serve_app.worker.outcomes import Outcomes
from serve_app.worker.song_storage import SongStorage
from serve_app.worker.unstored_songs import MAX_SONGS, UnstoredSongs

logger = logging.getLogger("ray.serve.sophia")

_NO_SAMPLES: Final = np.empty((0, 2), np.float32)


class Publisher:
    """Takes the songs of a claim one by one with `add`, then publishes the job with `publish`.

    A thread of one pool encodes (in an encoder process) and stores each song, a thread of another publishes each job.
    `on_end` is called after every claim, whether it was published, failed or was abandoned.
    """

    def __init__(
        self,
        storage: SongStorage,
        encoders: Encoders,
        unstored: UnstoredSongs,
        outcomes: Outcomes,
        on_end: Callable[[Claim], None],
        *,
        keep_latents: bool,
    ) -> None:
        self._storage = storage
        self._encoders = encoders
        self._unstored = unstored
        self._outcomes = outcomes
        self._on_end = on_end
        self._keep_latents = keep_latents
        self.checkpoint = ""
        """Identifies the loaded model, for the latents that it makes."""
        # Twice as many threads as encoder processes: while some store, the others keep the processes busy.
        self._song_threads = ThreadPoolExecutor(2 * encoders.size, thread_name_prefix="encode")
        self._job_threads = ThreadPoolExecutor(MAX_SONGS, thread_name_prefix="publish")

    def add(self, claim: Claim, song: Song) -> None:
        """Encode and store the claim's next song in the background.

        Blocks while too many songs are not stored yet. Raises Stopped when the claim is lost meanwhile.
        """
        seconds = len(song.samples) / SAMPLE_RATE
        self._wait_for_room(claim, seconds)
        # In a list, which the thread empties: nothing else may hold the samples (230 MB at 600 s) while the file is stored.
        claim.songs.append(self._song_threads.submit(self._store, claim, [song], len(claim.songs), seconds))

    def publish(self, claim: Claim) -> None:
        """Publish the job in the background, as soon as all its songs are stored."""
        claim.stop_clock()
        self._job_threads.submit(self._publish, claim)

    def fail(self, claim: Claim, error: Exception) -> None:
        """End the claim with an error."""
        try:
            self._outcomes.fail(claim, error)
        finally:
            self._on_end(claim)

    def abandon(self, claim: Claim) -> None:
        """End a claim that is lost."""
        try:
            self._outcomes.abandon(claim)
        finally:
            self._on_end(claim)

    def close(self) -> None:
        """Return when every song is stored and every job published."""
        self._song_threads.shutdown(wait=True)
        self._job_threads.shutdown(wait=True)

    def _wait_for_room(self, claim: Claim, seconds: float) -> None:
        began = time.monotonic()
        try:
            while not self._unstored.reserve(seconds, timeout=PROGRESS_S):
                if claim.lost.is_set():
                    raise Stopped
        finally:
            claim.blocked_s += time.monotonic() - began

    def _store(self, claim: Claim, songs: list[Song], index: int, seconds: float) -> StoredSong:
        """Encode and store one song, which it takes out of `songs`."""
        began = time.monotonic()
        job = claim.job
        latents = self._latents_file(job, songs[0])
        song = replace(songs[0], samples=_NO_SAMPLES, latents=None)
        folder = f"{job.id}/{artifact_folder(job.attempt, job.worker)}"
        try:
            claim.on_step("encoding", index, job.request.songs)
            data = self._encode(claim, songs.pop())
            key = f"{folder}/{index}.{job.request.format}"
            self._storage.put(claim, key, data)
            latents_key = self._store_beside(claim, f"{folder}/{index}.latents", latents)
            lyrics = None if song.lyrics is None else lyric_times.to_file(song.lyrics)
            lyrics_key = self._store_beside(claim, f"{folder}/{index}.lyrics", lyrics)
        finally:
            self._unstored.release(seconds)
        file = StoredAudio(
            key=key,
            format=job.request.format,
            seconds=seconds,
            sample_rate=SAMPLE_RATE,
            channels=2,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            seed=song.seed,
            track=song.track,
            latents=latents_key,
            lyrics=lyrics_key,
            lyric_score=song.lyric_score,
            candidates=tuple(map(asdict, song.candidates)) if song.candidates else None,
        )
        return StoredSong(file, time.monotonic() - began)

    def _latents_file(self, job: Job, song: Song) -> bytes | None:
        """Returns the file of a song's latents, audio codes and gain; None if there are no latents or they are not kept."""
        if song.latents is None or not self._keep_latents or not job.request.keep_latents:
            return None
        return to_file(song.latents, self.checkpoint, song.codes, song.gain)

    def _store_beside(self, claim: Claim, key: str, data: bytes | None) -> str | None:
        """Store a file that belongs to a song, if there is one. Returns its key, or None."""
        if data is None:
            return None
        self._storage.put(claim, key, data)
        return key

    def _encode(self, claim: Claim, song: Song) -> memoryview:
        request = claim.request
        tags = Tags(
            title=" - ".join(filter(None, (request.title or request.prompt[:80], song.track))),
            prompt=request.prompt,
            seed=song.seed,
            model=claim.job.model,
            bpm=request.bpm,
            key=request.keyscale,
            lyrics=request.lyrics,
        )
        shared = SharedSamples(song.samples)
        del song  # from here on its samples are in shared memory only
        with shared:
            return self._encoders.encode(shared, request.format, tags)

    def _publish(self, claim: Claim) -> None:
        job = claim.job
        try:
            self._outcomes.publish(claim, [song.result() for song in claim.songs])
        except Stopped:
            self.abandon(claim)
        except Exception as error:
            logger.exception("job %s could not be published", job.id, extra={"job": job.id})
            self.fail(claim, error)
        else:
            self._on_end(claim)
