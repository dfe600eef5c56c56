"""Two machines of a rack, each a network namespace, started from the units, firewall and configuration in cluster/onprem/."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from tests.support.helpers import eventually
from tests.support.paths import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ONPREM = ROOT / "cluster" / "onprem"
BIN = Path(sys.executable).parent
HEAD = "10.77.0.1"
FAR = "10.77.0.2"
CLIENT = "10.77.0.3"
LABEL = "ray.io/accelerator-type=GeForce-RTX-4090"

# What a client on its own machine does, as it has nothing of Sophia: prints the status (0: nobody there), then the body as hex.
ASK = """
import sys, urllib.error, urllib.request
method, url, key, body = sys.argv[1:]
headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers, method=method), timeout=120)
except urllib.error.HTTPError as error:
    answer = error
except urllib.error.URLError as error:
    sys.exit(print(0, str(error).encode().hex()))
print(answer.status, answer.read().hex())
"""
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    with socket.socket() as s:
        s.settimeout(0.5)
        print("open" if s.connect_ex((host, int(port))) == 0 else "closed")
"""


@dataclass
class Rack:
    """A head, a far machine with the 4090 label, and a client's machine: the name of each one's network namespace, by address."""

    machines: dict[str, str]
    folder: Path
    key: str

    def on(self, machine: str, *command: str | Path, env: dict[str, str] | None = None) -> str:
        """Runs a command on a machine and returns its output."""
        words = ["ip", "netns", "exec", self.machines[machine], *map(str, command)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, url: str, body: str = "", key: str | None = None, machine: str = CLIENT) -> tuple[int, bytes]:
        """Status and body of a request from a machine, which trusts Caddy's own authority."""
        method = "POST" if body else "GET"
        root = self.folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        env = os.environ | {"SSL_CERT_FILE": str(root)}
        answer = self.on(machine, BIN / "python", "-c", ASK, method, url, key or self.key, body, env=env)
        status, _, data = answer.partition(" ")
        return int(status), bytes.fromhex(data)

    def reach(self, machine: str, addresses: list[str]) -> list[str]:
        """Returns those addresses that a machine can connect to."""
        answers = self.on(machine, BIN / "python", "-c", CONNECT, *addresses).split()
        return [address for address, answer in zip(addresses, answers, strict=True) if answer == "open"]


@pytest.fixture(scope="module")
def rack(postgresql_server: str) -> Iterator[Rack]:
    """The two machines with their firewall, cluster and application up."""
    for tool, package in {"ip": "iproute2", "nft": "nftables", "pgrep": "procps", "caddy": "caddy"}.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    from tests.support.databases import empty_database

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sr-")))  # short: sockets lie in it
        machines = stack.enter_context(network())
        env = environment(folder, stack.enter_context(empty_database(postgresql_server)))
        key = subprocess.run(
            [BIN / "sophia", "keys", "create", "test"], env=env, capture_output=True, text=True, check=True
        )
        rack = Rack(machines, folder, key.stdout.strip())
        for address in (HEAD, FAR):
            (folder / "sophia.nft").write_text(firewall())
            rack.on(address, "nft", "-f", folder / "sophia.nft")
        stack.enter_context(node(rack, HEAD, "sophia-ray-head", {**env, "SOPHIA_RAY_ARGS": "--num-cpus=1"}))
        join = {**env, "SOPHIA_RAY_ARGS": f"--num-cpus=2 --labels={LABEL}"}
        eventually(lambda: rack.reach(FAR, [f"{HEAD}:6379"]), 60, every=0.5)
        stack.enter_context(node(rack, FAR, "sophia-ray-worker", join))
        eventually(lambda: rack.ask("http://127.0.0.1:8265/api/gcs_healthz", machine=HEAD)[0] == 200, 60, every=0.5)
        (folder / "serve.yaml").write_text(serve_configuration(folder))
        rack.on(HEAD, "sh", "-c", command("sophia-serve", "ExecStart", folder), env=env)
        stack.enter_context(node(rack, HEAD, "sophia-tls", tls_environment(folder)))
        eventually(lambda: rack.ask(f"https://{HEAD}/readyz")[0] == 200, 300, every=1)
        yield rack


