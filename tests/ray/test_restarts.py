"""`serve run` as a person starts it: what ends it, what is left behind, and whether it starts again at once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil
import pytest
import yaml
from ray.serve.schema import HTTPOptionsSchema

from serve_app.ops.launch.address import address_of, is_free
from serve_app.processes import Process
from serve_app.ray_adapters.raylet import orphans_of
from tests.support.helpers import eventually, free_port
from tests.support.paths import ROOT
from tests.support.running import running, simulated

LAUNCH = [sys.executable, "-m", "serve_app.ops.launch", "serve_config.yaml"]
"""What `make serve` runs."""


def hear_ctrl_c() -> None:
    """A shell's background job ignores SIGINT, and so would what the tests start in it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Served:
    """A `serve run` in a folder of its own, and a client for it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "serve.log"
        # a Ray of its own, though `ray start` may have left another's address in /tmp/ray/ray_current_cluster
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                LAUNCH, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=hear_ctrl_c
            )

    def wait_until_ready(self) -> None:
        eventually(lambda: self.process.poll() is not None or self.get("/readyz") == 200, 180, every=0.2)
        assert self.process.poll() is None, self.log.read_text()[-4000:]

    def get(self, path: str) -> int:
        """The status; 0 when there is no answer."""
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
    """The configuration of a service with the simulated engine; `args` are further settings of it."""
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
    """A service of the simulated engine on `port`; whatever is left of it ends with the block."""
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


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.fault("A12")
def test_nothing_outlives_a_raylet_that_was_killed(tmp_path: Path) -> None:
    """`serve run` ends and says why, the port is free, no process is left; a worker and an API that come after it play the jobs."""
    port = free_port()
    with served(tmp_path, port) as service:
        jobs = [service.submit() for _ in range(3)]
        eventually(lambda: service.state(jobs[0]) == "running")
        started = service.children()
        (raylet,) = (process for process in started if process.name() == "raylet")

        raylet.kill()

        assert eventually(lambda: service.process.poll() is not None, 60)
        assert service.process.returncode != 0
        assert len(re.findall(r"raylet on this node .* has died", service.log.read_text())) == 1
        eventually(lambda: not [process for process in started if process.is_running()], 60)
        assert is_free("127.0.0.1", port)
    with running(tmp_path, {"m": simulated()}) as again:  # `make serve` itself starts again below, under C11
        assert {again.ended(job)["state"] for job in jobs} == {"succeeded"}


@pytest.mark.fault("A12")
def test_only_what_the_dead_process_started_is_its_orphan() -> None:
    """Its children and theirs are found, by what it gave them; a process of the same words and of another one is not."""
    program = (
        "import json, os, subprocess, sys\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "given = {**os.environ, 'RAY_RAYLET_PID': str(os.getpid())}\n"
        'nested = \'import subprocess, sys; subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])\'\n'
        "mine = subprocess.Popen([sys.executable, '-c', nested], env=given)\n"
        "other = subprocess.Popen(sleep, env={**os.environ, 'RAY_RAYLET_PID': '1'})\n"
        "print(json.dumps([mine.pid, other.pid]), flush=True)\n"
        "mine.wait()\n"
    )
    master = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert master.stdout is not None
    mine, other = (psutil.Process(pid) for pid in json.loads(master.stdout.readline()))
    grandchild = eventually(mine.children)[0]
    dead = Process.of(master.pid)
    try:
        master.kill()
        master.wait()
        found = {process.pid for process in orphans_of(dead)}
        earlier = Process(dead.host, dead.pid, Process.of(grandchild.pid).born + 1)

        assert found == {mine.pid, grandchild.pid}
        assert orphans_of(earlier) == []  # a pid's next owner has not started what the last one did
        for orphan in orphans_of(dead):
            orphan.send(signal.SIGKILL)
        eventually(lambda: not orphans_of(dead))
        assert other.is_running()
    finally:
        master.stdout.close()
        for process in (grandchild, mine, other):
            if process.is_running():
                process.kill()


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.fault("C11")
def test_a_service_that_was_ended_with_ctrl_c_starts_again_at_once(tmp_path: Path) -> None:
    """Connections that were open at its end hold nobody up, and meanwhile a second start is refused."""
    port = free_port()
    with served(tmp_path, port) as service:
        second = launched(tmp_path)
        _let_it_close_first(port)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0
    shown = service.log.read_text()
    assert f"\nSophia is ready at http://127.0.0.1:{port};" in shown
    assert "Traceback" not in shown
    assert second.returncode == 1
    assert second.stderr.startswith(f"Another 'make serve' uses port {port}")
    assert _waiting(port), "no connection waits, so this test shows nothing"
    with served(tmp_path, port) as again:
        assert again.get("/ping") == 200


def _let_it_close_first(port: int) -> None:
    """A connection that its server closes first keeps the server's port for a minute."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while connection.recv(1000):
            pass


