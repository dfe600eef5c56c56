"""The program of a decoder process. `serve_app.decoding.decode` starts it with the file as its standard input.

Its argument is a JSON object: the limits, and the descriptor for the samples or null. Its output is a JSON object, too: the fields
of `AudioFacts`, or `code` and `message` of the error.
"""

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soxr

from serve_app.decoding.readers import Reader, open_reader
from serve_app.errors import AudioTooLong, DamagedAudio, DecoderLimit, UnusableAudio
from serve_app.music import SAMPLE_RATE

_NICENESS: Final = 5
_SILENCE: Final = 1e-6
"""The original ACE-Step takes a source below this peak for silence."""

_MISSING_S: Final = 0.25
_MISSING_SHARE: Final = 0.01
"""A file that lacks more of the length in its header than both of these together is truncated. Headers round their lengths."""


def main() -> None:
    """Decode the file and print the answer."""
    task = json.loads(sys.argv[1])
    _limit(task)
    try:
        answer = _decode(task["seconds"], task["samples"])
    except UnusableAudio as error:
        answer = {"code": error.code, "message": error.message}
    except MemoryError:
        limit = f"{task['memory_bytes']} bytes of memory, the maximum (inputs.decode_memory_bytes)"
        answer = {"code": DecoderLimit.code, "message": f"Decoding the file takes more than {limit}"}
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # a codec that has left its data in disorder must not crash at the end


def _limit(task: dict[str, Any]) -> None:
    """Set the limits of this process. The kernel enforces them even if the parent has died."""
    os.nice(_NICENESS)
    timeout_s = math.ceil(task["timeout_s"])
    longest_bytes = int((task["seconds"] + 2) * SAMPLE_RATE) * 8
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (timeout_s, timeout_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest_bytes, longest_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (_own_bytes() + task["memory_bytes"],) * 2)
    signal.setitimer(signal.ITIMER_REAL, task["timeout_s"])


def _own_bytes() -> int:
    """The address space of this process now, with Python and the libraries."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _decode(longest_s: float, samples: int | None) -> dict[str, Any]:
    reader = open_reader(0)
    read = 0
    peak = 0.0
    for block in _resampled(reader):
        read += len(block)
        if read > longest_s * SAMPLE_RATE:
            raise AudioTooLong(f"The audio is longer than {longest_s:g} s, the maximum (inputs.max_seconds)")
        if len(block):
            peak = max(peak, float(np.abs(block).max()))
        if samples is not None:
            _write(samples, block)
    seconds = read / SAMPLE_RATE
    _check_length(reader, seconds)
    return {
        "format": reader.format,
        "seconds": seconds,
        "sample_rate": reader.sample_rate,
        "channels": reader.channels,
        "silent": peak < _SILENCE,
    }


def _resampled(reader: Reader) -> Iterator[npt.NDArray[np.float32]]:
    """The reader's blocks as stereo at 48 kHz, in [-1, 1]."""
    stream = soxr.ResampleStream(reader.sample_rate, SAMPLE_RATE, 2, dtype="float32", quality="HQ")
    is_resampled = reader.sample_rate != SAMPLE_RATE
    for block in reader.blocks():
        if not np.isfinite(block).all():
            raise DamagedAudio("The audio contains samples that are not numbers (NaN or infinity)")
        stereo = np.repeat(block, 2, axis=1) if block.shape[1] == 1 else block
        bounded = np.clip(stereo, -1, 1)
        yield np.clip(stream.resample_chunk(bounded), -1, 1) if is_resampled else bounded
    if is_resampled:
        yield np.clip(stream.resample_chunk(np.empty((0, 2), np.float32), last=True), -1, 1)


def _check_length(reader: Reader, seconds: float) -> None:
    """Raise DamagedAudio if the file has no samples, or fewer than its header says."""
    declared_s = reader.declared_s
    if seconds == 0:
        raise DamagedAudio("The file contains no audio samples")
    if declared_s is not None and declared_s - seconds > _MISSING_S + _MISSING_SHARE * declared_s:
        raise DamagedAudio(
            f"The file is truncated: its header says {declared_s:.1f} s of audio, and only {seconds:.1f} s are there"
        )


def _write(descriptor: int, block: npt.NDArray[np.float32]) -> None:
    rest = np.ascontiguousarray(block).data.cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
