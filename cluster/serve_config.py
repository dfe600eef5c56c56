"""Generates the Serve configuration of every place that Sophia is deployed to.

`python cluster/serve_config.py` writes cluster/serve/*.yaml, the block scalars `serveConfigV2` and `serve_config.yaml` of the
Kubernetes files, and the incremental-upgrade variant of the RayService. `--check` writes nothing and fails if a file is out of
date.
"""

import argparse
import re
import sys
from pathlib import Path
from textwrap import indent
from typing import Any, Final

import yaml

from serve_app.weights import DEFAULT_REPOSITORY, DEFAULT_REVISION

CLUSTER: Final = Path(__file__).parent
RTX_4090: Final = {"ray.io/accelerator-type": "GeForce-RTX-4090"}
"""The label that Ray 2.60 gives a node with this card; a node group that starts at zero must be labelled by hand."""

# Where Sophia runs, and with how many workers and API processes.
PLACES: Final[dict[str, dict[str, int]]] = {
    "kubernetes": {"workers": 4, "apis": 2},
    "onprem": {"workers": 2, "apis": 2},
    "compose": {"workers": 1, "apis": 1},
    "skypilot": {"workers": 2, "apis": 1},
}
API_ON: Final = {"kubernetes": {"sophia/role": "api"}}
"""If GPU nodes are added and removed, an API process on one would keep that node running, at its price, or end with it."""
LISTENS: Final = {"skypilot": "127.0.0.1"}
"""A rented pod has no firewall, so Sophia is reached through ssh. Elsewhere the TLS proxy may be on another machine."""

_HEADER: Final = "# Written by cluster/serve_config.py; change it there.\n"
_BLOCK: Final = re.compile(r"^( *)(serveConfigV2|serve_config\.yaml): \|\n(?:\1  .*\n|\n)*", re.MULTILINE)
_STRATEGY: Final = "  upgradeStrategy:\n    type: NewCluster\n"
_INCREMENTAL: Final = """\
  # Needs KubeRay's feature gate RayServiceIncrementalUpgrade and a Gateway API implementation (here Istio's).
  upgradeStrategy:
    type: NewClusterWithIncrementalUpgrade
    clusterUpgradeOptions:
      gatewayClassName: istio
      maxSurgePercent: 25 # the new cluster grows by a quarter of the workers at a time, so that there are never two full fleets
      stepSizePercent: 25
      intervalSeconds: 60
"""


def main() -> int:
    """Write the files that are out of date, or with --check only print their names. Returns 1 if --check found any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args().check
    drifted = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    for path in drifted:
        print(f"{'out of date' if check else 'wrote'}: {path}")
        if not check:
            path.write_text(generated()[path])
    return int(check and bool(drifted))


def generated() -> dict[Path, str]:
    """Each generated file and its text."""
    files = {CLUSTER / "serve" / f"{place}.yaml": _HEADER + _dump(place) for place in PLACES if place != "kubernetes"}
    service = CLUSTER / "kuberay" / "rayservice.yaml"
    weights = CLUSTER / "kuberay" / "weights-daemonset.yaml"
    complete = _filled(service.read_text())
    assert _STRATEGY in complete  # noqa: S101 - otherwise the incremental file would not differ
    return {
        **files,
        service: complete,
        weights: _filled(weights.read_text()),
        service.with_name("rayservice-incremental.yaml"): _HEADER + complete.replace(_STRATEGY, _INCREMENTAL),
    }


def serve_config(place: str) -> dict[str, Any]:
    """The configuration that `serve deploy` takes. Addresses and secrets come from SOPHIA_DATABASE_URL and SOPHIA_ARTIFACTS_URL."""
    return {
        "proxy_location": "HeadOnly" if place in ("compose", "skypilot") else "EveryNode",
        "http_options": {"host": LISTENS.get(place, "0.0.0.0"), "port": 8000},  # noqa: S104 - behind keys, and a firewall or NetworkPolicy
        "logging_config": {"encoding": "JSON", "log_level": "INFO"},
        "applications": [_application(place)],
    }


def _application(place: str) -> dict[str, Any]:
    application: dict[str, Any] = {
        "name": "sophia",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {
            "data_dir": "/var/lib/sophia",
            "models": {"ace-step": _model(place)},
            "api": {"replicas": PLACES[place]["apis"]},
            "auth": {"mode": "keys"},
        },
    }
    if labels := API_ON.get(place):
        actor = {"num_cpus": 0.1, "label_selector": labels}
        application["deployments"] = [{"name": "Api", "ray_actor_options": actor}]
    return application


def _model(place: str) -> dict[str, Any]:
    """The model's settings. Change its scaling here, including the bounds and targets of the autoscaling policy."""
    return {
        "source": DEFAULT_REPOSITORY,
        "revision": DEFAULT_REVISION,
        "variant": "turbo",
        "device": "cuda",
        "dtype": "bfloat16",
        "label_selector": RTX_4090,
        "num_cpus": 1,
        "scaling": {
            "min_workers": 0 if place in ("kubernetes", "skypilot") else 1,
            "max_workers": PLACES[place]["workers"],
        },
    }


def _filled(text: str) -> str:
    """The text with every block scalar of a Serve configuration replaced by the current one for Kubernetes."""

    def block(found: re.Match[str]) -> str:
        margin, key = found.groups()
        return f"{margin}{key}: |\n{indent(_dump('kubernetes'), margin + '  ')}"

    return _BLOCK.sub(block, text)


def _dump(place: str) -> str:
    class Plain(yaml.SafeDumper):
        """Writes repeated values in full, since YAML's anchors are hard to read."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    return yaml.dump(serve_config(place), Dumper=Plain, sort_keys=False)


if __name__ == "__main__":
    sys.exit(main())