def test_the_far_machine_makes_a_song(rack: Rack) -> None:
    """The worker is on the labelled machine, and a client on a third machine gets its song from the head."""
    body = '{"prompt": "warm lo-fi piano", "duration": 10, "seed": 7, "format": "flac"}'
    status, song = rack.ask(f"https://{HEAD}/v1/music", body)
    assert status == 200
    samples, rate = soundfile.read(io.BytesIO(song))
    assert (rate, samples.shape) == (48_000, (480_000, 2))
    assert np.abs(samples).max() > 0.001
    assert [worker["node"] for worker in health(rack)["workers"]] == [FAR]


def test_a_client_without_a_key_gets_no_song(rack: Rack) -> None:
    """401 for a wrong key."""
    assert rack.ask(f"https://{HEAD}/v1/music", '{"prompt": "x"}', key="wrong")[0] == 401


def test_clients_reach_the_api_and_nothing_else(rack: Rack) -> None:
    """A client reaches only TLS and the port that redirects to it; the machines reach each other."""
    listening = [f"{machine}:{port}" for machine in (HEAD, FAR) for port in listening_ports(rack, machine)]
    assert {f"{HEAD}:6379", f"{HEAD}:10001", f"{HEAD}:9464", f"{FAR}:6380"} <= set(listening)
    assert {address.rpartition(":")[2] for address in rack.reach(CLIENT, listening)} == {"80", "443"}
    assert {f"{HEAD}:8000", f"{FAR}:8000"} <= set(listening)
    assert set(rack.reach(FAR, [f"{HEAD}:6379", f"{HEAD}:6380"])) == {f"{HEAD}:6379", f"{HEAD}:6380"}
    assert rack.reach(FAR, [f"{HEAD}:8265"]) == []  # the dashboard stays on the head's loopback


def test_ray_obeys_nobody_without_the_token(rack: Rack) -> None:
    """Ray's job and Serve APIs answer 401 without the token and 200 with it, even on the head."""
    token = (rack.folder / "ray-token").read_text().strip()
    for route in ("/api/jobs/", "/api/serve/applications/"):
        assert rack.ask(f"http://127.0.0.1:8265{route}", key="wrong", machine=HEAD)[0] in (401, 403)
        assert rack.ask(f"http://127.0.0.1:8265{route}", key=token, machine=HEAD)[0] == 200


