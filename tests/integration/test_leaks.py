"""Whose leak fails a test: shown by runs of pytest in a process of their own."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CONFTEST = """
import pytest
from tests.support.leaks import Leaks
@pytest.hookimpl(trylast=True)
def pytest_configure():
    Leaks().install()
"""

RAYS = """
import asyncio, gc, socket
from ray.serve._private.http_util import start_asgi_http_server
from ray.serve.config import HTTPOptions
async def _listen(port):
    loop = asyncio.get_running_loop()
    try:
        await start_asgi_http_server(None, HTTPOptions(host="127.0.0.1", port=port), event_loop=loop)
    except RuntimeError:
        pass
def test_ray_leaks():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(_listen(taken.getsockname()[1]))
    gc.collect()
"""

OURS = """
import asyncio, gc, socket, subprocess, sys
import pytest
@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()
def test_socket():
    socket.socket()
def test_file():
    open(__file__)
def test_process():
    subprocess.Popen([sys.executable, "-c", "pass"])
def test_loop():
    asyncio.new_event_loop()
"""


def _pytest(folder: Path, test: str, conftest: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_inner.py").write_text(test)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
@pytest.mark.fault("C12")
def test_a_socket_that_ray_leaks_fails_no_test(tmp_path: Path) -> None:
    """Serve's own server forgets its socket when its port is taken; without our hook that fails the test."""
    with_hook = tmp_path / "with"
    without = tmp_path / "without"
    with_hook.mkdir()
    without.mkdir()

    with ThreadPoolExecutor() as pool:
        ran, plain = pool.map(_pytest, (with_hook, without), (RAYS, RAYS), (CONFTEST, ""))

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "unclosed <socket.socket" in plain.stdout
    assert plain.returncode == 1


@pytest.mark.fault("C12")
def test_what_we_leak_fails_the_test(tmp_path: Path) -> None:
    """A socket, a file, a process and an event loop that our code leaves open are errors of the tests that left them."""
    ran = _pytest(tmp_path, OURS, CONFTEST)

    blamed = re.findall(r"^(?:FAILED|ERROR) \S+::(\w+) - ", ran.stdout, re.MULTILINE)
    assert sorted(blamed) == ["test_file", "test_loop", "test_process", "test_socket"], ran.stdout
