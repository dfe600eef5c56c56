"""The program of an encoder process. `serve_app.audio.pool` starts it with a socket as its standard input.

A request consists of the header's length, together with a descriptor of the shared memory that holds the samples, and the header in
JSON. An answer consists of a flag (true for success), a length, and that many bytes: the file, or the error text.
"""

import json
import mmap
import os
import select
import socket
import struct
import threading
from typing import Any, Final

import numpy as np

from serve_app.audio.encode import encode
from serve_app.audio.tags import Tags

REQUEST: Final = struct.Struct(">I")
ANSWER: Final = struct.Struct(">?Q")

_NICENESS: Final = 5
"""Gives the thread that drives the device priority when there are too few cores."""


def main() -> None:
    """Encodes one song after another until the worker closes the socket or dies."""
    os.nice(_NICENESS)
    worker = socket.socket(fileno=0)
    threading.Thread(target=_exit_with, args=(worker,), daemon=True).start()
    while True:
        _encode_one(worker)


def _exit_with(worker: socket.socket) -> None:
    """Waits until the worker closes the socket or dies, then exits at once, even in the middle of a song."""
    hung_up = select.poll()
    hung_up.register(worker, select.POLLRDHUP)
    hung_up.poll()
    os._exit(0)


def _encode_one(worker: socket.socket) -> None:
    length, descriptors, _, _ = socket.recv_fds(worker, REQUEST.size, 1)
    if not length:
        os._exit(0)
    header = json.loads(worker.recv(REQUEST.unpack(length)[0], socket.MSG_WAITALL))
    try:
        answer = _encode_shared(descriptors[0], header)
    except Exception as error:  # an error of the codec must not end this process
        reason = f"{type(error).__name__}: {error}".encode()
        worker.sendall(ANSWER.pack(False, len(reason)) + reason)
    else:
        worker.sendall(ANSWER.pack(True, len(answer)))
        worker.sendall(answer)


def _encode_shared(descriptor: int, header: dict[str, Any]) -> bytes:
    """Encodes the samples in shared memory and closes `descriptor`."""
    try:
        memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    samples = np.frombuffer(memory, np.float32).reshape(-1, 2)
    return encode(samples, header["format"], Tags(**header["tags"]))
