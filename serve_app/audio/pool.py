"""Encoders in processes of their own, so that codecs neither hold up the thread that drives the device nor take a worker with them
when they crash.

Samples go over in shared memory that belongs to no file and is gone with the last process that has it. A process ends with the
worker that started it, however that ends, since its socket is closed then. None of them imports torch.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from queue import LifoQueue
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from serve_app.audio.process import ANSWER, REQUEST
from serve_app.audio.tags import Tags
from serve_app.errors import EncodingFailed
from serve_app.music import SAMPLE_RATE, Format

logger = logging.getLogger("ray.serve.sophia")

_MOST_PROCESSES: Final = 4
"""By default: four cores encode faster than any device makes music."""

_TRIES: Final = 2
_LEAST_LIMIT_S: Final = 120.0
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def default_processes() -> int:
    """One for each core that this process may use, at most four."""
    return min(_MOST_PROCESSES, _cores())


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


class SharedSamples:
    """A song's samples, float32 of shape (frames, 2), where other processes can read them. Close it, or use it with `with`."""

    def __init__(self, samples: npt.NDArray[np.float32]) -> None:
        self.seconds = len(samples) / SAMPLE_RATE
        self.descriptor = os.memfd_create("song")
        rest = np.ascontiguousarray(samples, np.float32).data.cast("B")
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the memory go."""
        os.close(self.descriptor)


class Encoders:
    """A pool of at most `size` encoder processes, which several threads may use. Each is started when it is first needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: LifoQueue[_EncoderProcess | None] = LifoQueue()  # the one that was used last is taken first
        for _ in range(size):
            self._idle.put(None)

    @property
    def idle(self) -> int:
        """How many songs it could begin to encode at once."""
        return self._idle.qsize()

    def warm_up(self) -> None:
        """Start one process, so that the first song need not wait for it."""
        process = self._idle.get()
        self._idle.put(process or _EncoderProcess())

    def encode(self, song: SharedSamples, format: Format, tags: Tags) -> memoryview:
        """The file of a song, as `serve_app.audio.encode` makes it; waits for a process that is free.

        A song whose process dies over it is tried once more in a new one.

        Raises:
            EncodingFailed: the codec refused the song, or crashed or hung both times.
        """
        for _ in range(_TRIES):
            process = self._idle.get()
            try:
                process = process or _EncoderProcess()
                return process.encode(song, format, tags)
            except _Crash as crash:
                logger.error("an encoder of %s died: %s", format, crash)
                reason = str(crash)
                process = None
            finally:
                self._idle.put(process)
        raise EncodingFailed(f"The {format} encoder died twice over this song: {reason}")

    def close(self) -> None:
        """End all processes. Nobody may be encoding."""
        for _ in range(self.size):
            process = self._idle.get()
            if process is not None:
                process.end()


class _Crash(Exception):
    """The process has died, or was ended since it hung."""


class _EncoderProcess:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: the folder that the worker runs in may hold anything.
                [sys.executable, "-P", "-c", "from serve_app.audio.process import main; main()"],
                stdin=theirs.fileno(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C in a terminal is the worker's, which then ends its songs
            )

    def encode(self, song: SharedSamples, format: Format, tags: Tags) -> memoryview:
        """The file. Raises EncodingFailed, or _Crash: then this process has ended."""
        # The slowest codec is fifty times as fast as this on one core.
        limit_s = max(_LEAST_LIMIT_S, song.seconds)
        header = json.dumps({"format": format, "tags": asdict(tags)}).encode()
        self._socket.settimeout(limit_s)
        try:
            socket.send_fds(self._socket, [REQUEST.pack(len(header))], [song.descriptor])
            self._socket.sendall(header)
            is_file, length = ANSWER.unpack(self._received(ANSWER.size))
            answer = self._received(length)
        except TimeoutError as error:
            self.end()
            raise _Crash(f"no answer within {limit_s:.0f} s") from error
        except OSError as error:
            raise _Crash(self._epitaph()) from error
        if not is_file:
            raise EncodingFailed(f"The {format} encoder failed: {answer.decode()}")
        return memoryview(answer)

    def _received(self, length: int) -> bytearray:
        received = bytearray(length)
        rest = memoryview(received)
        while rest:
            count = self._socket.recv_into(rest)
            if not count:
                raise ConnectionError("the encoder closed its socket")
            rest = rest[count:]
        return received

    def _epitaph(self) -> str:
        self.end()
        status = self._process.returncode
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def end(self) -> None:
        """End it, whatever it does."""
        self._socket.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
