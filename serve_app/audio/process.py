"""The program of one encoder process: `serve_app.audio.pool` starts it, with a socket as its standard input.

A request is the length of its header and a descriptor of shared memory with the samples, then the header, in JSON. The answer is a
flag and a length, then so many bytes: the file, or why there is none.
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
"""The thread that drives the device goes first where cores are short."""


def main() -> None:
    """Encode one song after the other until the worker is gone."""
    os.nice(_NICENESS)
    worker = socket.socket(fileno=0)
    threading.Thread(target=_end_with, args=(worker,), daemon=True).start()
    while True:
        _encode_one(worker)


def _end_with(worker: socket.socket) -> None:
    """End at once when the worker has closed its side or is dead, also in the middle of a song."""
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
        answer = _encoded(descriptors[0], header)
    except Exception as error:  # whatever the codec raises is the job's failure, not this process's
        reason = f"{type(error).__name__}: {error}".encode()
        worker.sendall(ANSWER.pack(False, len(reason)) + reason)
    else:
        worker.sendall(ANSWER.pack(True, len(answer)))
        worker.sendall(answer)


def _encoded(descriptor: int, header: dict[str, Any]) -> bytes:
    try:
        memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    samples = np.frombuffer(memory, np.float32).reshape(-1, 2)
    return encode(samples, header["format"], Tags(**header["tags"]))
