"""KubeRay's own schemas: its CustomResourceDefinitions, made as strict as `kubectl apply --validate=strict` is."""

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT

CRDS: Final = Path(os.environ.get("SOPHIA_TEST_KUBERAY_CRDS", ROOT.parent / "shared" / "contracts" / "kuberay"))
"""The folder with `ray.io_rayservices.yaml` and its like, from KubeRay's helm chart (`helm-chart/kuberay-operator/crds`)."""


def validate(document: dict[str, Any], kubernetes: str) -> None:
    """Raise `jsonschema.ValidationError` for a `ray.io` object that KubeRay's API would refuse or of which it would drop a field.

    Skips the test where the definitions are not at hand. The CRDs' CEL rules are not evaluated.
    """
    group, _, version = document["apiVersion"].partition("/")
    path = CRDS / f"{group}_{document['kind'].lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not here: put KubeRay's CRDs there, or name their folder in SOPHIA_TEST_KUBERAY_CRDS")
    jsonschema.Draft202012Validator(_schema(path, version)).validate(document)
    # The CRD leaves `metadata` open, as the API server checks it for every kind alike.
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    kubernetes_validate.validate(bare, kubernetes, strict=True)


@cache
def _schema(path: Path, version: str) -> dict[str, Any]:
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)  # as safe as safe_load, and ten times as fast
    versions = {each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]}
    return _strict(versions[version])


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a structural schema, in which a field that the API server would prune is an error."""
    strict = dict(schema)
    if schema.get("nullable"):
        strict["type"] = [schema["type"], "null"]
    if "properties" in schema:
        strict["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            strict[inner] = _strict(schema[inner])
    return strict
