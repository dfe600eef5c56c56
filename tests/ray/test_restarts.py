"""What a service leaves behind when it ends, and whether it starts again at once."""

import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from serve_app.ops.launch.address import is_free
from tests.support.helpers import eventually, free_port
from tests.support.running import running, simulated
from tests.support.serve_run import configure, has_waiting_connection, launched, served

RAYS_AGENTS: Final = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""When Ray had to kill its raylet, these report that to its control store, which has ended, for 60 s
(`report_raylet_error_logs` in ray/_private/process_watcher.py, Ray 2.60), and then end. They hold neither the port nor a device."""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.fault("A12")
def test_nothing_outlives_a_raylet_that_was_killed(tmp_path: Path) -> None:
    """After its raylet is killed, `serve run` ends with the reason, leaves no process, and a new start runs the jobs."""
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


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.fault("C11")
def test_a_service_that_was_ended_with_ctrl_c_starts_again_at_once(tmp_path: Path) -> None:
    """Open connections do not delay a shutdown by Ctrl-C, and a second start is refused while it runs.

    A caller who waits for a song is told that its job goes on, and so it does.
    """
    port = free_port()
    with served(tmp_path, port) as service, ThreadPoolExecutor(1) as callers:
        second = launched(tmp_path)
        _let_it_close_first(port)
        jobs = f"{service.url}/v1/jobs"
        song = {"prompt": "x", "duration": 2, "steps": 100}
        waiting = callers.submit(httpx.post, f"{service.url}/v1/music", json=song, timeout=60)
        eventually(lambda: httpx.get(jobs, timeout=30).json()["jobs"])
        eventually(lambda: "\nSophia is ready at" in service.log.read_text())
        service.process.send_signal(signal.SIGINT)
        refused = waiting.result(60)
        assert service.process.wait(60) == 0
    assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
    shown = service.log.read_text()
    assert f"\nSophia is ready at http://127.0.0.1:{port};" in shown
    assert "Traceback" not in shown
    assert second.returncode == 1
    assert second.stderr.startswith(f"Another 'make serve' uses port {port}")
    assert has_waiting_connection(port), "no connection waits, so this test shows nothing"
    with served(tmp_path, port) as again:
        assert again.get("/ping") == 200
        job = httpx.get(again.url + refused.headers["location"], timeout=30).json()
        assert job["state"] in ("queued", "running", "succeeded"), job
        eventually(lambda: again.state(job["id"]) == "succeeded", 120)


def _let_it_close_first(port: int) -> None:
    """Opens a connection that the server closes first, which keeps the server's port in TIME_WAIT for a minute."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while connection.recv(1000):
            pass


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_start_whose_model_cannot_be_loaded_ends_with_one_sentence(tmp_path: Path) -> None:
    """It exits with status 1 and the reason last, without a traceback on the terminal."""
    missing = {"m": {"source": str(tmp_path / "nothing"), "device": "cpu", "num_cpus": 0.1}}
    configure(tmp_path, free_port(), models=missing, breaker={"open_after": 1})

    refused = launched(tmp_path, {"RAY_ADDRESS": "local"}, timeout_s=300)

    assert refused.returncode == 1
    assert refused.stderr.startswith("Sophia did not start: model m cannot be loaded: "), refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stdout
    assert "Traceback" in (tmp_path / "logs" / "serve.log").read_text()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_launcher_that_was_killed_leaves_no_service(tmp_path: Path) -> None:
    """`serve run` and its Ray processes end when the launcher is killed."""
    port = free_port()
    with served(tmp_path, port) as service:
        started = service.children()

        service.process.kill()

        eventually(lambda: not names_of_running(started) - RAYS_AGENTS, 60)
        eventually(lambda: not names_of_running(started), 120)
    assert is_free("127.0.0.1", port)


def names_of_running(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running():
                found.add(process.name())
    return found
