"""Runs the decoder in a child process, which may crash, hang or need too much memory without harm to the caller.

Each file gets a process of its own, so that a file cannot change how the next one is decoded. The child gets an open file and no
path, a small environment without secrets, and limits on its memory, its CPU time, its running time and the length of the audio.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from serve_app.config import InputArgs
from serve_app.errors import AudioTooLong, DamagedAudio, DecoderLimit, UnreadableAudio, UnusableAudio

_GRACE_S: Final = 1.0
"""The child ends itself after its limit. If that fails, it is killed this many seconds later."""

_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG")
"""The variables that the child inherits."""

_REFUSALS: Final[dict[str, type[UnusableAudio]]] = {
    kind.code: kind for kind in (UnreadableAudio, DamagedAudio, AudioTooLong, DecoderLimit)
}
_FRAME_BYTES: Final = 8
"""Two channels of float32."""


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """The limits for one file."""

    seconds: float
    """Longest audio."""
    timeout_s: float
    """Longest running time, and CPU time, of the decoder."""
    memory_bytes: int
    """Most memory of the decoder, beyond what the program itself takes. The decoded samples do not count."""

    @classmethod
    def of(cls, args: InputArgs, seconds: float | None = None) -> Self:
        """The limits that the settings set; `seconds` replaces the longest audio."""
        return cls(seconds or args.max_seconds, args.decode_timeout_s, args.decode_memory_bytes)


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What a file contains, as found by decoding all of it."""

    format: str
    """The container, such as `wav` or `mp4`."""
    seconds: float
    sample_rate: int
    """In Hz, as in the file."""
    channels: int
    silent: bool
    """Whether no sample exceeds one millionth of full scale."""


def inspect(file: int, limits: DecodingLimits) -> AudioFacts:
    """Decode the open file completely, and return what it contains. Raises the same errors as `decode`."""
    return _run(file, limits, None)


def decode(file: int, limits: DecodingLimits) -> npt.NDArray[np.float32]:
    """The samples of an open file (a descriptor that can be read and positioned), of shape (frames, 2), in [-1, 1], at 48 kHz.

    Mono is duplicated, and more than two channels are mixed down. A file with 48 kHz and one or two channels keeps its exact
    samples. The array can be written to. Raises UnreadableAudio, DamagedAudio, AudioTooLong or DecoderLimit.
    """
    samples = os.memfd_create("decoded")
    try:
        _run(file, limits, samples)
        size = os.fstat(samples).st_size
        memory = mmap.mmap(samples, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(samples)
    return np.frombuffer(memory, np.float32, size // _FRAME_BYTES * 2).reshape(-1, 2)


def _run(file: int, limits: DecodingLimits, samples: int | None) -> AudioFacts:
    """Run the child. It writes the samples to the descriptor `samples`, if there is one, and its answer to its output."""
    task = {
        "seconds": limits.seconds,
        "timeout_s": limits.timeout_s,
        "memory_bytes": limits.memory_bytes,
        "samples": samples,
    }
    with subprocess.Popen(  # noqa: S603 - a fixed command
        # -P: do not import modules from the current folder.
        [sys.executable, "-P", "-c", "from serve_app.decoding.process import main; main()", json.dumps(task)],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=() if samples is None else (samples,),
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal must reach the parent only
    ) as child:
        try:
            answer, _ = child.communicate(timeout=limits.timeout_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            raise _too_slow(limits) from None
        finally:
            child.kill()
    return _facts(child.returncode, answer, limits)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}


def _facts(status: int, answer: bytes, limits: DecodingLimits) -> AudioFacts:
    """The facts in a child's answer. Raises the error that it reports, or that its exit status means."""
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        raise _too_slow(limits)
    if status < 0:
        raise DamagedAudio(
            f"The decoder crashed on the file ({signal.Signals(-status).name}), so the file must be damaged"
        )
    if status > 0 or not answer:
        raise DamagedAudio(f"The decoder failed on the file (exit status {status}), so the file must be damaged")
    found: dict[str, Any] = json.loads(answer)
    if "code" in found:
        raise _REFUSALS[found["code"]](found["message"])
    return AudioFacts(**found)


def _too_slow(limits: DecodingLimits) -> DecoderLimit:
    return DecoderLimit(
        f"Decoding the file took longer than {limits.timeout_s:g} s, the maximum (inputs.decode_timeout_s)"
    )
