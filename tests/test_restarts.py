"""`serve run` as a person starts it: what ends it, what is left behind, and whether it starts again at once."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve_app.processes import Process
from serve_app.raylet import orphans_of
from tests.helpers import eventually
from tests.test_serve import _free_port

ROOT = Path(__file__).parents[1]


class Served:
    """A `serve run` in a folder of its own, and a client for it."""

    def __init__(self, folder: Path, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "serve.log"
        serve = str(Path(sys.executable).with_name("serve"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [serve, "run", "serve_config.yaml"], cwd=folder, env=environment, stdout=log, stderr=log
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
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def served(folder: Path, port: int) -> Iterator[Served]:
    """A service of the simulated engine on `port`; whatever is left of it ends with the block."""
    models = {"m": {"source": "simulated", "simulated": {"step_s": 0.2}, "num_cpus": 0.1}}
    application = {"name": "sophia", "route_prefix": "/", "import_path": "serve_app.app:build"}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application | {"args": {"data_dir": str(folder), "models": models}}],
    }
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
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
def test_nothing_outlives_a_raylet_that_was_killed(tmp_path: Path):
    """`serve run` ends and says why, the port is free, no process is left; started again, it plays the jobs."""
    port = _free_port()
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
        assert service.get("/ping") == 0
    with served(tmp_path, port) as again:
        assert eventually(lambda: {again.state(job) for job in jobs} == {"succeeded"}, 120)


@pytest.mark.fault("A12")
def test_only_what_the_dead_process_started_is_its_orphan():
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
