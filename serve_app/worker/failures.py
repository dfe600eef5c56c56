"""Which failures of a job are its worker's own: a device that has failed would fail every job that it takes."""

import logging
import re
from collections.abc import Callable
from typing import Final

from serve_app.errors import BadAudio, DeviceLost, SophiaError, StoreUnavailable
from serve_app.processes import Process
from serve_app.store import Store

logger = logging.getLogger("ray.serve.sophia")

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


class DeviceRecord:
    """What the store is told of this worker's device, so that one which loads models well and fails jobs is not tried for ever."""

    def __init__(self, store: Store, model: str, deployment: str) -> None:
        self._loads = store.load_attempts
        self._model = model
        self._deployment = deployment
        self._has_worked = False

    def worked(self) -> None:
        """A song was played; the first one forgives the devices that were lost on this host before."""
        if self._has_worked:
            return
        try:
            self._loads.forgive_lost_devices(self._model, Process.this().host)
        except StoreUnavailable as error:
            logger.warning("that this device works is told with the next song: %s", error)
        else:
            self._has_worked = True

    def lost(self, job: str, message: str) -> None:
        """The device failed under a job. Not worth waiting for a store that is away."""
        try:
            self._loads.add_lost_device(self._model, self._deployment, Process.this(), job, message)
        except StoreUnavailable as error:
            logger.warning("that the device failed under job %s is not recorded: %s", job, error)
