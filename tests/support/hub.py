"""A local HTTP server that answers as the Hugging Face hub does, as far as fetching a repository goes.

Large files are redirected to a storage host, as the hub does; here that is the same server under another host name.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "sophia/tiny"
_BLOCK = 65_536


class Hub:
    """One repository, `sophia/tiny`, with the files of `folder`, at commit COMMIT and branch `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_per_s: float | None = None
        self.cuts: dict[str, list[int]] = {}
        """File -> after how many bytes its next connections break, one entry a connection."""
        self.claimed_sizes: dict[str, int] = {}
        self.flipped: dict[str, int] = {}
        """File -> the byte of it that is sent wrong, the next `flips` times."""
        self.flips = 1_000_000
        self._hashes: dict[str, str] = {}
        self.gated = False
        """Whether files are refused to everybody: as on the real hub, the repository's description is not."""
        self.refused: Counter[str] = Counter()
        """File -> how often it was refused because the repository is gated."""
        self.revoked = ""
        """The token that is refused wherever it is sent."""
        self.refusals: list[int] = []
        """With which status to refuse the next requests, one entry a request."""
        self.served: Counter[str] = Counter()
        """File -> bytes of it that were sent, over all connections."""
        self.authorized: set[str] = set()
        """Hosts that were sent a token."""
        self.requests = 0
        self.endpoint = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Every file of the repository and its size."""
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        real = {str(file.relative_to(self.folder)): file.stat().st_size for file in files}
        return real | self.claimed_sizes

    def siblings(self) -> list[dict[str, Any]]:
        """The files as the hub lists them: those in its large-file storage have a hash."""
        return [{"rfilename": name, "size": size, **self._lfs(name, size)} for name, size in self.sizes.items()]

    def _lfs(self, name: str, size: int) -> dict[str, Any]:
        file = self.folder / name
        if not name.endswith(".safetensors") or not file.exists():
            return {}
        if name not in self._hashes:
            self._hashes[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return {"lfs": {"size": size, "sha256": self._hashes[name], "pointerSize": 134}}

    def sent(self, name: str) -> bytes | bytearray:
        """The bytes that are sent for a file."""
        content = (self.folder / name).read_bytes()
        if name not in self.flipped or not self.flips:
            return content
        self.flips -= 1
        wrong = bytearray(content)
        wrong[self.flipped[name]] ^= 1
        return wrong


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Runs a hub on a free loopback port until the block ends."""
    hub = Hub(folder)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.requests += 1
        if "Authorization" in self.headers:
            self.hub.authorized.add(self.headers["Host"].split(":")[0])
        path = self.path.split("?")[0]
        if self.hub.refusals:
            self._refuse(self.hub.refusals.pop(0), "", {"Retry-After": "30"})
        elif self.hub.revoked and self.headers["Authorization"] == f"Bearer {self.hub.revoked}":
            self._refuse(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(info[1], info[2] or "main")
        elif stored := re.fullmatch(r"/storage/(.+)", path):
            self._file(stored[1])
        elif file := re.fullmatch(rf"/{REPOSITORY}/resolve/{COMMIT}/(.+)", path):
            self._resolve(file[1])
        else:
            self._refuse(404, "EntryNotFound")

    def _info(self, repository: str, revision: str) -> None:
        if repository != REPOSITORY:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            self._json({"id": repository, "sha": COMMIT, "siblings": self.hub.siblings()})

    def _resolve(self, name: str) -> None:
        if self.hub.gated:
            self.hub.refused[name] += 1
            self._refuse(403, "GatedRepo")
            return
        if not name.endswith(".safetensors"):
            self._file(name)
            return
        self.send_response(302)
        self.send_header("Location", f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/storage/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, name: str) -> None:
        content = self.hub.sent(name)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        assert asked is not None
        start = int(asked[1])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        cuts = self.hub.cuts.get(name)
        end = start + cuts.pop(0) if cuts else len(content)
        self._send(name, content[start:end])
        if end < len(content):
            self.close_connection = True

    def _send(self, name: str, content: bytes | bytearray) -> None:
        for at in range(0, len(content), _BLOCK):
            block = content[at : at + _BLOCK]
            try:
                self.wfile.write(block)
            except ConnectionError:  # the client was killed, as some tests do
                self.close_connection = True
                return
            self.hub.served[name] += len(block)
            if self.hub.bytes_per_s:
                time.sleep(len(block) / self.hub.bytes_per_s)

    def _json(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Logs nothing, so that pytest shows only what a test needs."""
