"""The files under cluster/, and what the operations guide says about them."""

import re
from typing import Any, Final

import yaml

from tests.support.guide import GUIDE
from tests.support.paths import ROOT

CLUSTER: Final = ROOT / "cluster"
ONPREM: Final = CLUSTER / "onprem"


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a systemd unit under cluster/onprem: all values of each, in order."""
    found: dict[str, list[str]] = {}
    for line in (ONPREM / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", " ")):
            found.setdefault(key, []).append(value)
    return found


def example_settings() -> dict[str, str]:
    """The variables of sophia.env.example."""
    lines = (ONPREM / "sophia.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def documents(path: str) -> list[dict[str, Any]]:
    """The YAML documents of a file under cluster/."""
    return list(yaml.safe_load_all((CLUSTER / path).read_text()))


def compose() -> dict[str, Any]:
    """The services of compose.yaml, by name."""
    return dict(yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"])


def connection_counts() -> dict[str, int]:
    """The most connections that a worker and an API process hold, as the operations guide says."""
    found = re.search(r"A worker holds at most (\d+), an API process at most (\d+)", GUIDE)
    assert found is not None
    return {"worker": int(found[1]), "api": int(found[2])}


def connections_needed(workers: int, apis: int) -> int:
    """The connections that PostgreSQL must allow, by the guide's formula, for one model."""
    assert "\n2 x (4 x workers + 19 x API processes + models) + 10\n" in GUIDE
    return 2 * (connection_counts()["worker"] * workers + connection_counts()["api"] * apis + 1) + 10
