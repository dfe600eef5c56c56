"""What an API process does when `make serve` is about to stop: it answers the callers who wait for a song."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

from serve_app.api.limits import SharedSlots
from serve_app.api.watch import JobWatcher
from serve_app.config.environment import LAUNCHER

_ANSWER_S: Final = 4.0
"""The longest time for the answers, in seconds: less than the launcher waits."""


async def answer_before_stop(watcher: JobWatcher, open_requests: SharedSlots) -> None:
    """Wait for the launcher's notice, end all waits for jobs, and tell the launcher when no request is open any more.

    Returns at once if this process was not started by a launcher of this host.
    """
    name = os.environ.get(LAUNCHER)
    if not name:
        return
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(
            f"\0{name}"
        )  # of a local socket, so it does not block; uvloop cannot connect to one without a file
    except OSError:  # the launcher is on another host
        connection.close()
        return
    connection.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        await reader.read()  # returns when the launcher gives notice, and when it has died
        watcher.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(open_requests.all_free(), _ANSWER_S)
    finally:
        writer.close()
