"""The files under cluster/kuberay, against the published schemas. `make manifests`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from cluster import serve_config
from serve_app.app import DRAIN_GRACE_S
from serve_app.config import AppArgs
from tests.support import kuberay
from tests.support.manifests import CLUSTER, RAY_SERVICES, load, load_all, name, ray_service, settings

pytestmark = pytest.mark.manifests
KUBERNETES = "1.34"
KUBERNETES_FILES = sorted((CLUSTER / "kuberay").glob("*.yaml"))


def ray_pods(path: Path) -> list[dict[str, Any]]:
    """The pod templates of a RayService: the head's, then the groups'."""
    cluster = ray_service(path)["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def pods(path: Path) -> Iterator[dict[str, Any]]:
    """The spec of every pod that a file describes."""
    for document in load_all(path):
        if document["kind"] == "RayService":
            yield from (template["spec"] for template in ray_pods(path))
        elif template := document.get("spec", {}).get("template"):
            yield template["spec"]


def drain_s(place: str) -> float:
    """How long Serve waits for a worker of a place that ends its job."""
    args = serve_config.serve_config(place)["applications"][0]["args"]
    return AppArgs.model_validate(args).queue.run_limit_s + DRAIN_GRACE_S


@pytest.mark.parametrize("path", KUBERNETES_FILES, ids=name)
def test_kubernetes_objects_fit_the_published_schemas(path: Path) -> None:
    """Kubernetes' own kinds by its strict schemas, KubeRay's by its own CRDs; unknown fields are refused."""
    for document in load_all(path):
        if document["apiVersion"].startswith("ray.io/"):
            kuberay.validate(document, KUBERNETES)
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rayClusterConfig.workerGroupSpecs.1.minReplica", 0),
        ("spec.rayClusterConfig.workerGroupSpecs.1.minReplicas", "none"),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.imagePullPolice", "Always"),
        ("spec.rayClusterConfig.headGroupSpec.template.metadata.label", {}),
        ("spec.rayClusterConfig.workerGroupSpecs.1.template.spec.containers.0.resources.limit", {}),
        ("spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.keys", "x"),
        ("spec.rayClusterConfig.autoscalerOptions.version", "v3"),
        ("spec.rayClusterConfig.rayVersion", 2.6),
        ("spec.serveConfig", ""),
        ("metadata.label", {}),
    ],
)
def test_a_wrong_ray_service_is_refused(path: str, value: Any) -> None:
    """A field that KubeRay would drop or reject is found, at any depth of our own file."""
    document = ray_service(RAY_SERVICES[0])
    place: Any = document
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kuberay.validate(document, KUBERNETES)


@pytest.mark.parametrize("path", KUBERNETES_FILES, ids=name)
def test_every_container_is_locked(path: Path) -> None:
    """Non-root (but for the one step that hands the cache over), no new rights, read-only root, no more rights than named."""
    for pod in pods(path):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            locked = container["securityContext"]
            assert locked["allowPrivilegeEscalation"] is False
            assert locked["readOnlyRootFilesystem"] is True
            assert locked["capabilities"]["drop"] == ["ALL"]
            if container["name"] == "own-cache":
                assert locked["capabilities"]["add"] == ["CHOWN"]
            else:
                assert "add" not in locked["capabilities"]
                assert locked.get("runAsUser") != 0
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("path", KUBERNETES_FILES, ids=name)
def test_secrets_are_referred_to_and_never_written(path: Path) -> None:
    """What is named like a secret has a reference for a value, and no Secret object is in any file."""
    assert not [document for document in load_all(path) if document["kind"] == "Secret"]
    for pod in pods(path):
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            for variable in container.get("env", ()):
                if re.search("PASSWORD|TOKEN|SECRET|KEY|DATABASE_URL", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("path", RAY_SERVICES, ids=name)
def test_the_ray_cluster_is_as_the_design_wants_it(path: Path) -> None:
    """Autoscaler v2, nothing of ours on the head, GCS fault tolerance, token authentication, GPU pods from zero with the label."""
    cluster = ray_service(path)["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    gpu = groups["rtx4090"]
    served = serve_config.serve_config("kubernetes")["applications"][0]
    # The operator itself checks this word; its CRD takes any.
    assert ray_service(path)["spec"]["upgradeStrategy"]["type"] in ("NewCluster", "NewClusterWithIncrementalUpgrade")
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (gpu["replicas"], gpu["minReplicas"]) == (0, 0)
    assert gpu["maxReplicas"] >= served["args"]["models"]["ace-step"]["scaling"]["max_workers"]
    assert gpu["labels"] == served["args"]["models"]["ace-step"]["label_selector"]
    assert groups["api"]["labels"] == served["deployments"][0]["ray_actor_options"]["label_selector"]


def test_only_the_named_reach_each_port() -> None:
    """The NetworkPolicy lets clients reach 8000 only; dashboard, GCS, client and metrics ports are closed to others."""
    policy = next(each for each in load_all(RAY_SERVICES[0]) if each["metadata"]["name"] == "sophia-ray")
    ours = policy["spec"]["podSelector"]
    reach: dict[str, list[int]] = {}
    for rule in policy["spec"]["ingress"]:
        for source in rule["from"]:
            if source != {"podSelector": ours}:
                namespace = source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                reach.setdefault(namespace, []).extend(port["port"] for port in rule["ports"])
    assert reach == {"traefik": [8000], "kuberay-operator": [8265, 8000], "monitoring": [8080]}
    for group in ray_pods(RAY_SERVICES[0]):
        assert group["metadata"]["labels"].items() >= ours["matchLabels"].items()


@pytest.mark.fault("E24")
def test_each_disruption_budget_selects_pods_and_can_be_enforced() -> None:
    """Pods of an owner without a scale subresource may only be budgeted by a whole number that stays; GPU pods have no budget."""
    labels = [template["metadata"]["labels"] for template in ray_pods(RAY_SERVICES[0])]
    budgets = [each["spec"] for each in load_all(RAY_SERVICES[0]) if each["kind"] == "PodDisruptionBudget"]
    parts = sorted(budget["selector"]["matchLabels"]["sophia/part"] for budget in budgets)
    assert parts == ["api", "head"]
    for budget in budgets:
        assert isinstance(budget["minAvailable"], int)
        assert "maxUnavailable" not in budget
        assert [pod for pod in labels if pod.items() >= budget["selector"]["matchLabels"].items()]
    groups = ray_service(RAY_SERVICES[0])["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    api = next(group for group in groups if group["groupName"] == "api")
    stays = next(each["minAvailable"] for each in budgets if each["selector"]["matchLabels"]["sophia/part"] == "api")
    assert stays < api["minReplicas"]  # else a drain of its node would wait for ever


def test_nothing_is_killed_before_the_longest_job_has_ended() -> None:
    """Pod, unit, container and old cluster all get more time than Serve gives a worker that ends its job."""
    service = ray_service(RAY_SERVICES[0])["spec"]
    gpu = service["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]
    compose = load(CLUSTER / "compose.yaml")["services"]["sophia"]
    units = [settings(CLUSTER / "onprem" / f"sophia-ray-{kind}.service") for kind in ("head", "worker")]
    assert gpu["terminationGracePeriodSeconds"] > drain_s("kubernetes")
    assert service["rayClusterDeletionDelaySeconds"] > drain_s("kubernetes")
    assert int(compose["stop_grace_period"].removesuffix("s")) > drain_s("compose")
    assert all(int(unit["TimeoutStopSec"]) > drain_s("onprem") for unit in units)
