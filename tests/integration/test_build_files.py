"""Dockerfiles, workflows and compose.yaml, against their linters and schemas. `make manifests`."""

import json
import re
import tomllib
from importlib import resources

import jsonschema
import pytest

from benchmarks import image_size
from tests.support.manifests import BIN, CLUSTER, load, run
from tests.support.paths import ROOT

pytestmark = pytest.mark.manifests


def builtin_schema(file: str) -> str:
    return resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", file).read_text()


def test_dockerfiles_follow_the_rules() -> None:
    """hadolint finds nothing in either Dockerfile."""
    run([BIN / "hadolint", CLUSTER / "Dockerfile.base", CLUSTER / "Dockerfile"])


def test_dockerfiles_copy_only_what_the_build_context_has() -> None:
    """.dockerignore admits every path that a COPY names."""
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


def test_a_new_version_alone_needs_no_new_base_image() -> None:
    """pyproject.toml, whose content names the base image, does not contain Sophia's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "pyproject.toml" in (ROOT / ".github" / "workflows" / "images.yaml").read_text()
    assert ("version" in project, project["dynamic"]) == (False, ["version"])


def test_the_cuda_figures_are_those_of_the_pinned_torch() -> None:
    """The recorded sizes of CUDA wheels belong to the pinned torch version."""
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == image_size.TORCH
    assert f"torch=={image_size.TORCH}" in image_size.CUDA


def test_workflows_are_valid() -> None:
    """actionlint finds nothing: syntax, expressions, contexts, needs, deprecated actions."""
    run([BIN / "actionlint", *sorted((ROOT / ".github" / "workflows").glob("*.yaml"))])


def test_dependabot_reads_its_configuration() -> None:
    """Dependabot's configuration is valid by its published schema."""
    schema = json.loads(builtin_schema("dependabot.json"))
    jsonschema.Draft7Validator(schema).validate(load(ROOT / ".github" / "dependabot.yml"))


def test_actions_are_pinned_by_commit() -> None:
    """Every action is pinned by commit, since a tag can be moved to other code."""
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