def test_the_probes_of_the_kubernetes_file_answer_without_the_token(rack: Rack) -> None:
    """The health URLs of head, raylet and proxy need no token, since the kubelet has none."""
    text = (ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text()
    probes = set(re.findall(r"httpGet: \{path: (\S+), port: (\w+)\}", text))
    ports = {"dashboard": "8265", "serve": "8000"}
    assert {path for path, _ in probes} == {"/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz"}
    for path, port in probes:
        hosts = (HEAD, "127.0.0.1")  # Ray's agent listens on the node's address, the dashboard here on loopback
        reached = [host for host in hosts if rack.reach(HEAD, [f"{host}:{ports.get(port, port)}"])]
        assert rack.ask(f"http://{reached[0]}:{ports.get(port, port)}{path}", key="none", machine=HEAD)[0] == 200


def test_a_stopped_machine_ends_its_song_first(rack: Rack) -> None:
    """The far unit's ExecStop returns after its running job has succeeded in its first attempt."""
    status, accepted = rack.ask(f"https://{HEAD}/v1/jobs", '{"prompt": "piano", "duration": 120}')
    job = yaml.safe_load(accepted)["id"]
    assert status == 202
    eventually(lambda: look(rack, job)["state"] == "running", 60, every=0.2)
    env = {**environment(rack.folder, ""), "SOPHIA_NODE_IP": FAR}
    rack.on(FAR, "sh", "-c", command("sophia-ray-worker", "ExecStop", rack.folder), env=env)
    ended = look(rack, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    assert health(rack)["workers"] == []


# --- The network ----------------------------------------------------------------------------------------------------------


@contextmanager
def network() -> Iterator[dict[str, str]]:
    """A switch and three machines, each a network namespace, by address."""
    switch = f"sophia{os.getpid()}"
    machines = {address: f"{switch}-{index}" for index, address in enumerate((HEAD, FAR, CLIENT), 1)}
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "lan", "type", "bridge")
        ip("-n", switch, "link", "set", "lan", "up")
        for index, (address, name) in enumerate(machines.items(), 1):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", switch, "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", f"port{index}", "master", "lan", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "default", "via", HEAD)
        yield machines
    finally:
        for name in (*machines.values(), switch):
            end_processes(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")


def end_processes(namespace: str) -> None:
    """Ends every process in our network namespaces."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def firewall() -> str:
    """sophia.nft with the addresses of this network in its sets."""
    text = (ONPREM / "sophia.nft").read_text()
    for example, ours in {"10.0.0.0/28": f"{HEAD}, {FAR}", "10.0.0.14": "10.77.0.9"}.items():
        assert example in text
        text = text.replace(example, ours)
    return text


def listening_ports(rack: Rack, machine: str) -> list[str]:
    """The TCP ports on which anything listens beyond loopback."""
    shown = rack.on(machine, "ss", "--listening", "--tcp", "--numeric", "--no-header")
    local = [line.split()[3] for line in shown.splitlines()]
    return sorted({each.rpartition(":")[2] for each in local if not each.startswith(("127.", "[::1]", "[::ffff:127."))})


# --- The machines ---------------------------------------------------------------------------------------------------------


@contextmanager
def node(rack: Rack, machine: str, unit: str, env: dict[str, str]) -> Iterator[None]:
    """A machine's Ray unit, running as systemd would run it."""
    words = [
        "ip",
        "netns",
        "exec",
        rack.machines[machine],
        "sh",
        "-c",
        f"exec {command(unit, 'ExecStart', rack.folder)}",
    ]
    with (rack.folder / f"{unit}.log").open("w") as log:
        process = subprocess.Popen(words, env={**env, "SOPHIA_NODE_IP": machine}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        with_patience(lambda: process.wait(10))
        end_processes(rack.machines[machine])
        process.wait()


def with_patience(action: Callable[[], Any]) -> None:
    try:
        action()
    except subprocess.TimeoutExpired:
        return


def command(unit: str, setting: str, folder: Path) -> str:
    """A command of a unit, with the paths that this checkout and this test have; variables are left to the shell."""
    text = (ONPREM / f"{unit}.service").read_text().replace("\\\n", "")
    found = re.search(rf"^{setting}=(.*)$", text, re.MULTILINE)
    assert found is not None
    places = {
        "/opt/sophia/.venv/bin": str(BIN),
        "/opt/sophia/cluster": str(ROOT / "cluster"),
        "/var/lib/sophia/ray": str(folder / "ray"),
        "/etc/sophia": str(folder),
    }
    line = found[1]
    for here, there in places.items():
        line = line.replace(here, there)
    return line


def environment(folder: Path, database: str) -> dict[str, str]:
    """sophia.env.example with this test's addresses, and what the units set beside it."""
    lines = (ONPREM / "sophia.env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    token = folder / "ray-token"
    token.write_text("f" * 64)
    return {
        **example,
        "SOPHIA_HEAD_IP": HEAD,
        "SOPHIA_OBJECT_STORE_BYTES": "100000000",
        "SOPHIA_DATABASE_URL": database,
        "SOPHIA_ARTIFACTS_URL": (folder / "audio").as_uri(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "HOME": str(folder),
        "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
    }


def tls_environment(folder: Path) -> dict[str, str]:
    """tls.env for the head's address, and what its unit sets beside it."""
    return {"TLS_SITE": HEAD, "TLS_UPSTREAMS": "127.0.0.1:8000", "XDG_DATA_HOME": str(folder), "HOME": str(folder)}


def serve_configuration(folder: Path) -> str:
    """cluster/serve/onprem.yaml with what only this machine forces: the embedded checkpoint on the CPU, and one worker."""
    config = yaml.safe_load((ROOT / "cluster" / "serve" / "onprem.yaml").read_text())
    args = config["applications"][0]["args"]
    args["data_dir"] = str(folder / "data")
    args["api"]["replicas"] = 1
    args["models"]["ace-step"] |= {
        "source": "embedded",
        "revision": None,
        "device": "cpu",
        "dtype": "float32",
        "scaling": {"min_workers": 1, "max_workers": 1},
    }
    return yaml.safe_dump(config)


def health(rack: Rack) -> dict[str, Any]:
    status, body = rack.ask(f"https://{HEAD}/v1/health")
    assert status == 200, body
    return dict(yaml.safe_load(body))


def look(rack: Rack, job: str) -> dict[str, Any]:
    status, body = rack.ask(f"https://{HEAD}/v1/jobs/{job}")
    assert status == 200, body
    return dict(yaml.safe_load(body))
