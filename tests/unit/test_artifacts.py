import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts
from serve_app.errors import ArtifactsUnavailable, ConfigurationError, NotFound

JOB = "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
KEY = f"{JOB}/1/0.flac"
MIB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "audio files"


@pytest.fixture
def artifacts(folder: Path) -> Artifacts:
    return Artifacts(folder.as_uri())


def read(artifacts: Artifacts, key: str, start: int, end: int) -> list[bytes]:
    """The chunks of a stream."""

    async def collect() -> list[bytes]:
        return [chunk async for chunk in artifacts.stream(key, start, end)]

    return asyncio.run(collect())


def test_file_comes_back_as_it_was_put(artifacts: Artifacts, folder: Path) -> None:
    """A put file has its bytes and its size, and lies in the folder under its key."""
    artifacts.put(KEY, b"RIFF" * 1000)

    assert artifacts.get(KEY) == b"RIFF" * 1000
    assert artifacts.size(KEY) == 4000
    assert (folder / KEY).read_bytes() == b"RIFF" * 1000


def test_deleted_files_are_gone_and_take_their_folders(artifacts: Artifacts, folder: Path) -> None:
    """Deleting removes the named files, ignores missing ones, and leaves no empty folder."""
    artifacts.put(KEY, b"0")
    artifacts.put(f"{JOB}/1/1.flac", b"1")

    artifacts.delete([f"{JOB}/9/9.flac", KEY, f"{JOB}/1/1.flac"])

    assert list(artifacts.list()) == []
    assert list(folder.iterdir()) == []


def test_list_passes_over_files_that_are_not_ours(artifacts: Artifacts, folder: Path) -> None:
    """A stray file in the folder is not listed, so nobody deletes it."""
    (folder / "notes.txt").write_text("mine")
    artifacts.put(KEY, b"0")

    assert [file[:2] for file in artifacts.list()] == [(KEY, 1)]


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../1/0.mp3", "a/../0.mp3", "a/1/../../../x", "a/1/0", "a/1/0.mp3/", "a/1/0.mp3\n", "a//0.mp3",
     "a/1/0.mp3#1", "a/1/%2e%2e.mp3", "A/1/0.mp3", "a/1/0.mp3\x00", "a\\1\\0.mp3", "a/¹/0.mp3"],
)  # fmt: skip
def test_key_of_another_form_is_refused(artifacts: Artifacts, folder: Path, key: str) -> None:
    """Every operation refuses a key that Sophia does not create, and writes nothing for it."""
    for way in (
        lambda: artifacts.put(key, b"x"),
        lambda: artifacts.get(key),
        lambda: artifacts.size(key),
        lambda: artifacts.delete([key]),
        lambda: read(artifacts, key, 0, 1),
    ):
        with pytest.raises(ValueError, match="not an artifact key"):
            way()
    assert list(folder.iterdir()) == []


def test_failure_of_the_folder_is_artifacts_unavailable(artifacts: Artifacts, folder: Path) -> None:
    """A disk error becomes a retryable error that names the key and keeps its cause."""
    (folder / JOB).write_text("a file where a job's folder should be")

    with pytest.raises(ArtifactsUnavailable, match=f"could not write {KEY}") as caught:
        artifacts.put(KEY, b"x")

    assert caught.value.retryable
    assert caught.value.__cause__ is not None


KILLED_WRITER = """
import sys
from serve_app.artifacts import Artifacts

def endless():
    for _ in range(64):
        yield bytes(1024 * 1024)
    sys.stdin.read()  # the rest of the song never comes

Artifacts(sys.argv[1]).put(sys.argv[2], endless())
"""


@pytest.fixture
def killed_in_the_middle(artifacts: Artifacts, folder: Path) -> Path:
    """A folder in which a process was killed (SIGKILL) while it wrote KEY, and the partial file that it left."""
    leftover = folder / f"{KEY}#1"
    with subprocess.Popen([sys.executable, "-c", KILLED_WRITER, folder.as_uri(), KEY], stdin=subprocess.PIPE) as writer:
        try:
            deadline = time.monotonic() + 30
            while not (leftover.exists() and leftover.stat().st_size > MIB):
                assert writer.poll() is None, "the writer ended by itself"
                assert time.monotonic() < deadline, "the writer wrote nothing"
                time.sleep(0.01)
        finally:
            writer.send_signal(signal.SIGKILL)
    return leftover


def test_half_a_file_is_never_seen(artifacts: Artifacts, killed_in_the_middle: Path) -> None:
    """A writer that is killed midway leaves nothing that can be read or listed, and the next put works."""
    assert killed_in_the_middle.exists()
    with pytest.raises(NotFound):
        artifacts.get(KEY)
    assert list(artifacts.list()) == []

    artifacts.put(KEY, b"whole")

    assert artifacts.get(KEY) == b"whole"


def test_sweep_removes_old_leftovers_only(artifacts: Artifacts, killed_in_the_middle: Path) -> None:
    """Old temporary files are removed; young ones, which may still be written, and finished files stay."""
    artifacts.put(f"{JOB}/1/1.flac", b"whole")

    assert artifacts.sweep_leftovers(older_than_s=3600) == 0
    assert killed_in_the_middle.exists()

    hour_ago = time.time() - 3601
    os.utime(killed_in_the_middle, (hour_ago, hour_ago))
    assert artifacts.sweep_leftovers(older_than_s=3600) == 1

    assert not killed_in_the_middle.exists()
    assert artifacts.get(f"{JOB}/1/1.flac") == b"whole"


def test_object_store_that_cannot_be_reached_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Using an unreachable s3:// store raises an error that names the key and the kind of failure, and no credentials."""
    with socket.socket() as reserved:  # bound and not listening: a connection is refused
        reserved.bind(("127.0.0.1", 0))
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{reserved.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        artifacts = Artifacts("s3://bucket/prefix")

        with pytest.raises(ArtifactsUnavailable, match=KEY) as caught:
            artifacts.get(KEY)

    assert "very-secret" not in caught.value.message
    assert "AKIDEXAMPLE" not in caught.value.message


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "gs://bucket/prefix", "az://container/prefix", "memory://"])
def test_stores_are_made_without_a_network(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Creating a store of any kind makes no network request."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")  # part of the address for Azure

    artifacts = Artifacts(url)

    assert artifacts.sweep_leftovers(older_than_s=0) == 0  # a folder's business only


@pytest.mark.parametrize("url", ["http://host/audio", "/var/audio", "s3://", "file:///dev/null/audio"])
def test_address_that_cannot_be_used_is_a_configuration_error(url: str) -> None:
    """A wrong artifacts_url stops the start and says which setting it was."""
    with pytest.raises(ConfigurationError, match="artifacts_url"):
        Artifacts(url)


def test_artifacts_keep_the_api_process_small() -> None:
    """Importing the module imports no heavy package."""
    program = (
        "import sys, serve_app.artifacts; sys.exit(bool({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_two_threads_may_probe_one_store_at_once(tmp_path: Path) -> None:
    """Two probes at once do not delete each other's file."""
    artifacts = Artifacts((tmp_path / "audio").as_uri())

    with ThreadPoolExecutor(4) as pool:
        probes = [pool.submit(artifacts.probe) for _ in range(40)]

    assert [probe.exception() for probe in probes] == [None] * 40
