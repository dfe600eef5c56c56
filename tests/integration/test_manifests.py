"""Every file under cluster/ and .github/workflows/, against the tools and schemas of those who will read it. `make manifests`."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from pydantic import BaseModel
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from benchmarks import image_size
from cluster import serve_config
from serve_app.app import DRAIN_GRACE_S
from serve_app.config import AppArgs
from serve_app.metrics import METRICS
from tests.support import kuberay
from tests.support.paths import ROOT

pytestmark = pytest.mark.manifests

CLUSTER = ROOT / "cluster"
BIN = ROOT / ".venv" / "bin"
KUBERNETES = "1.34"
KUBERNETES_FILES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_SERVICES = [CLUSTER / "kuberay" / f"rayservice{variant}.yaml" for variant in ("", "-incremental")]
UNITS = sorted([*(CLUSTER / "onprem").glob("*.service"), *(CLUSTER / "onprem").glob("*.timer")])
SCRIPTS = sorted(CLUSTER.rglob("*.sh"))
SERVE_CONFIGS = [ROOT / "serve_config.yaml", *sorted((CLUSTER / "serve").glob("*.yaml")), *RAY_SERVICES]


def name(value: Any) -> str:
    return value.name if isinstance(value, Path) else str(value)


# --- How the files are read ---------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def load_all(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def run(command: list[str | Path]) -> str:
    """What a tool said; fails with it when the tool found something."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def need(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here: apt-get install {package}")


def builtin_schema(file: str) -> str:
    return resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", file).read_text()


def ray_service(path: Path) -> dict[str, Any]:
    return next(document for document in load_all(path) if document["kind"] == "RayService")


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


