"""TLS in front of Sophia in every deployment; the shared Caddyfile runs before a real service."""

import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import yaml

from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated

pytestmark = pytest.mark.fault("B12")

CLUSTER = ROOT / "cluster"
CADDYFILE = CLUSTER / "caddy" / "Caddyfile"


@dataclass
class Proxy:
    """A running Caddy: a client that trusts its CA and has Sophia's key, and its address without TLS."""

    client: httpx.Client
    plain_url: str


def is_certified(port: int, root: Path) -> bool:
    """Whether TLS works there yet: Caddy listens before it has created its certificate."""
    trust = ssl.create_default_context(cafile=str(root))
    try:
        with socket.create_connection(("localhost", port), 5) as connection:
            trust.wrap_socket(connection, server_hostname="localhost").close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def caddy() -> str:
    """The program."""
    found = shutil.which("caddy")
    if found is None:
        pytest.skip("caddy is not here: apt-get install caddy")
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Sophia on loopback, with a key required."""
    models = {"ace-step": simulated(step_s=0.1)}
    with running(
        tmp_path_factory.mktemp("behind"), models, auth={"mode": "keys"}, api={"leave_grace_s": 0.1}
    ) as service:
        service.client.headers["authorization"] = f"Bearer {service.store.keys.create('test')}"
        yield service


@pytest.fixture(scope="module")
def proxy(caddy: str, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Caddy in front of that service, with the deployments' Caddyfile."""
    folder = tmp_path_factory.mktemp("caddy")
    https = free_port()
    http = free_port()
    env = environment(folder) | {
        "TLS_UPSTREAMS": service.url.removeprefix("http://"),
        "TLS_HTTPS_PORT": str(https),
        "TLS_HTTP_PORT": str(http),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [caddy, "run", "--adapter", "caddyfile", "--config", CADDYFILE], env=env, stdout=log, stderr=log
        )
    root = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    try:
        eventually(lambda: root.exists() and is_certified(https, root))
        trust = ssl.create_default_context(cafile=str(root))
        key = {"authorization": service.client.headers["authorization"]}
        url = f"https://localhost:{https}"
        with httpx.Client(base_url=url, verify=trust, headers=key, timeout=60) as client:
            yield Proxy(client, f"http://localhost:{http}")
    finally:
        process.terminate()
        process.wait()


def environment(folder: Path) -> dict[str, str]:
    """The environment in which Caddy keeps its files in our folder."""
    return {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PATH": os.defpath}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- Caddy itself ---------------------------------------------------------------------------------------------------------


def test_a_song_comes_over_tls(proxy: Proxy) -> None:
    """A client of the TLS address gets the whole file, and part of it by a range."""
    song = proxy.client.post("/v1/music", json={"prompt": "piano", "duration": 3, "format": "flac"})
    assert song.status_code == 200, song.text
    samples, rate = soundfile.read(io.BytesIO(song.content))
    assert (rate, len(samples)) == (48_000, 3 * 48_000)
    part = proxy.client.get(song.headers["content-location"], headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, song.content[10:20])


def test_the_key_is_asked_for_behind_the_proxy(proxy: Proxy) -> None:
    """A request without the key gets 401, although the proxy is on loopback."""
    answer = proxy.client.get("/v1/jobs", headers={"authorization": "Bearer wrong"})
    assert answer.status_code == 401


def test_events_pass_as_they_come(proxy: Proxy, service: Service) -> None:
    """A follower gets the first progress event while the job still runs."""
    job = service.submit(steps=40)["id"]
    with proxy.client.stream("GET", f"/v1/jobs/{job}/events") as events:
        lines = events.iter_lines()
        next(line for line in lines if line == "event: progress")
        assert service.job(job)["state"] == "running"
        assert [line for line in lines if line.startswith("event: ")][-1] == "event: done"


def test_a_caller_who_leaves_cancels_the_song(proxy: Proxy, service: Service) -> None:
    """A client that disconnects from the proxy cancels the job that only it waited for."""
    left = eventually(lambda: _leave(proxy, service))
    assert service.ended(left)["state"] == "cancelled"


def _leave(proxy: Proxy, service: Service) -> str | None:
    """Ask for a song and hang up. Returns the id of its job, if there was one by then."""
    with pytest.raises(httpx.ReadTimeout):
        proxy.client.post("/v1/music", json={"prompt": "to be left", "steps": 200, "duration": 2}, timeout=1.5)
    newest = service.client.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]
    return str(newest["id"]) if newest["request"]["prompt"] == "to be left" else None


