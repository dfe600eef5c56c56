"""What `make serve` prints: selected lines of `serve run`, and a report on the start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import free_port
from tests.support.paths import ROOT
from tests.support.serve_run import configure, has_waiting_connection, launched


@pytest.mark.fault("C11")
def test_serve_takes_a_port_whose_past_connections_still_wait() -> None:
    """Serve's own server listens there, and the launcher lets it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert has_waiting_connection(port)
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

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