def serve_document(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(ray_service(path)["spec"]["serveConfigV2"]) if path in RAY_SERVICES else load(path)
    assert isinstance(config, dict)
    return config


def unknown_keys(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """The paths of keys that the pydantic model does not have; free-form mappings and `args` are not looked into."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_keys(item, schema, f"{where}{index}.")
    elif isinstance(value, dict) and (model := model_in(schema)) is not None:
        for key, item in value.items():
            field = model.model_fields.get(key)
            if field is None:
                yield f"{where}{key}"
            else:
                yield from unknown_keys(item, field.annotation, f"{where}{key}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model within an annotation such as Optional[List[Model]]; None for a mapping or a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if getattr(annotation, "__origin__", None) is dict:
        return None
    found = [model_in(inner) for inner in getattr(annotation, "__args__", ())]
    return next((model for model in found if model is not None), None)


def settings(unit: Path) -> dict[str, str]:
    """The settings of a unit by name, continued lines joined; the last one where a name comes twice."""
    text = unit.read_text().replace("\\\n", "")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def ports(command: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]*port)=(\d+)", command))


def queries() -> list[tuple[str, str]]:
    """(where, expression) of every panel and every rule, Grafana's own variables filled in."""
    dashboard = json.loads((CLUSTER / "monitoring" / "dashboard.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for group in load(CLUSTER / "monitoring" / "rules.yaml")["groups"]:
        found += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"]]
    return [(where, expr.replace("$__rate_interval", "5m")) for where, expr in found]


# --- Images -------------------------------------------------------------------------------------------------------------


def test_dockerfiles_follow_the_rules() -> None:
    """hadolint finds nothing in either Dockerfile."""
    run([BIN / "hadolint", CLUSTER / "Dockerfile.base", CLUSTER / "Dockerfile"])


def test_dockerfiles_copy_only_what_the_build_context_has() -> None:
    """.dockerignore lets through each path that a COPY names, so that no build fails for a file left out."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for dockerfile in ("Dockerfile.base", "Dockerfile"):
        text = (CLUSTER / dockerfile).read_text()
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
            sources = line.split()[:-1]
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)


def test_the_image_stays_within_its_budget() -> None:
    """The installed wheels, CUDA's among them, stay under the budget that the docs state."""
    assert image_size.total_bytes() < image_size.BUDGET_BYTES
    assert f"{image_size.BUDGET_BYTES / 1e9:.1f} GB" in (ROOT / "docs" / "OPERATIONS.md").read_text()


def test_the_cuda_figures_are_those_of_the_pinned_torch() -> None:
    """Whoever moves torch reads the sizes of its CUDA wheels again."""
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == image_size.TORCH
    assert f"torch=={image_size.TORCH}" in image_size.CUDA


# --- Workflows and compose ----------------------------------------------------------------------------------------------


def test_workflows_are_valid() -> None:
    """actionlint finds nothing: syntax, expressions, contexts, needs, deprecated actions."""
    run([BIN / "actionlint", *sorted((ROOT / ".github" / "workflows").glob("*.yaml"))])


def test_dependabot_reads_its_configuration() -> None:
    """It is valid by the published schema."""
    schema = json.loads(builtin_schema("dependabot.json"))
    jsonschema.Draft7Validator(schema).validate(load(ROOT / ".github" / "dependabot.yml"))


def test_actions_are_pinned_by_commit() -> None:
    """A tag can be moved to other code; a commit cannot."""
    for workflow in sorted((ROOT / ".github" / "workflows").glob("*.yaml")):
        for action in re.findall(r"uses: (?!\./)(\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), f"{workflow.name}: {action}"


def test_the_compose_file_fits_the_specification() -> None:
    """It is valid by the Compose specification's schema."""
    schema = json.loads(builtin_schema("compose-spec.json"))
    jsonschema.Draft202012Validator(schema).validate(load(CLUSTER / "compose.yaml"))


def test_compose_names_each_variable_that_it_needs_in_the_example() -> None:
    """cluster/compose.env.example has every ${VARIABLE} of the compose file, and no value for a secret."""
    wanted = set(re.findall(r"\$\{(\w+)", (CLUSTER / "compose.yaml").read_text()))
    lines = (CLUSTER / "compose.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert wanted == given.keys()
    assert {key: value for key, value in given.items() if value} == {"SOPHIA_IMAGE": given["SOPHIA_IMAGE"]}


# --- Kubernetes ---------------------------------------------------------------------------------------------------------


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


# --- Serve configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=name)
def test_serve_configurations_are_valid_and_have_no_unknown_key(path: Path) -> None:
    """Serve ignores unknown keys, so they are looked for here; `args` are validated by AppArgs, which refuses them."""
    config = serve_document(path)
    ServeDeploySchema.model_validate(config)
    assert list(unknown_keys(config, ServeDeploySchema)) == []
    for application in config["applications"]:
        AppArgs.model_validate(application["args"])


def test_an_unknown_key_is_found() -> None:
    """The walk does find a misspelt key, at any depth."""
    config = serve_config.serve_config("kubernetes")
    config["applications"][0]["deployments"][0]["num_replica"] = 3
    config["proxy_locaton"] = "HeadOnly"
    found = list(unknown_keys(config, ServeDeploySchema))
    assert found == ["applications.0.deployments.0.num_replica", "proxy_locaton"]


def test_generated_files_have_not_drifted() -> None:
    """Every generated file is what cluster/serve_config.py writes today."""
    assert [str(path) for path, text in serve_config.generated().items() if path.read_text() != text] == []


# --- Plain machines -----------------------------------------------------------------------------------------------------


def test_the_ray_up_file_fits_rays_own_schema() -> None:
    """`ray up` accepts cluster/onprem/cluster.yaml."""
    validate_config(prepare_config(load(CLUSTER / "onprem" / "cluster.yaml")))


def test_ray_up_and_systemd_open_the_same_ports() -> None:
    """Both ways to start a node fix the same ports, so that one firewall fits both."""
    config = load(CLUSTER / "onprem" / "cluster.yaml")
    for kind in ("head", "worker"):
        unit = ports(settings(CLUSTER / "onprem" / f"sophia-ray-{kind}.service")["ExecStart"])
        assert ports(" ".join(config[f"{kind}_start_ray_commands"])) == unit
        assert unit


def test_systemd_units_are_valid(tmp_path: Path) -> None:
    """systemd-analyze verify finds nothing, with the programs where this checkout has them."""
    need("systemd-analyze", "systemd")
    for unit in UNITS:
        text = (
            unit.read_text().replace("/opt/sophia/cluster", str(CLUSTER)).replace("/opt/sophia/.venv/bin", "/usr/bin")
        )
        text = re.sub(r"^(Exec\w+=)/usr/bin/\w+", r"\1/bin/true", text, flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    shown = run(["systemd-analyze", "verify", *(tmp_path / unit.name for unit in UNITS)])
    assert shown == ""


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=name)
def test_systemd_units_hold_no_secret_and_no_right(unit: Path) -> None:
    """The Ray token comes as a credential, and the service can gain no right."""
    found = settings(unit)
    if unit.name == "sophia-firewall.service":
        assert "User" not in found
        assert (found["NoNewPrivileges"], found["CapabilityBoundingSet"]) == ("yes", "CAP_NET_ADMIN")
    elif unit.name == "sophia-tls.service":
        assert (found["DynamicUser"], found["NoNewPrivileges"]) == ("yes", "yes")
        assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    else:
        assert (found["User"], found["NoNewPrivileges"], found["CapabilityBoundingSet"]) == ("sophia", "yes", "")
    assert not re.search(r"(TOKEN|PASSWORD)=(?!%d|/)", unit.read_text())


def test_the_firewall_is_valid() -> None:
    """nft accepts the rules (checked, not loaded)."""
    need("nft", "nftables")
    run(["nft", "--check", "--file", CLUSTER / "onprem" / "sophia.nft"])


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_scripts_parse(script: Path) -> None:
    """sh reads each script to its end, and may execute it."""
    run(["sh", "-n", script])
    assert os.access(script, os.X_OK)


def test_the_skypilot_task_is_valid() -> None:
    """SkyPilot reads the task (its own environment, as its pins do not fit ours), and its shell parses."""
    task = load(CLUSTER / "skypilot.yaml")
    for step in ("setup", "run"):
        run(["bash", "-n", "-c", task[step]])
    served = serve_config.serve_config("skypilot")["applications"][0]["args"]["models"]["ace-step"]
    assert task["num_nodes"] * int(task["resources"]["accelerators"].split(":")[1]) == served["scaling"]["max_workers"]
    assert task["resources"]["autostop"]["down"] is True
    sky = ROOT / ".venv-skypilot" / "bin" / "python"
    if not sky.exists():
        pytest.skip("SkyPilot itself is not here: make .venv-skypilot/installed")
    run([sky, "-c", "import sky; sky.Task.from_yaml('cluster/skypilot.yaml')"])


# --- Monitoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expr"), queries(), ids=name)
def test_each_query_names_a_metric_that_exists(where: str, expr: str) -> None:
    """Each panel and rule is valid PromQL over metrics and tags that serve_app/metrics.py has."""
    promql_parser.parse(expr)
    known = {exported: metric for metric in METRICS for exported in metric.exported}
    named = set(re.findall(r"\bray_\w+", expr))
    assert named
    assert named <= known.keys()
    tags = {tag for each in named for tag in known[each].tags} | {"le", "instance", "replica"}
    grouped = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for tag in group.split(",")}
    assert grouped | set(re.findall(r"[{,]\s*(\w+)\s*=", expr)) <= tags


def test_each_metric_is_looked_at_somewhere() -> None:
    """No metric is told for nobody."""
    text = " ".join(expr for _, expr in queries())
    assert [metric.name for metric in METRICS if not any(exported in text for exported in metric.exported)] == []


def test_each_old_failure_raises_its_alert() -> None:
    """promtool accepts rules and configuration, and the rules' own tests pass."""
    need("promtool", "prometheus")
    run(["promtool", "check", "rules", CLUSTER / "monitoring" / "rules.yaml"])
    run(["promtool", "check", "config", CLUSTER / "monitoring" / "prometheus.yaml"])
    run(["promtool", "test", "rules", CLUSTER / "monitoring" / "rules_test.yaml"])
