"""Serve configurations, and files for plain machines, Ray up and SkyPilot, against their readers. `make manifests`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from cluster import serve_config
from serve_app.config import AppArgs
from tests.support.manifests import CLUSTER, RAY_SERVICES, load, name, need, ray_service, run, settings
from tests.support.paths import ROOT

pytestmark = pytest.mark.manifests
UNITS = sorted([*(CLUSTER / "onprem").glob("*.service"), *(CLUSTER / "onprem").glob("*.timer")])
SCRIPTS = sorted(CLUSTER.rglob("*.sh"))
SERVE_CONFIGS = [ROOT / "serve_config.yaml", *sorted((CLUSTER / "serve").glob("*.yaml")), *RAY_SERVICES]


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


def ports(command: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]*port)=(\d+)", command))


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
