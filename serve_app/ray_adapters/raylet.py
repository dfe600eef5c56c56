"""The end of a node's raylet, which starts and ends all other processes of Ray there. Nothing that it started outlives it.

Ray's own processes notice such a death one by one, or never: the proxy holds the port and lets every request hang, a worker keeps
its device, and `serve run` waits. So each of our actors watches the raylet of its node and ends the node's processes when it has
died; then whoever supervises them (systemd, Kubernetes, a person) sees an end and starts them again. The jobs are in the database.
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

LOOK_S: Final = 0.5
GRACE_S: Final = 2.0
"""So long a node that is shut down on purpose may take; and the message reaches `serve run` meanwhile."""

_NAMED_BY: Final = "RAY_RAYLET_PID"
"""Ray sets this variable in every process that a raylet starts, and their children inherit it."""

_SERVE_RUN: Final = re.compile(r"(^|[/ ])serve run\b")


def watch_raylet() -> None:
    """Watch the raylet that started this process, in a thread, until the process ends."""
    raylet = Process.of(int(os.environ[_NAMED_BY]))
    gcs = ray.get_runtime_context().gcs_address
    driver = _serve_run()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    lock = (session / f"sophia-{raylet.pid}.lock").open("w")  # now: a disk may be full later
    when_it_has_died(raylet, lambda: _end_the_node(raylet, lock, gcs, driver))


def when_it_has_died(process: Process, then: Callable[[], None]) -> None:
    """Call `then` in a thread of its own soon after the process has ended."""

    def watch() -> None:
        while not process.is_dead:
            time.sleep(LOOK_S)
        then()

    threading.Thread(target=watch, name="raylet", daemon=True).start()


def orphans_of(raylet: Process) -> list[Process]:
    """The processes that a dead raylet of this host has started, and theirs, without the one that asks.

    They say so in their environment, and were born while it lived: the next raylet with its pid has others.
    """
    successor = Process.of(raylet.pid)
    return [
        process
        for process in running_processes()
        if process.pid != os.getpid()
        and process.says(_NAMED_BY, str(raylet.pid))
        and raylet.born <= process.born
        and (successor.born == 0 or process.born < successor.born)
    ]


def _serve_run() -> Process | None:
    """The `serve run` on this host that started the application, if there is one."""
    ours = ray.get_runtime_context().get_job_id()
    started_by = next((job for job in jobs() if job["JobID"] == ours), None)
    if started_by is None or started_by["DriverIPAddress"] != ray.util.get_node_ip_address():
        return None
    driver = Process.of(started_by["DriverPid"])
    return driver if _SERVE_RUN.search(driver.command_line) else None


def _end_the_node(raylet: Process, lock: IO[str], gcs: str, driver: Process | None) -> None:
    """One of the node's actors ends the others; when it ends before it is done, another has the lock."""
    fcntl.flock(lock, fcntl.LOCK_EX)
    logger.error(
        "Ray's raylet on this node (pid %d) has died. All that it started ends now, as it would hold the port and the device and "
        "answer nothing. No job is lost: start Sophia again.",
        raylet.pid,
    )
    time.sleep(GRACE_S)
    for orphan in orphans_of(raylet):
        orphan.send(signal.SIGKILL)
    # A control store that lives says that nobody is shutting Ray down.
    if driver is not None and _listens(gcs):
        driver.send(signal.SIGTERM)
    os._exit(1)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
