"""Processes that a dead raylet has left."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from serve_app.processes import Process
from serve_app.ray_adapters.raylet import orphans_of
from tests.support.helpers import eventually


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
