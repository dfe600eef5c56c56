"""The files under cluster/: volumes, units, network policies, proxies, the firewall and the image."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.cluster_files import (
    CLUSTER,
    ONPREM,
    compose,
    connections_needed,
    documents,
    example_settings,
    unit,
)
from tests.support.guide import GUIDE


@pytest.mark.fault("E8")
def test_each_volume_of_compose_belongs_to_the_user_that_writes_it() -> None:
    """A service with its own user starts after the step that makes that user own its new volume."""
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
    for folder in (urlsplit(example_settings()["SOPHIA_ARTIFACTS_URL"]).path, example_settings()["HOME"]):
        assert any(Path(folder).is_relative_to(path) for path in writable)


@pytest.mark.fault("E11")
def test_each_port_of_the_guide_is_let_out() -> None:
    """The network policies allow the destinations in the guide's table."""
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
    """The ports that a policy allows to any address."""
    return {port["port"] for rule in policy["egress"] if "to" not in rule for port in rule["ports"]}


@pytest.mark.fault("E16")
def test_a_proxy_of_docker_or_kubernetes_is_not_asked_for_what_is_inside() -> None:
    """NO_PROXY of every container and Ray pod names loopback and the services beside it."""
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
    """The units and sophia.env.example exempt loopback from the proxy, and the example also the head."""
    for variable in ("NO_PROXY", "no_proxy"):
        assert f"{variable}=127.0.0.1,localhost" in unit(name)["Environment"]
        assert {"127.0.0.1", "localhost", example_settings()["SOPHIA_HEAD_IP"]} <= set(
            example_settings()[variable].split(",")
        )


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
def test_the_guides_examples_are_its_formula() -> None:
    """The guide's examples follow from its formula, and stores.yaml allows the whole GPU group twice during an upgrade."""
    postgres = next(
        each for each in documents("kuberay/stores.yaml") if "postgres" in str(each.get("spec", {}).get("template"))
    )
    arguments = postgres["spec"]["template"]["spec"]["containers"][0]["args"]
    limit = int(arguments[1].removeprefix("max_connections="))
    service = next(each for each in documents("kuberay/rayservice.yaml") if each["kind"] == "RayService")
    api, gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert connections_needed(workers=gpu["maxReplicas"], apis=api["maxReplicas"]) <= limit
    told = re.search(
        r"enough for (\d+) workers? with 2 API .*?; the (\d+) of .*? for (\d+); (\d+) GPUs\s+need (\d+)",
        GUIDE,
        re.DOTALL,
    )
    assert told is not None
    few, of_stores, many, fleet, wanted = map(int, told.groups())
    assert of_stores == limit
    assert connections_needed(workers=few, apis=2) <= 100 < connections_needed(workers=few + 1, apis=2)
    assert connections_needed(workers=many, apis=2) <= limit < connections_needed(workers=many + 1, apis=2)
    assert connections_needed(workers=fleet, apis=2) == wanted


@pytest.mark.fault("E25")
def test_no_node_autoscaler_cuts_a_song() -> None:
    """GPU pods ask node autoscalers not to evict them, and the guide names the grace period for those that do."""
    service = next(each for each in documents("kuberay/rayservice.yaml") if each["kind"] == "RayService")
    gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]
    assert gpu["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    assert f"--max-graceful-termination-sec={gpu['spec']['terminationGracePeriodSeconds']}" in GUIDE


@pytest.mark.fault("E28")
def test_a_machine_that_joins_gets_the_database_password_and_looks_for_weights_at_boot() -> None:
    """join.sh copies .pgpass, and the weights' timer runs soon after each boot."""
    assert example_settings()["PGPASSFILE"] in (ONPREM / "join.sh").read_text()
    assert unit("sophia-weights.timer")["OnBootSec"] == ["1min"]


@pytest.mark.fault("E33")
def test_docker_stop_of_the_image_drains() -> None:
    """The image's stop signal is the one on which `serve run` finishes running jobs."""
    assert "STOPSIGNAL SIGINT" in (CLUSTER / "Dockerfile").read_text().splitlines()
