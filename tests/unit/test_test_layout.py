"""The layout of the tests: each folder has the tests that need what its name says, and shared code is in tests/support."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
SERVERS = {
    "tests.support.databases",
    "tests.support.hub",
    "tests.support.answering",
    "tests.support.running.running",
    "tests.support.wires",
}
"""What starts a database or a network server."""
FIXTURES = {"postgresql_server", "postgresql_url", "database_url", "store", "checkpoint", "engine"}
"""Fixtures of conftest.py that start PostgreSQL or build the embedded checkpoint with torch."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_imports_a_test_file(path: Path) -> None:
    """Shared code is in tests/support."""
    assert [name for name in imports(path) if name.startswith("tests.") and ".test_" in name] == []


@pytest.mark.parametrize("path", sorted((TESTS / "unit").glob("test_*.py")), ids=lambda path: path.name)
def test_unit_tests_need_no_server_and_no_model(path: Path) -> None:
    """They start no PostgreSQL and no HTTP server, and build no checkpoint."""
    tests = [node for node in functions(path) if node.name.startswith("test_")]
    wanted = {argument.arg for node in tests for argument in node.args.args}
    assert [name for name in imports(path) if any(f"{name}.".startswith(f"{server}.") for server in SERVERS)] == []
    assert wanted & FIXTURES <= defines(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_ray_is_started_in_its_folder_only(path: Path) -> None:
    """Tests that start Ray are in tests/ray; code that they share with `make chaos` is in tests/support."""
    if path.is_relative_to(TESTS / "ray") or path.is_relative_to(TESTS / "support"):
        return
    calls = [ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert not {"ray.init", "serve.start", "serve.run", "Cluster"}.intersection(calls)


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree, which all tests share."""
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in parsed(path).body if isinstance(node, ast.FunctionDef))


def defines(path: Path) -> set[str]:
    return {node.name for node in functions(path)}


def imports(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, including inside functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
