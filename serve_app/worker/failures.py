"""Which failures of a job are its worker's own: a device that has failed would fail every job that it takes."""

import re
from collections.abc import Callable
from typing import Final

from serve_app.errors import BadAudio, DeviceLost, SophiaError

_DEVICE: Final = re.compile(
    r"CUDA error|CUDA driver|CUBLAS_|CUDNN_|cuDNN error|CUFFT_|NCCL error|HIP error|device-side assert|illegal memory access"
)
"""What drivers and libraries say of a device that has failed; torch raises most of it as a plain RuntimeError."""


def judge(error: Exception, self_test: Callable[[], None]) -> Exception:
    """The error of a job as it is, or DeviceLost when it is the worker that fails and should take no more jobs.

    What no request explains is put to the test: `self_test` plays a plain second of music. A client can so make a worker play that
    second, and no more; and the first job that a failing device meets goes back already.
    """
    if isinstance(error, DeviceLost):
        return error
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SophiaError) and not isinstance(error, BadAudio):
        return error
    if not isinstance(error, SophiaError) and _DEVICE.search(said):
        return DeviceLost(f"The device failed: {said}")
    try:
        self_test()
    except Exception as failed:  # whatever it is: nothing else can be played either
        return DeviceLost(
            f"A job failed ({said}), and then a plain second of music ({type(failed).__name__}: {failed})"
        )
    return error
