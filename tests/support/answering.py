"""A server that gives every request the same answer, like an object store that refuses requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answering:
    """The answer may be changed at any time."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.requests = 0
        self.port = 0

    def says(self, status: int, code: str = "") -> None:
        """An answer in the form of S3's errors, with a message that must not reach clients."""
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>inner-address.example</Message></Error>".encode()


@contextmanager
def answering() -> Iterator[Answering]:
    """Runs the server until the block ends."""
    answer = Answering()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            answer.requests += 1
            body = b"" if self.command == "HEAD" else answer.body
            self.send_response(answer.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answer.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield answer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
