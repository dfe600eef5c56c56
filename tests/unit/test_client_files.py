"""The files of the client package that are written from others, and what importing it costs."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import serve_app
import sophia_client
from sophia_client.errors import ConnectionLost, InvalidRequest, SophiaError, TooManyRequests, Unavailable
from sophia_client.retries import Patience, Retries
from tests.support import client_models, sync_client
from tests.support.paths import ROOT


def test_the_answers_and_fields_are_the_services_own() -> None:
    """Both files are what `python -m tests.support.client_models` writes."""
    for path, text in client_models.documents().items():
        assert path.read_text() == text


def test_the_blocking_client_is_that_for_asyncio() -> None:
    """Its files are what `python -m tests.support.sync_client` writes."""
    for path, text in sync_client.documents().items():
        assert path.read_text() == text


def test_the_client_has_the_services_version() -> None:
    """Both packages are released together."""
    assert sophia_client.__version__ == serve_app.__version__


def test_importing_the_client_loads_nothing_of_the_service() -> None:
    """It needs httpx and pydantic, and neither the service nor its libraries."""
    code = (
        "import sys; sys.path.insert(0, 'client'); import sophia_client, sophia_client.command; "
        "print(sorted({'serve_app', 'ray', 'torch', 'fastapi', 'sqlalchemy', 'typer', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert ran.stdout == "[]\n"


def test_the_wheel_has_the_whole_package_and_little_else(tmp_path: Path) -> None:
    """`pip install ./client` installs every file of it, and needs httpx and pydantic."""
    source = tmp_path / "client"
    shutil.copytree(ROOT / "client", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-P", "-c", build, tmp_path], cwd=source, check=True, timeout=120, capture_output=True
    )

    [path] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    assert names == {str(file.relative_to(source)) for file in (source / "sophia_client").rglob("*.*")}
    assert re.findall(r"^Requires-Dist: (\w+)", metadata, re.MULTILINE) == ["httpx", "pydantic"]
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("kind", [TooManyRequests, Unavailable])
def test_retry_after_is_kept_to(kind: type[TooManyRequests | Unavailable]) -> None:
    """The pause is what the service asks for, and a moment more so that clients do not all come at once."""
    pause_s = Patience(Retries(for_s=60)).pause_s(kind(503, {}, retry_after_s=7))

    assert 7 <= pause_s <= 7.5


@pytest.mark.parametrize(
    ("for_s", "error"),
    [
        (0, ConnectionLost("gone", True)),
        (5, Unavailable(503, {}, retry_after_s=6)),
        (60, InvalidRequest(422, {})),
    ],
)
def test_what_does_not_help_is_not_repeated(for_s: float, error: SophiaError) -> None:
    """An error is raised when no time is left, when the service asks for more of it, or when it would come again."""
    with pytest.raises(type(error)):
        Patience(Retries(for_s=for_s)).pause_s(error)


def test_pauses_grow() -> None:
    """Without Retry-After each pause is up to twice as long as the one before, and at most 8 s."""
    patience = Patience(Retries(for_s=1e6))

    pauses = [patience.pause_s(ConnectionLost("gone", True)) for _ in range(12)]

    assert all(
        0.125 * 2 ** min(number, 6) <= pause <= min(0.25 * 2**number, 8) for number, pause in enumerate(pauses[:5])
    )
    assert all(4 <= pause <= 8 for pause in pauses[5:])
