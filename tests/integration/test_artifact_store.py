"""The contract of ArtifactStore. Every test runs against a real folder and against a real S3 server."""

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts, ArtifactStore
from serve_app.errors import NotFound
from tests.support.buckets import S3, s3

JOB = "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
KEY = f"{JOB}/1/0.flac"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as running_server:
        yield running_server


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    if request.param == "folder":
        return Artifacts((tmp_path / "new" / "audio files").as_uri())
    request.getfixturevalue("server")
    return Artifacts(f"s3://music/{secrets.token_hex(4)}")


def read(artifacts: ArtifactStore, key: str, start: int, end: int) -> list[bytes]:
    """The chunks of a stream."""

    async def collect() -> list[bytes]:
        return [chunk async for chunk in artifacts.stream(key, start, end)]

    return asyncio.run(collect())


def content(artifacts: ArtifactStore, key: str) -> bytes:
    """The whole file."""
    return b"".join(read(artifacts, key, 0, artifacts.size(key)))


def sizes(artifacts: ArtifactStore, prefix: str = "") -> dict[str, int]:
    """The listed files and their sizes."""
    return {file.key: file.size for file in artifacts.list(prefix)}


def test_a_file_is_read_as_it_was_written(artifacts: ArtifactStore) -> None:
    """A stored file keeps its bytes and its size."""
    artifacts.put(KEY, b"RIFF" * 1000)

    assert artifacts.size(KEY) == 4000
    assert content(artifacts, KEY) == b"RIFF" * 1000


def test_view_of_a_buffer_can_be_put(artifacts: ArtifactStore) -> None:
    """A caller need not copy a buffer to `bytes` first."""
    artifacts.put(KEY, memoryview(bytearray(b"fLaC" * 2_000_000)))

    assert content(artifacts, KEY) == b"fLaC" * 2_000_000


def test_put_replaces_the_file_of_the_same_key(artifacts: ArtifactStore) -> None:
    """The second put of a key wins."""
    artifacts.put(KEY, b"first, and longer")
    artifacts.put(KEY, b"second")

    assert content(artifacts, KEY) == b"second"


@pytest.mark.parametrize(
    ("start", "end"), [(0, 3 * MIB + 5), (7, MIB + 7), (MIB - 1, 2 * MIB + 2), (3 * MIB, 3 * MIB + 5), (9, 9)]
)
def test_stream_reads_the_range_in_chunks(artifacts: ArtifactStore, start: int, end: int) -> None:
    """A range arrives whole, in order, and in pieces of 1 MiB at most."""
    data = os.urandom(3 * MIB + 5)
    artifacts.put(KEY, data)

    chunks = read(artifacts, KEY, start, end)

    assert b"".join(chunks) == data[start:end]
    assert all(len(chunk) <= MIB for chunk in chunks)


def test_missing_file_is_not_found(artifacts: ArtifactStore) -> None:
    """The size and the stream of a key that has no file raise NotFound, and the error names the key."""
    with pytest.raises(NotFound, match=KEY):
        artifacts.size(KEY)
    with pytest.raises(NotFound, match=KEY):
        read(artifacts, KEY, 0, 1)


def test_delete_removes_files_and_ignores_missing_ones(artifacts: ArtifactStore) -> None:
    """Every named file is deleted, and a key that has no file is no error."""
    artifacts.put(KEY, b"0")
    artifacts.put(f"{JOB}/1/1.flac", b"1")
    artifacts.put(f"{JOB}/1/2.flac", b"2")

    artifacts.delete([f"{JOB}/9/9.flac", KEY, f"{JOB}/1/1.flac"])

    assert sizes(artifacts) == {f"{JOB}/1/2.flac": 1}


def test_list_gives_keys_and_sizes_under_a_prefix(artifacts: ArtifactStore) -> None:
    """A prefix selects one job, or one attempt of it, and not a job whose id merely begins so."""
    for key, size in (("a/1/0.mp3", 1), ("a/2/0.mp3", 2), ("ab/1/0.mp3", 3)):
        artifacts.put(key, bytes(size))

    assert sizes(artifacts) == {"a/1/0.mp3": 1, "a/2/0.mp3": 2, "ab/1/0.mp3": 3}
    assert sizes(artifacts, "a") == {"a/1/0.mp3": 1, "a/2/0.mp3": 2}
    assert sizes(artifacts, "a/2") == {"a/2/0.mp3": 2}


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../1/0.mp3", "a/../0.mp3", "a/1/../../../x", "a/1/0", "a/1/0.mp3/", "a/1/0.mp3\n", "a//0.mp3",
     "a/1/0.mp3#1", "a/1/%2e%2e.mp3", "A/1/0.mp3", "a/1/0.mp3\x00", "a\\1\\0.mp3", "a/¹/0.mp3"],
)  # fmt: skip
def test_key_of_another_form_is_refused(artifacts: ArtifactStore, key: str) -> None:
    """No operation takes a key that Sophia does not make, and nothing is written for it."""
    for operation in (
        lambda: artifacts.put(key, b"x"),
        lambda: artifacts.size(key),
        lambda: artifacts.delete([key]),
        lambda: read(artifacts, key, 0, 1),
    ):
        with pytest.raises(ValueError, match="not an artifact key"):
            operation()
    assert sizes(artifacts) == {}


def test_prefix_of_another_form_is_refused(artifacts: ArtifactStore) -> None:
    """A listing cannot leave the store."""
    with pytest.raises(ValueError, match="not a prefix"):
        list(artifacts.list("../"))


def test_a_mark_stays_unless_it_is_replaced(artifacts: ArtifactStore) -> None:
    """The first owner's mark stays, a replacement changes it, and no listing shows it."""
    unmarked = artifacts.mark()
    artifacts.set_mark("first")
    artifacts.set_mark("second")
    kept = artifacts.mark()
    artifacts.set_mark("second", replace=True)

    assert (unmarked, kept, artifacts.mark()) == (None, "first", "second")
    assert sizes(artifacts) == {}


def test_a_probe_leaves_nothing(artifacts: ArtifactStore) -> None:
    """A probe of a working store succeeds, and its file is not listed."""
    artifacts.probe()

    assert sizes(artifacts) == {}
    assert artifacts.sweep_leftovers(older_than_s=0) == 0
