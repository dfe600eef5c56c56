"""The operators' files: what a volume, a sandbox, a reboot, a proxy and a rented pod do with them."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from sqlalchemy import QueuePool

from serve_app.artifacts import Artifacts
from serve_app.config import DatabaseArgs, QueueArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import simulated

CLUSTER = ROOT / "cluster"
ONPREM = CLUSTER / "onprem"
BIN = Path(sys.executable).parent
GUIDE = (ROOT / "docs" / "OPERATIONS.md").read_text()


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


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / path).read_text()))


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"])


@pytest.mark.fault("B12")
@pytest.mark.ray
@pytest.mark.parametrize(("rank", "says"), [("0", "in time"), ("1", "in time; this node ends")])
def test_a_rented_pod_whose_start_fails_ends_by_itself(rank: str, says: str, tmp_path: Path) -> None:
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
def test_each_volume_of_compose_belongs_to_the_user_that_writes_it() -> None:
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
def test_the_units_may_write_where_the_example_says(name: str) -> None:
    """The audio folder and the home of sophia.env.example are writable under ProtectSystem=strict."""
    found = unit(name)
    writable = [Path(path.removeprefix("-")) for line in found.get("ReadWritePaths", []) for path in line.split()]
    writable += [Path("/var/lib") / folder for folder in found["StateDirectory"]]
    assert found["ProtectSystem"] == ["strict"]
    for folder in (urlsplit(example()["SOPHIA_ARTIFACTS_URL"]).path, example()["HOME"]):
        assert any(Path(folder).is_relative_to(path) for path in writable)


@pytest.mark.fault("E11")
def test_each_port_of_the_guide_is_let_out() -> None:
    """The policies let out what the guide's table says: an external database, object store, proxy, and the API of Kubernetes."""
    policies = {each["metadata"]["name"]: each["spec"] for each in documents("kuberay/egress.yaml")}
    rows = re.findall(r"^\| [^|]+ \| ([\d, ]+) \| `([\w-]+)` \|$", GUIDE, re.MULTILINE)
    told: dict[str, set[int]] = {}
    for ports, policy in rows:
        told.setdefault(policy, set()).update(map(int, ports.split(",")))
    assert {5432, 6432, 9000, 3128, 443} <= told["sophia-outside"]
    assert {443, 6443, 16443} <= told["sophia-kubernetes-api"]
    assert told == {name: outside_ports(spec) for name, spec in policies.items()}
    ray = {"sophia/app": "ray"}
    assert policies["sophia-outside"]["podSelector"]["matchLabels"] == ray
    assert policies["sophia-kubernetes-api"]["podSelector"]["matchLabels"] == {**ray, "sophia/part": "head"}


def outside_ports(policy: dict[str, Any]) -> set[int]:
    """The ports that a policy lets out to any address."""
    return {port["port"] for rule in policy["egress"] if "to" not in rule for port in rule["ports"]}


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


