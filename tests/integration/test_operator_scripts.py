"""The commands that operators run: make behind a proxy, a rented pod's script, and join.sh."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.cluster_files import CLUSTER, ONPREM
from tests.support.paths import ROOT


@pytest.mark.fault("E16")
def test_the_makefile_asks_this_machine_without_a_proxy() -> None:
    """What make starts has loopback in NO_PROXY and no_proxy, before what the caller had there."""
    show = "show: ; @echo $$NO_PROXY $$no_proxy"
    for given in ({}, {"NO_PROXY": "example.org"}, {"no_proxy": "example.org"}):
        clean = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
        command = ["make", "-s", "--eval", show, "show"]
        done = subprocess.run(command, cwd=ROOT, env=clean | given, capture_output=True, text=True, check=True)
        wanted = ",".join(["127.0.0.1,localhost", *given.values()])
        assert done.stdout.split() == [wanted, wanted]


@pytest.mark.fault("E16")
def test_a_rented_pod_asks_itself_and_its_neighbours_without_a_proxy(tmp_path: Path) -> None:
    """The programs that the pod's script starts get a NO_PROXY with loopback, each pod's address and what was there."""
    program(tmp_path / "ray", "exec sleep 30")
    program(tmp_path / "serve", f'echo "$1 $NO_PROXY $no_proxy" >> {tmp_path}/asked')
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SKYPILOT_NODE_IPS": "10.1.0.1\n10.1.0.2",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "SOPHIA_MAX_HOURS": "0",
        "SOPHIA_IDLE_MINUTES": "1",
        "NO_PROXY": "example.org",
        "https_proxy": "http://127.0.0.1:1",
    }
    script = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())["run"]
    subprocess.run(["bash", "-c", script], env=given, capture_output=True, timeout=60, check=True)
    wanted = "127.0.0.1,localhost,10.1.0.1,10.1.0.2,example.org"
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"{word} {wanted} {wanted}" for word in ("deploy", "shutdown")
    ]


@pytest.mark.fault("E27")
@pytest.mark.parametrize("theirs", ["3.11.99", ""])
def test_a_machine_with_another_python_does_not_join(theirs: str, tmp_path: Path) -> None:
    """join.sh names both versions and what to do, and has changed nothing on the machine by then."""
    ended = join(tmp_path, f"echo {theirs}" if theirs else "exit 127")
    assert ended.returncode == 1
    assert f"has Python {theirs or 'no python3'} and this cluster {platform.python_version()}" in ended.stderr
    assert "SOPHIA_PYTHON=" in ended.stderr
    assert len((tmp_path / "done").read_text().splitlines()) == 1


@pytest.mark.fault("E27")
def test_a_machine_with_the_same_python_joins(tmp_path: Path) -> None:
    """join.sh goes on to copy the files and start the units."""
    ended = join(tmp_path, f"echo {platform.python_version()}")
    assert ended.returncode == 0, ended.stderr
    done = (tmp_path / "done").read_text()
    assert "rsync -a --delete" in done
    assert "systemctl enable --now sophia-weights.timer sophia-ray-worker.service" in done


def join(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """join.sh towards a machine whose python3 does as told; each of ssh and rsync only writes down what it is to do."""
    program(folder / "python3", python)
    program(folder / "ssh", f'echo "ssh $*" >> {folder}/done; case "$2" in python3*) sh -c "$2";; esac')
    program(folder / "rsync", f'echo "rsync $*" >> {folder}/done')
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(ONPREM / "join.sh"), "root@gpu7", "10.0.0.7"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
