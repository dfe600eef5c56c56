"""Distinguishes a failed device, on which every later job would fail too, from a job that fails by itself."""

import logging
import re
from collections.abc import Callable
from typing import Final

from serve_app.errors import BadAudio, DeviceLost, SophiaError, StoreUnavailable
from serve_app.processes import Process
from serve_app.store import Store

logger = logging.getLogger("ray.serve.sophia")

_DEVICE_ERROR: Final = re.compile(
    r"CUDA error|CUDA driver|CUBLAS_|CUDNN_|cuDNN error|CUFFT_|NCCL error|HIP error|device-side assert|illegal memory access"
)
"""Messages with which drivers and libraries report a failed device. torch raises most of them as a plain RuntimeError."""


def diagnose(error: Exception, self_test: Callable[[], None]) -> Exception:
    """DeviceLost when the error shows that the device has failed and the worker must take no more jobs; else the error itself.

    An error without a known cause is followed by `self_test`, which generates one second of music; when that fails too, the
    device has failed. A client can cause at most that second, and the first job on a failing device is already retried elsewhere.
    """
    if isinstance(error, DeviceLost):
        return error
    if isinstance(error, SophiaError) and not isinstance(error, BadAudio):
        return error
    summary = f"{type(error).__name__}: {error}"
    if is_device_error(error):
        return DeviceLost(f"The device failed: {summary}")
    try:
        self_test()
    except Exception as failed:  # any failure: this worker can generate nothing else either
        return DeviceLost(f"A job failed ({summary}), and so did the self-test ({type(failed).__name__}: {failed})")
    return error


def is_device_error(error: Exception) -> bool:
    """Whether a driver or library reports with this error that the device has failed."""
    return not isinstance(error, SophiaError) and bool(_DEVICE_ERROR.search(f"{type(error).__name__}: {error}"))


class DeviceRecord:
    """Records in the store whether this host's device works: one that loads models and fails jobs must open the breaker, too."""

    def __init__(self, store: Store, model: str, deployment: str) -> None:
        self._loads = store.load_attempts
        self._model = model
        self._deployment = deployment
        self._has_worked = False

    def record_success(self) -> None:
        """The worker's first song clears the lost devices that were recorded for this host."""
        if self._has_worked:
            return
        try:
            self._loads.forgive_lost_devices(self._model, Process.this().host)
        except StoreUnavailable as error:
            logger.warning("cannot record that this device works; retrying after the next song: %s", error)
        else:
            self._has_worked = True

    def record_loss(self, job: str, message: str) -> None:
        """The device failed during a job. Does not wait for an unreachable store."""
        try:
            self._loads.add_lost_device(self._model, self._deployment, Process.this(), job, message)
        except StoreUnavailable as error:
            logger.warning("cannot record that the device failed during job %s: %s", job, error)
