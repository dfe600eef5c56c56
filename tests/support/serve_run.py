"""`make serve` as a process: its configuration, its start and its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx
import psutil
import yaml

from tests.support.helpers import eventually
from tests.support.paths import ROOT

LAUNCH: Final = [sys.executable, "-m", "serve_app.ops.launch", "serve_config.yaml"]
"""What `make serve` runs."""


def restore_ctrl_c() -> None:
    """Restores SIGINT, which a shell ignores for its background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Served:
    """A `serve run` in its own folder, and a client for it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "serve.log"
        # a Ray of its own, though `ray start` may have left another's address in /tmp/ray/ray_current_cluster
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                LAUNCH, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=restore_ctrl_c
            )

    def wait_until_ready(self) -> None:
        eventually(lambda: self.process.poll() is not None or self.get("/readyz") == 200, 180, every=0.2)
        assert self.process.poll() is None, self.log.read_text()[-4000:]

    def get(self, path: str) -> int:
        """The status of the answer, or 0 when there is none."""
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def submit(self) -> str:
        answer = httpx.post(f"{self.url}/v1/jobs", json={"prompt": "x", "duration": 2, "steps": 20}, timeout=30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def state(self, job: str) -> str:
        return str(httpx.get(f"{self.url}/v1/jobs/{job}", timeout=30).json()["state"])

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))


def configure(folder: Path, port: int, **args: object) -> None:
    """Writes the configuration of a service with the simulated engine; `args` are further settings."""
    models = {"m": {"source": "simulated", "simulated": {"step_s": 0.2}, "num_cpus": 0.1}}
    application = {"name": "sophia", "route_prefix": "/", "import_path": "serve_app.app:build"}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application | {"args": {"data_dir": str(folder), "models": models, **args}}],
    }
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))


@contextmanager
def served(folder: Path, port: int) -> Iterator[Served]:
    """Runs a service with the simulated engine on `port`; everything left of it ends with the block."""
    configure(folder, port)
    service = Served(folder, port)
    started: list[psutil.Process] = []
    try:
        service.wait_until_ready()
        started = service.children()
        yield service
    finally:
        service.process.send_signal(signal.SIGINT)
        try:
            service.process.wait(60)
        except subprocess.TimeoutExpired:
            service.process.kill()
            service.process.wait()
        for left in started:
            if left.is_running():
                left.kill()


def has_waiting_connection(port: int) -> bool:
    """Whether a closed connection of this port is still in TIME_WAIT."""
    return any(
        seen.status == "TIME_WAIT" and seen.laddr and seen.laddr.port == port for seen in psutil.net_connections("tcp")
    )


def launched(
    folder: Path, environment: Mapping[str, str] = MappingProxyType({}), timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a start that is expected to be refused."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        LAUNCH, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
