"""The operators' files: what a volume, a sandbox, a reboot, a proxy and a rented pod do with them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
ONPREM = CLUSTER / "onprem"
BIN = Path(sys.executable).parent


def unit(name: str) -> dict[str, list[str]]:
    """A unit's settings: all values of each, in order."""
    found: dict[str, list[str]] = {}
    for line in (ONPREM / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", " ")):
            found.setdefault(key, []).append(value)
    return found


def example() -> dict[str, str]:
    lines = (ONPREM / "sophia.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def compose() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]


@pytest.mark.fault("B12")
@pytest.mark.ray
@pytest.mark.parametrize(("rank", "says"), [("0", "in time"), ("1", "in time; this node ends")])
def test_a_rented_pod_whose_start_fails_ends_by_itself(rank: str, says: str, tmp_path: Path):
    """With the head's port taken and no hours allowed, the script of the head and of another node ends, and says that it failed."""
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


@pytest.mark.fault("E8")
def test_each_volume_of_compose_belongs_to_the_user_that_writes_it():
    """A service that runs as a user of its own starts after the step that gives it its new volume."""
    services = compose()
    given = " ".join(services["owners"]["command"])
    mounts = dict(volume.split(":")[:2] for volume in services["owners"]["volumes"])
    for name, volume in {"postgres": "jobs", "prometheus": "metrics", "caddy": "tls"}.items():
        assert re.search(rf"chown {services[name]['user']}[ /\w]* {mounts[volume]}\b", given)
        assert services[name]["depends_on"]["owners"] == {"condition": "service_completed_successfully"}
        assert [each for each in services[name]["volumes"] if each.startswith(f"{volume}:")]
    assert services["owners"]["cap_add"] == ["CHOWN"]


@pytest.mark.fault("E9")
@pytest.mark.parametrize("name", ["sophia-ray-head.service", "sophia-ray-worker.service"])
def test_the_units_may_write_where_the_example_says(name: str):
    """The audio folder and the home of sophia.env.example are writable under ProtectSystem=strict."""
    found = unit(name)
    writable = [Path(path.removeprefix("-")) for line in found.get("ReadWritePaths", []) for path in line.split()]
    writable += [Path("/var/lib") / folder for folder in found["StateDirectory"]]
    assert found["ProtectSystem"] == ["strict"]
    for folder in (urlsplit(example()["SOPHIA_ARTIFACTS_URL"]).path, example()["HOME"]):
        assert any(Path(folder).is_relative_to(path) for path in writable)


@pytest.mark.fault("E16")
@pytest.mark.parametrize("name", ["sophia-ray-head.service", "sophia-ray-worker.service", "sophia-serve.service"])
def test_a_proxy_for_the_hub_is_not_asked_for_this_machine(name: str):
    """Units and example name loopback, and the example the head, as addresses that no proxy leads to."""
    for variable in ("NO_PROXY", "no_proxy"):
        assert f"{variable}=127.0.0.1,localhost" in unit(name)["Environment"]
        assert {"127.0.0.1", "localhost", example()["SOPHIA_HEAD_IP"]} <= set(example()[variable].split(","))


@pytest.mark.fault("E21")
def test_the_firewall_is_loaded_at_boot_before_ray():
    """A unit loads sophia.nft before the network is up, Ray's units require it, and a machine that joins enables it."""
    firewall = unit("sophia-firewall.service")
    assert firewall["ExecStart"] == ["/usr/sbin/nft -f /etc/sophia/sophia.nft"]
    assert "network-pre.target" in firewall["Before"][0]
    assert firewall["WantedBy"] == ["sysinit.target"]
    for name in ("sophia-ray-head.service", "sophia-ray-worker.service"):
        assert unit(name)["Requires"] == ["sophia-firewall.service"]
        assert "sophia-firewall.service" in unit(name)["After"][0]
    assert "systemctl enable --now sophia-firewall.service" in (ONPREM / "join.sh").read_text()


@pytest.mark.fault("E28")
def test_a_machine_that_joins_gets_the_database_password_and_looks_for_weights_at_boot():
    """join.sh copies .pgpass, and the weights' timer runs soon after each boot."""
    assert example()["PGPASSFILE"] in (ONPREM / "join.sh").read_text()
    assert unit("sophia-weights.timer")["OnBootSec"] == ["1min"]


@pytest.mark.fault("E33")
def test_docker_stop_of_the_image_drains():
    """The image's stop signal is the one on which `serve run` ends the jobs in hand."""
    assert "STOPSIGNAL SIGINT" in (CLUSTER / "Dockerfile").read_text().splitlines()