def _waiting(port: int) -> bool:
    return any(
        seen.status == "TIME_WAIT" and seen.laddr and seen.laddr.port == port for seen in psutil.net_connections("tcp")
    )


@pytest.mark.fault("C11")
def test_serve_takes_a_port_whose_past_connections_still_wait(tmp_path: Path) -> None:
    """Serve's own server, in the environment that `make serve` gives it: it listens, and the launcher lets it."""
    (serve,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "serve_config.yaml" in line)
    variables = dict(word.split("=", 1) for word in serve.split() if "=" in word)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert _waiting(port)
    program = (
        "import asyncio\n"
        "from ray.serve._private.http_util import start_asgi_http_server\n"
        "from ray.serve._private.proxy import SOCKET_REUSE_PORT_ENABLED\n"
        "from ray.serve.config import HTTPOptions\n"
        "from serve_app.ops.launch.address import is_free\n"
        "async def main():\n"
        f"    assert is_free('127.0.0.1', {port})\n"
        f"    options = HTTPOptions(host='127.0.0.1', port={port})\n"
        "    loop = asyncio.get_running_loop()\n"
        "    task, _ = await start_asgi_http_server(\n"
        "        None, options, event_loop=loop, enable_so_reuseport=SOCKET_REUSE_PORT_ENABLED)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}

    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert ran.returncode == 0, ran.stderr


@pytest.mark.fault("C11")
def test_a_port_that_somebody_else_holds_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Also when that program would share it, and Serve, too."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        configure(tmp_path, port)

        refused = launched(tmp_path)

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr == (
        f"Another program uses port {port} of 127.0.0.1; 'ss -ltnp sport = :{port}' shows which. "
        "Stop it, or set http_options: port in serve_config.yaml.\n"
    )


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_start_whose_model_cannot_be_loaded_ends_with_one_sentence(tmp_path: Path) -> None:
    """Exit status 1 and the reason at the end; no traceback on the terminal, all output in the log file."""
    missing = {"m": {"source": str(tmp_path / "nothing"), "device": "cpu", "num_cpus": 0.1}}
    configure(tmp_path, free_port(), models=missing, breaker={"open_after": 1})

    refused = launched(tmp_path, {"RAY_ADDRESS": "local"}, timeout_s=300)

    assert refused.returncode == 1
    assert refused.stderr.startswith("Sophia did not start: model m cannot be loaded: "), refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stdout
    assert "Traceback" in (tmp_path / "logs" / "serve.log").read_text()


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_launcher_that_was_killed_leaves_no_service(tmp_path: Path) -> None:
    """`serve run` and the processes of its Ray end with it."""
    port = free_port()
    with served(tmp_path, port) as service:
        started = service.children()

        service.process.kill()

        eventually(lambda: not [process for process in started if process.is_running()], 60)
    assert is_free("127.0.0.1", port)


def test_the_launcher_knows_where_serve_listens() -> None:
    """Without a word in the configuration it is Serve's own default."""
    default = HTTPOptionsSchema()
    assert address_of({}) == (default.host, default.port)
    assert address_of({"http_options": {"host": "127.0.0.1", "port": 8123}}) == ("127.0.0.1", 8123)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("SOPHIA_DATA_DI", "/x", "SOPHIA_DATA_DI is not a setting: did you mean SOPHIA_DATA_DIR?"),
        ("SOPHIA_DATA_DIR", "/proc/sophia", "/proc/sophia/logs cannot be written to"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(tmp_path: Path, variable: str, value: str, sentence: str) -> None:
    """Before Ray is started."""
    configure(tmp_path, free_port())

    refused = launched(tmp_path, {variable: value})

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(sentence)
    assert refused.stderr.count("\n") == 1


def launched(
    folder: Path, environment: Mapping[str, str] = MappingProxyType({}), timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """A start that is to be refused."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        LAUNCH, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_tests_know_nothing_of_a_service_that_runs_beside_them() -> None:
    """Its settings, which beat a test's, and its Ray are taken out of the tests' environment; the tests' own switches stay."""
    theirs = {
        "SOPHIA_DATABASE_URL": "postgresql://live/db",
        "SOPHIA_SECRETS_DIR": "/run/secrets",
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
    program = (
        "import os, tests; from serve_app.config import AppArgs; "
        "print([name for name in os.environ if name.startswith(('SOPHIA_', 'RAY_ADDRESS'))], AppArgs().database_url)"
    )
    environment = {**os.environ, **theirs, "SOPHIA_TEST_LOGS": "1"}

    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)

    assert ran.stdout.strip() == "['SOPHIA_TEST_LOGS'] None", ran.stderr
