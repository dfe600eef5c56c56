"""docs/OPERATIONS.md: what it tells an operator to type is run here, or checked as far as that goes without the machines."""

import os
import re
import subprocess
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest
import yaml

from benchmarks import image_size
from serve_app import settings
from serve_app.config import AppArgs
from serve_app.errors import ConfigurationError
from serve_app.ops.cli import main
from tests.support.guide import BIN, BLOCKS, GUIDE
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated

pytestmark = pytest.mark.manifests


RUN = [block for run, block in BLOCKS if run == " run"]
"""What runs against a service that works; test_walk.py runs what is marked with more words."""
ALL = [block for _, block in BLOCKS]
NOT_RUN = {
    "apt-get": "no distribution's packages are installed by a test",
    "curl": "it asks a deployment; the blocks under Watch ask a real service the same",
    "docker": "no Docker daemon is here; the file is checked by the Compose specification's schema",
    "git": "it needs the operator's own repository",
    "journalctl": "no systemd runs here",
    "jq": "it may be missing, and reads logs of a Ray cluster",
    "kubectl": "no Kubernetes is here; the objects are checked by Kubernetes' and KubeRay's schemas",
    "make": "it is what runs these tests, or installs this checkout",
    "openssl": "it makes the password that the lines below it take",
    "promtool": "test_monitoring_files.py runs it",
    "python": "test_machine_files.py compares its files",
    "rsync": "it writes over the checkout; join.sh's use of it is in test_operators.py",
    "sky": "no cloud is here; SkyPilot reads the task in test_machine_files.py, and test_operators.py runs its script",
    "ssh": "no other machine is here",
    "cluster/onprem/join.sh": "no other machine is here; test_operators.py runs it towards one that writes down what it is told",
    "systemctl": "no systemd runs here; test_walk.py checks the units that the guide starts",
    "echo": "it adds a line to the distribution's PostgreSQL",
}
"""Every program of the guide that no test starts as it stands there, and why."""


def title(block: str) -> str:
    return block.splitlines()[0][:50]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that wants keys, as every file under cluster/ does, with one finished job."""
    models = {"ace-step": simulated()}
    with running(tmp_path_factory.mktemp("operations"), models, auth={"mode": "keys"}) as service:
        service.client.headers["authorization"] = f"Bearer {service.store.keys.create('operator')}"
        service.store.keys.create("client-2025")  # the old key of "Rotate keys"
        service.ended(service.submit()["id"])
        yield service


@pytest.mark.parametrize("block", RUN, ids=title)
def test_commands_marked_run_work(service: Service, block: str) -> None:
    """Each of them ends well against a running service."""
    key = service.client.headers["authorization"].removeprefix("Bearer ")
    folder = str(service.args.data_dir)
    env = {
        "URL": service.url,
        "KEY": key,
        "DATA": folder,
        "SOPHIA_DATA_DIR": folder,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() or not block.startswith(("curl", "sophia"))


def test_each_command_is_run_or_listed() -> None:
    """A command that is new in the guide is either in a block that a test runs, or here with the reason why it is not."""
    programs = {program(command) for run, block in BLOCKS if not run for command in commands(block)}
    assert programs == NOT_RUN.keys()


def commands(block: str) -> list[str]:
    """A block's commands, continued lines joined, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def program(command: str) -> str:
    """What a command starts, also where a variable takes what it prints."""
    return Path(re.sub(r"^\w+=\$\(", "", command).split()[0]).name if "join.sh" not in command else command.split()[0]


@pytest.mark.parametrize("block", ALL, ids=title)
def test_commands_parse(block: str) -> None:
    """bash reads each block to its end."""
    done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", ALL, ids=title)
def test_files_that_commands_name_exist(block: str) -> None:
    """Every path of ours in a command, and every unit and make target."""
    for path in re.findall(r"(?:/opt/sophia/|\s)((?:cluster|benchmarks)/[\w./*-]*\w)", block):
        made = {"cluster/.env": "cluster/compose.env.example"}
        assert glob(str(ROOT / made.get(path, path))), path
    for unit in re.findall(r"sophia-[a-z-]+\.(?:service|timer)", block):
        assert (ROOT / "cluster" / "onprem" / unit).exists(), unit
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make (?:-C \S+ )?([\w./-]+)$", block, re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize(
    "command", re.findall(r"(?:^|-- |sophia )sophia ((?:--config|keys|jobs|cost).*)$", "\n".join(ALL), re.MULTILINE)
)
def test_sophias_own_commands_are_spelt_right(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line accepts each `sophia …`: the command starts and reads the configuration."""

    def stop(_: Path | None) -> AppArgs:
        raise ConfigurationError("the command has started")

    monkeypatch.setattr(settings, "load_args", stop)
    assert main(command.split()) == 1
    assert "the command has started" in capsys.readouterr().err


def test_names_of_objects_and_alerts_exist() -> None:
    """Alerts, labels and settings that the text relies on are in the files."""
    rules = yaml.safe_load((ROOT / "cluster" / "monitoring" / "rules.yaml").read_text())
    alerts = {rule.get("alert") for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Sophia[A-Z]\w+)`", GUIDE)) <= alerts
    service = (ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text()
    for name in (
        "sophia/part: gpu",
        "sophia/part: api",
        "name: sophia-stores",
        "groupName: rtx4090",
    ):
        assert name in service


def test_the_patch_that_stops_spending_hits_the_gpu_group() -> None:
    """`/spec/rayClusterConfig/workerGroupSpecs/1` is the group of the 4090s."""
    documents = yaml.safe_load_all((ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text())
    service = next(document for document in documents if document["kind"] == "RayService")
    assert "/spec/rayClusterConfig/workerGroupSpecs/1/maxReplicas" in GUIDE
    assert service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["groupName"] == "rtx4090"


def test_the_image_table_is_the_programs() -> None:
    """The table is what benchmarks/image_size.py computes, to within the few MB by which machines differ."""
    shown = re.findall(r"^\| \**([^|*]+?)\**(?: \([^|]*\))? \| \**([\d,]+)\** \|$", GUIDE, re.MULTILINE)
    total = int(dict(shown)["total"].replace(",", ""))
    assert total == pytest.approx(image_size.total_bytes() / 1e6, rel=0.02)
