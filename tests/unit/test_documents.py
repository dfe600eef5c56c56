"""Documents that repeat the code agree with it."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.support import metrics_table
from tests.support.paths import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_list_of_layers_is_the_import_contracts() -> None:
    """ARCHITECTURE.md shows the layers that lint-imports checks, in their order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    (shown,) = re.findall(r"^```\n(app > .*?)^```", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE | re.DOTALL)
    assert " ".join(shown.split()) == " > ".join(layers).replace("serve_app.", "")


def test_the_metrics_page_is_current() -> None:
    """docs/METRICS.md is what `python -m tests.support.metrics_table` writes."""
    assert metrics_table.FILE.read_text() == metrics_table.page()


@pytest.mark.fault("E22")
def test_a_deploy_that_closes_the_breaker_is_said_to_be_a_changed_one() -> None:
    """Every text that offers a deploy beside `sophia reset` says that the deploy must change something."""
    found = 0
    for path in [*DOCUMENTS, *(ROOT / "serve_app").rglob("*.py")]:
        text = " ".join(path.read_text().split())
        for reset in re.finditer("sophia reset", text):
            around = text[max(0, reset.start() - 200) : reset.end() + 200]
            assert "deploy" not in around or re.search(r"chang|differs", around), f"{path}: {around}"
            found += "deploy" in around
    assert found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the repository names an existing file."""
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    """Every path in backticks that begins with one of our folders exists, except those marked as to be made."""
    text = path.read_text()
    for name in re.findall(
        r"`((?:serve_app|tests|cluster|benchmarks|miniature|docs)/[\w./-]*)`(?! \(to be made\))", text
    ):
        assert (ROOT / name).exists(), name
    for name in re.findall(
        r"`((?:api|background|worker|engine|weights|audio|store|scaling|music|ops)/[\w/]*\.py)`", text
    ):
        assert (ROOT / "serve_app" / name).exists(), name


def test_alerts_refer_to_existing_sections() -> None:
    """Every page and section of docs/ that an alert or a dashboard panel names exists."""
    monitoring = ROOT / "cluster" / "monitoring"
    texts = [(monitoring / name).read_text() for name in ("rules.yaml", "dashboard.json")]
    named = [match for text in texts for match in re.findall(r'(docs/\w+\.md)(?:, "([^"]+)")?', text)]
    assert named
    for page, section in named:
        document = (ROOT / page).read_text()
        assert not section or re.search(rf"^(#+ |\* \*\*){re.escape(section)}\b", document, re.MULTILINE), (
            page,
            section,
        )


def test_every_test_that_a_document_names_exists() -> None:
    """`tests/….py::test_…` in a document names a test that there is."""
    named = {
        (file, test)
        for path in DOCUMENTS
        for file, test in re.findall(r"(tests/[a-z_/]+\.py)::(test_\w+)", path.read_text())
    }

    assert named
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert not missing
