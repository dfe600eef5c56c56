"""A pool of encoder processes. Separate processes do not slow down the thread that drives the device, and a codec that crashes does
not crash the worker.

A song's samples are passed in anonymous shared memory, which the kernel frees when the last process closes it. An encoder process
exits when its worker ends for any reason, because its socket is then closed. Encoder processes do not import torch.
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

_MAX_DEFAULT_PROCESSES: Final = 4
"""Four cores encode faster than any device generates music."""

_ATTEMPTS: Final = 2
_MIN_TIMEOUT_S: Final = 120.0
_CGROUP_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def default_processes() -> int:
    """Returns the default number of encoder processes: one per core that this process may use, at most four."""
    return min(_MAX_DEFAULT_PROCESSES, _cores())


def _cores() -> int:
    """Returns how many cores this process may use, according to its CPU affinity and its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


class SharedSamples:
    """A song's samples, float32 of shape (frames, 2), in memory that encoder processes can map. Use it with `with`, or close it."""

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
        """Closes the descriptor. The memory is freed when no process maps it."""
        os.close(self.descriptor)


class Encoders:
    """A pool of at most `size` encoder processes, each started when it is first needed. Thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: LifoQueue[_EncoderProcess | None] = LifoQueue()  # last in, first out: prefers running processes
        for _ in range(size):
            self._idle.put(None)

    @property
    def idle(self) -> int:
        """How many more songs can be encoded now without waiting."""
        return self._idle.qsize()

    def warm_up(self) -> None:
        """Starts one process, so that the first song does not wait for it."""
        process = self._idle.get()
        self._idle.put(process or _EncoderProcess())

    def encode(self, song: SharedSamples, format: Format, tags: Tags) -> memoryview:
        """Waits for an idle process, encodes the song in it with `serve_app.audio.encode`, and returns the file.

        If the process crashes or hangs, the song is encoded once more in a new process.

        Raises:
            EncodingFailed: the codec reported an error, or the process crashed or hung twice.
        """
        for _ in range(_ATTEMPTS):
            process = self._idle.get()
            try:
                process = process or _EncoderProcess()
                return process.encode(song, format, tags)
            except _Crash as crash:
                logger.error("the %s encoder process failed: %s", format, crash)
                reason = str(crash)
                process = None
            finally:
                self._idle.put(process)
        raise EncodingFailed(f"The {format} encoder process failed twice while encoding this song: {reason}")

    def close(self) -> None:
        """Ends all processes, each after its current song. `encode` must not be called afterwards."""
        for _ in range(self.size):
            process = self._idle.get()
            if process is not None:
                process.end()


class _Crash(Exception):
    """The encoder process has died, or was killed because it did not answer in time."""


class _EncoderProcess:
    def __init__(self) -> None:
        self._socket, child_socket = socket.socketpair()
        with child_socket:
            self._process = subprocess.Popen(
                # -P: do not import modules from the current folder.
                [sys.executable, "-P", "-c", "from serve_app.audio.process import main; main()"],
                stdin=child_socket.fileno(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C in a terminal must reach the worker only, which then finishes its songs
            )

    def encode(self, song: SharedSamples, format: Format, tags: Tags) -> memoryview:
        """Returns the file. Raises EncodingFailed, or _Crash after the process has ended."""
        # On one core, even the slowest codec encodes fifty times faster than real time.
        timeout_s = max(_MIN_TIMEOUT_S, song.seconds)
        header = json.dumps({"format": format, "tags": asdict(tags)}).encode()
        self._socket.settimeout(timeout_s)
        try:
            socket.send_fds(self._socket, [REQUEST.pack(len(header))], [song.descriptor])
            self._socket.sendall(header)
            is_file, length = ANSWER.unpack(self._receive(ANSWER.size))
            answer = self._receive(length)
        except TimeoutError as error:
            self.end()
            raise _Crash(f"it did not answer within {timeout_s:.0f} s") from error
        except OSError as error:
            raise _Crash(self._exit_reason()) from error
        if not is_file:
            raise EncodingFailed(f"The {format} encoder failed: {answer.decode()}")
        return memoryview(answer)

    def _receive(self, length: int) -> bytearray:
        received = bytearray(length)
        rest = memoryview(received)
        while rest:
            count = self._socket.recv_into(rest)
            if not count:
                raise ConnectionError("the encoder closed its socket")
            rest = rest[count:]
        return received

    def _exit_reason(self) -> str:
        """Ends the process, if it still runs, and returns its signal or exit status for a message."""
        self.end()
        status = self._process.returncode
        return f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"it exited with status {status}"

    def end(self) -> None:
        """Ends the process: closes its socket, and kills it if it has not exited after a second."""
        self._socket.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
