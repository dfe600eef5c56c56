"""Which failures of a job are its worker's own: a device that has failed would fail every job that it takes."""

import re
from typing import Final

from serve_app.errors import BadAudio, DeviceLost, SophiaError

_DEVICE: Final = re.compile(
    r"CUDA error|CUDA driver|CUBLAS_|CUDNN_|cuDNN error|CUFFT_|NCCL error|HIP error|device-side assert|illegal memory access"
)
"""What drivers and libraries say of a device that has failed; torch raises most of it as a plain RuntimeError."""


class Failures:
    """Counts the jobs that failed one after another, and says when it is the worker that fails."""

    def __init__(self, most: int):
        """`most` unexpected failures in a row, without a song between, are the worker's fault (`queue.max_failures_in_a_row`)."""
        self._most = most
        self._in_a_row = 0

    def song(self) -> None:
        """A song was made: what failed before was not the worker's fault."""
        self._in_a_row = 0

    def judge(self, error: Exception) -> Exception:
        """The error as it is, or DeviceLost when the worker should take no more jobs."""
        if isinstance(error, DeviceLost):
            return error
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, SophiaError) and _DEVICE.search(said):
            return DeviceLost(f"The device failed: {said}")
        if isinstance(error, SophiaError) and not isinstance(error, BadAudio):
            return error
        self._in_a_row += 1
        if self._in_a_row < self._most:
            return error
        return DeviceLost(f"{self._in_a_row} jobs in a row failed on this worker, the last with {said}")
