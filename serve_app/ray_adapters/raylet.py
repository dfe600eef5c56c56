"""Ends all of Ray's processes on a node when its raylet, which started them, has died.

Ray's own processes notice the death of their raylet late or never: the proxy keeps the port and leaves every request unanswered,
a worker keeps its device, and `serve run` waits. So each replica of Sophia watches the raylet of its node and kills the node's
processes when it has died. Then systemd, Kubernetes or a person sees that Sophia has ended and starts it again. The jobs are in the
database.
"""

import fcntl
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import ray
from ray._private.state import jobs

from serve_app.processes import Process, running_processes

logger = logging.getLogger("ray.serve.sophia")

POLL_S: Final = 0.5
GRACE_S: Final = 2.0
"""Seconds between a raylet's death and the kill.

A deliberate shutdown of the node is over by then, and `serve run` has printed the log line.
"""

_RAYLET_PID: Final = "RAY_RAYLET_PID"
"""Ray sets this environment variable in every process that a raylet starts, and their children inherit it."""

_SERVE_RUN: Final = re.compile(r"(^|[/ ])serve run\b")


def watch_raylet() -> None:
    """Watch the raylet that started this process, in a daemon thread."""
    raylet = Process.of(int(os.environ[_RAYLET_PID]))
    gcs = ray.get_runtime_context().gcs_address
    driver = _serve_run()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    lock = (session / f"sophia-{raylet.pid}.lock").open("w")  # opened now, as the disk may be full later
    call_on_death(raylet, lambda: _kill_node(raylet, lock, gcs, driver))


def call_on_death(process: Process, callback: Callable[[], None]) -> None:
    """Call `callback` in a daemon thread, at most about POLL_S after the process has ended."""

    def watch() -> None:
        while not process.is_dead:
            time.sleep(POLL_S)
        callback()

    threading.Thread(target=watch, name="raylet", daemon=True).start()


def orphans_of(raylet: Process) -> list[Process]:
    """The processes that a dead raylet of this host started, and their descendants, except the calling process.

    Their environment has the raylet's pid. Processes of a later raylet with the same pid started after that one, and are left out.
    """
    successor = Process.of(raylet.pid)
    return [
        process
        for process in running_processes()
        if process.pid != os.getpid()
        and process.was_started_with(_RAYLET_PID, str(raylet.pid))
        and raylet.born <= process.born
        and (successor.born == 0 or process.born < successor.born)
    ]


def _serve_run() -> Process | None:
    """The `serve run` on this host that started the application; None when there is none."""
    job_id = ray.get_runtime_context().get_job_id()
    ray_job = next((job for job in jobs() if job["JobID"] == job_id), None)
    if ray_job is None or ray_job["DriverIPAddress"] != ray.util.get_node_ip_address():
        return None
    driver = Process.of(ray_job["DriverPid"])
    return driver if _SERVE_RUN.search(driver.command_line) else None


def _kill_node(raylet: Process, lock: IO[str], gcs: str, driver: Process | None) -> None:
    """Kill the orphans of a raylet, send SIGTERM to `serve run`, and exit.

    The replicas of a node take turns by the lock: the first does all of it, and another only if the first dies before it has
    finished.
    """
    fcntl.flock(lock, fcntl.LOCK_EX)
    logger.error(
        "Ray's raylet on this node (pid %d) has died. Sophia kills the processes that it started, as they would hold the port and "
        "the device without answering. No job is lost. Start Sophia again.",
        raylet.pid,
    )
    time.sleep(GRACE_S)
    for orphan in orphans_of(raylet):
        orphan.send(signal.SIGKILL)
    # Ray's control store (GCS) still runs, so this is no deliberate shutdown of Ray.
    if driver is not None and _accepts_connections(gcs):
        driver.send(signal.SIGTERM)
    os._exit(1)


def _accepts_connections(address: str) -> bool:
    """Whether a TCP connection to `host:port` succeeds within a second."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
