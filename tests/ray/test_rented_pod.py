"""The script of a rented pod, with a real Ray."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.cluster_files import CLUSTER
from tests.support.guide import BIN


@pytest.mark.fault("B12")
@pytest.mark.parametrize(("rank", "says"), [("0", "in time"), ("1", "in time; this node ends")])
def test_a_rented_pod_whose_start_fails_ends_by_itself(rank: str, says: str, tmp_path: Path) -> None:
    """If the head's port is taken, the pod's script ends and reports the failure, on the head and on another node."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and unshare")
    script = tmp_path / "run.sh"
    script.write_text(yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())["run"])
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NODE_RANK": rank,
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "SOPHIA_MAX_HOURS": "0",
        "SOPHIA_IDLE_MINUTES": "20",
    }
    taken = "import socket, time; s = socket.create_server(('', 6390)); time.sleep(110)"
    steps = (
        f'ip link set lo up; {sys.executable} -c "{taken}" & timeout 100 bash {script}; ended=$?; kill $!; exit $ended'
    )
    inside = ["unshare", "-n", "sh", "-c", steps]
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert says in done.stderr
