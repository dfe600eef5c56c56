"""Reads the files under cluster/ and runs the tools that check them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
BIN = ROOT / ".venv" / "bin"
RAY_SERVICES = [CLUSTER / "kuberay" / f"rayservice{variant}.yaml" for variant in ("", "-incremental")]


def name(value: Any) -> str:
    return value.name if isinstance(value, Path) else str(value)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def load_all(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def run(command: list[str | Path]) -> str:
    """Runs a tool and returns its output. Fails with that output when the tool finds something."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def need(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here: apt-get install {package}")


def ray_service(path: Path) -> dict[str, Any]:
    return next(document for document in load_all(path) if document["kind"] == "RayService")


def settings(unit: Path) -> dict[str, str]:
    """The settings of a unit by name, with continued lines joined; the last value counts."""
    text = unit.read_text().replace("\\\n", "")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
