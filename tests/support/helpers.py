"""Helpers of several kinds of tests."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], seconds: float = 60, every: float = 0.02) -> T:
    """Calls `condition` until it returns a true value, and returns that value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(every)
    return value


def quickest_s(action: Callable[[], object], times: int = 3) -> float:
    """Seconds that the fastest of several runs takes: load makes single runs slower, never faster."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        action()
        took.append(time.monotonic() - began)
    return min(took)


def free_port() -> int:
    """A TCP port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