@pytest.mark.fault("E16")
def test_a_proxy_of_docker_or_kubernetes_is_not_asked_for_what_is_inside() -> None:
    """Sophia's and Caddy's containers, and every pod of Ray's, name loopback and the services beside them in NO_PROXY."""
    services = compose()
    for name in ("sophia", "caddy"):
        for variable in ("NO_PROXY", "no_proxy"):
            assert {"127.0.0.1", "localhost", "sophia", "postgres"} <= set(
                services[name]["environment"][variable].split(",")
            )
    service = next(each for each in documents("kuberay/rayservice.yaml") if each["kind"] == "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        variables = {each["name"]: each.get("value") for each in group["template"]["spec"]["containers"][0]["env"]}
        assert {"127.0.0.1", "localhost", ".svc"} <= set(variables["NO_PROXY"].split(","))


@pytest.mark.fault("E16")
@pytest.mark.parametrize("name", ["sophia-ray-head.service", "sophia-ray-worker.service", "sophia-serve.service"])
def test_a_proxy_for_the_hub_is_not_asked_for_this_machine(name: str) -> None:
    """Units and example name loopback, and the example the head, as addresses that no proxy leads to."""
    for variable in ("NO_PROXY", "no_proxy"):
        assert f"{variable}=127.0.0.1,localhost" in unit(name)["Environment"]
        assert {"127.0.0.1", "localhost", example()["SOPHIA_HEAD_IP"]} <= set(example()[variable].split(","))


@pytest.mark.fault("E21")
def test_the_firewall_is_loaded_at_boot_before_ray() -> None:
    """A unit loads sophia.nft before the network is up, Ray's units require it, and a machine that joins enables it."""
    firewall = unit("sophia-firewall.service")
    assert firewall["ExecStart"] == ["/usr/sbin/nft -f /etc/sophia/sophia.nft"]
    assert "network-pre.target" in firewall["Before"][0]
    assert firewall["WantedBy"] == ["sysinit.target"]
    for name in ("sophia-ray-head.service", "sophia-ray-worker.service"):
        assert unit(name)["Requires"] == ["sophia-firewall.service"]
        assert "sophia-firewall.service" in unit(name)["After"][0]
    assert "systemctl enable --now sophia-firewall.service" in (ONPREM / "join.sh").read_text()


@pytest.mark.fault("E23")
def test_a_worker_holds_as_many_connections_as_the_guide_counts(postgresql_url: str, tmp_path: Path) -> None:
    """A worker that has played songs holds at most the guide's number on PostgreSQL; an API's pool may hold the guide's."""
    control = Store(postgresql_url)
    control.migrate()
    request = MusicRequest(prompt="piano", model="m", duration=2, seed=1)
    ids = [control.jobs.submit(request, owner="", deadline_s=600, max_attempts=1)[0].id for _ in range(10)]
    before = connections(postgresql_url)
    own = Store(postgresql_url, DatabaseArgs().of_a_worker)
    worker = Worker("m", SimulatedEngine("m", simulated()), own, Artifacts(tmp_path.as_uri()), QueueArgs())
    worker.start()
    eventually(lambda: all(control.jobs.get(job).status.final for job in ids))
    held = connections(postgresql_url) - before
    worker.drain()
    pool = control.database.engine.pool  # as an API process has it
    assert isinstance(pool, QueuePool)
    assert 1 < held <= counted()["worker"]
    assert pool.size() + pool._max_overflow + 1 <= counted()["api"]  # one more listens
    own.close()
    control.close()


@pytest.mark.fault("E23")
def test_the_guides_examples_are_its_formula() -> None:
    """What 100, 400 and 195 GPUs come to is right, and stores.yaml lets the whole group of GPU pods in, twice during an upgrade."""
    postgres = next(
        each for each in documents("kuberay/stores.yaml") if "postgres" in str(each.get("spec", {}).get("template"))
    )
    arguments = postgres["spec"]["template"]["spec"]["containers"][0]["args"]
    limit = int(arguments[1].removeprefix("max_connections="))
    service = next(each for each in documents("kuberay/rayservice.yaml") if each["kind"] == "RayService")
    api, gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert needed(workers=gpu["maxReplicas"], apis=api["maxReplicas"]) <= limit
    told = re.search(
        r"enough for (\d+) workers? with 2 API .*?; the (\d+) of .*? for (\d+); (\d+) GPUs\s+need (\d+)",
        GUIDE,
        re.DOTALL,
    )
    assert told is not None
    few, of_stores, many, fleet, wanted = map(int, told.groups())
    assert of_stores == limit
    assert needed(workers=few, apis=2) <= 100 < needed(workers=few + 1, apis=2)
    assert needed(workers=many, apis=2) <= limit < needed(workers=many + 1, apis=2)
    assert needed(workers=fleet, apis=2) == wanted


def counted() -> dict[str, int]:
    """The guide's connections of a worker and of an API process."""
    found = re.search(r"A worker holds at most (\d+), an API process at most (\d+)", GUIDE)
    assert found is not None
    return {"worker": int(found[1]), "api": int(found[2])}


def needed(workers: int, apis: int) -> int:
    """The guide's formula, for one model."""
    assert "\n2 x (4 x workers + 19 x API processes + models) + 10\n" in GUIDE
    return 2 * (counted()["worker"] * workers + counted()["api"] * apis + 1) + 10


def connections(url: str) -> int:
    """Sessions on a database, but for the one that counts them."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "select count(*) - 1 from pg_stat_activity where datname = current_database() and backend_type = 'client backend'"
        ).fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.fault("E25")
def test_no_node_autoscaler_cuts_a_song() -> None:
    """GPU pods tell the usual node autoscalers to leave them alone; the guide names the grace period that they else need."""
    service = next(each for each in documents("kuberay/rayservice.yaml") if each["kind"] == "RayService")
    gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]
    assert gpu["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    assert f"--max-graceful-termination-sec={gpu['spec']['terminationGracePeriodSeconds']}" in GUIDE


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


@pytest.mark.fault("E28")
def test_a_machine_that_joins_gets_the_database_password_and_looks_for_weights_at_boot() -> None:
    """join.sh copies .pgpass, and the weights' timer runs soon after each boot."""
    assert example()["PGPASSFILE"] in (ONPREM / "join.sh").read_text()
    assert unit("sophia-weights.timer")["OnBootSec"] == ["1min"]


@pytest.mark.fault("E33")
def test_docker_stop_of_the_image_drains() -> None:
    """The image's stop signal is the one on which `serve run` ends the jobs in hand."""
    assert "STOPSIGNAL SIGINT" in (CLUSTER / "Dockerfile").read_text().splitlines()
