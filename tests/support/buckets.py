"""A local S3 server (moto's) in its own process, which may be killed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import obstore
from obstore.store import from_url

SERVER = """
import sys
from werkzeug.serving import run_simple
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=True)
"""


class S3:
    """A server with one bucket, `music`. Its content is in memory: after a kill it starts empty."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a process at the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SERVER, str(self.port)], stderr=subprocess.DEVNULL)
        # httpx's own retries wait until the server listens.
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=30) as client:
            client.put(f"http://127.0.0.1:{self.port}/music").raise_for_status()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def upload(self, folder: Path, prefix: str) -> None:
        store = from_url(f"s3://music/{prefix}")
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            obstore.put(store, str(file.relative_to(folder)), file)


@contextmanager
def s3() -> Iterator[S3]:
    """Runs the server until the block ends, with this process's environment pointing at it."""
    server = S3()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