def test_plain_http_only_shows_the_way(proxy: Proxy, service: Service) -> None:
    """The port without TLS redirects every address to the one with TLS."""
    answer = httpx.get(f"{proxy.plain_url}/v1/health", headers=dict(service.client.headers), follow_redirects=False)
    assert answer.status_code == 308
    assert answer.headers["location"].startswith("https://localhost")
    assert answer.content == b""


def test_caddy_cuts_no_long_answer_and_has_no_open_admin_port(caddy: str, tmp_path: Path) -> None:
    """The Caddyfile sets no limit on an answer and closes idle connections before Serve does."""
    command = [caddy, "adapt", "--adapter", "caddyfile", "--config", str(CADDYFILE)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=True)
    config = json.loads(done.stdout)
    assert config["admin"] == {"disabled": True}
    assert not {"read_timeout", "write_timeout", "response_header_timeout", "flush_interval"} & keys_in(config)
    assert nanoseconds(config, "keep_alive") < 90e9


def keys_in(value: Any) -> set[str]:
    """Every key at any depth."""
    if isinstance(value, list):
        return {key for each in value for key in keys_in(each)}
    if isinstance(value, dict):
        return value.keys() | {key for each in value.values() for key in keys_in(each)}
    return set()


def nanoseconds(config: dict[str, Any], key: str) -> float:
    found = re.search(rf'"{key}": {{"idle_timeout": (\d+)}}', json.dumps(config))
    assert found is not None
    return float(found[1])


# --- Where it stands in each deployment -----------------------------------------------------------------------------------


def load(path: str) -> Any:
    return yaml.safe_load((CLUSTER / path).read_text())


def test_compose_publishes_nothing_but_caddy_beyond_loopback() -> None:
    """Only Caddy's ports are public; Sophia, Prometheus and Grafana listen on 127.0.0.1."""
    services = load("compose.yaml")["services"]
    published = {(name, port) for name, each in services.items() for port in each.get("ports", ())}
    beyond = {(name, port) for name, port in published if not port.startswith("127.0.0.1:")}
    assert beyond == {("caddy", "80:80"), ("caddy", "443:443")}
    assert services["caddy"]["environment"]["TLS_UPSTREAMS"] == "sophia:8000"
    assert "./caddy/Caddyfile:/etc/caddy/Caddyfile:ro" in services["caddy"]["volumes"]


def test_the_firewall_of_plain_machines_opens_tls_and_not_sophia() -> None:
    """Strangers reach ssh, TLS and its redirect; port 8000 is for machines of the cluster."""
    rules = (CLUSTER / "onprem" / "sophia.nft").read_text()
    to_all = [line.strip() for line in rules.splitlines() if "dport" in line and "saddr" not in line]
    assert to_all == ["tcp dport { 22, 80, 443 } accept"]


def test_the_tls_unit_runs_the_shared_file() -> None:
    """The TLS unit of plain machines uses the same Caddyfile and has none of Sophia's secrets."""
    unit = (CLUSTER / "onprem" / "sophia-tls.service").read_text()
    assert "--config /opt/sophia/cluster/caddy/Caddyfile" in unit
    assert "sophia.env" not in unit
    assert "ray-token" not in unit
    example = (CLUSTER / "onprem" / "tls.env.example").read_text()
    wanted = re.findall(r"\{\$(TLS_\w+)", CADDYFILE.read_text())
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) <= set(wanted)


def test_a_rented_pod_opens_no_port() -> None:
    """Sophia listens on the pod's loopback, and the task opens no port, so it is reached by ssh."""
    assert "ports" not in load("skypilot.yaml")["resources"]
    assert load("serve/skypilot.yaml")["http_options"]["host"] == "127.0.0.1"


def test_the_ingress_has_tls_for_each_of_its_hosts() -> None:
    """Every host of the Ingress has a certificate, leads to Serve's service, and may answer for over an hour."""
    ingress = load("kuberay/ingress.yaml")
    hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
    with_tls = {host for entry in ingress["spec"]["tls"] if entry["secretName"] for host in entry["hosts"]}
    assert hosts == with_tls
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            assert path["backend"]["service"] == {"name": "sophia-serve-svc", "port": {"number": 8000}}
    annotations = ingress["metadata"]["annotations"]
    assert annotations["traefik.ingress.kubernetes.io/router.entrypoints"] == "websecure"
