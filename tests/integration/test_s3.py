"""Audio and weights in S3, against a real server of it that dies in the middle."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.store import from_url

from serve_app import errors, weights
from serve_app.artifacts import Artifacts
from serve_app.artifacts import files as artifacts_module
from serve_app.config import ModelArgs
from serve_app.weights.progress import Progress
from tests.support.buckets import S3, s3
from tests.support.checkpoints import enlarged
from tests.support.helpers import eventually
from tests.support.running import running

JOB = "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
KEY = f"{JOB}/1/0.flac"
MIB = 1024 * 1024
MODEL = ModelArgs(source="s3://music/ace", device="cpu")
LARGEST = "text_encoder/model.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 server, with clients that give up after a second or two."""
    monkeypatch.setattr(artifacts_module, "_RETRY_S", 1)
    monkeypatch.setattr(weights.bucket, "_RETRY_S", 1)
    monkeypatch.setattr(weights.cache, "MAX_FAILURES", 1)
    with s3() as running_server:
        yield running_server


# --- Audio ----------------------------------------------------------------------------------------------------------


def test_a_song_goes_to_the_bucket_and_comes_back_over_http(server: S3, tmp_path: Path) -> None:
    """A worker stores in S3, a client gets the file and a part of it, and deleting the job empties the bucket."""
    with running(tmp_path, artifacts_url="s3://music/audio") as service:
        job = service.ended(service.submit(format="wav")["id"])
        whole = service.client.get(job["audio"][0]["url"])
        part = service.client.get(job["audio"][0]["url"], headers={"Range": "bytes=100-199"})
        (stored,) = service.artifacts.list()

        assert len(whole.content) == job["audio"][0]["bytes"]
        assert part.content == whole.content[100:200]
        assert stored.size == len(whole.content)
        assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        eventually(lambda: not list(service.artifacts.list()))


def test_a_server_that_dies_in_the_middle_of_an_upload_leaves_no_half_file(server: S3) -> None:
    """An upload whose server dies is an error that can be tried again; nothing of it shows, and the next try works."""
    artifacts = Artifacts("s3://music/audio")

    def song() -> Iterator[bytes]:
        for _ in range(24):
            yield bytes(MIB)
        server.kill()
        for _ in range(24):
            yield bytes(MIB)

    with pytest.raises(errors.ArtifactsUnavailable, match=f"could not write {KEY}") as caught:
        artifacts.put(KEY, song())  # type: ignore[arg-type]  # obstore takes any pieces; Sophia itself has it whole
    server.start()

    assert caught.value.retryable
    assert list(artifacts.list()) == []
    artifacts.put(KEY, b"whole")
    assert artifacts.get(KEY) == b"whole"


WRITER = """
import sys
from serve_app.artifacts import Artifacts

def endless():
    for _ in range(24):
        yield bytes(1024 * 1024)
    print("half way", flush=True)
    sys.stdin.read()  # the rest of the song never comes

Artifacts("s3://music/audio").put(sys.argv[1], endless())
"""


def test_a_worker_that_dies_in_the_middle_of_an_upload_leaves_no_half_file(server: S3) -> None:
    """What a killed process had begun to upload can be neither read nor listed, and its key can be written again."""
    artifacts = Artifacts("s3://music/audio")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout
            assert writer.stdout.readline() == "half way\n"
        finally:
            writer.send_signal(signal.SIGKILL)

    with pytest.raises(errors.NotFound):
        artifacts.get(KEY)
    assert list(artifacts.list()) == []
    artifacts.put(KEY, b"whole")
    assert artifacts.get(KEY) == b"whole"


def test_a_finished_song_waits_for_a_bucket_that_is_away(server: S3, tmp_path: Path) -> None:
    """A job whose audio cannot be stored stays running, and succeeds when the server is back; it is generated once."""
    with running(tmp_path, artifacts_url="s3://music/audio") as service:
        server.kill()
        job = service.submit(format="wav")
        eventually(lambda: (service.job(job["id"])["progress"] or {}).get("stage") == "storing")
        assert service.job(job["id"])["state"] == "running"
        server.start()

        ended = service.ended(job["id"])

        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        assert service.client.get(ended["audio"][0]["url"]).status_code == 200


@pytest.mark.fault("E5")
def test_a_song_waits_for_a_bucket_that_was_deleted(server: S3, tmp_path: Path) -> None:
    """The job and the worker name the reason, the worker claims no more, and the song is stored when the bucket is there again."""
    with running(tmp_path, artifacts_url="s3://music/audio") as service:
        eventually(lambda: service.client.get("/readyz").status_code == 200)
        httpx.post(f"http://127.0.0.1:{server.port}/moto-api/reset").raise_for_status()
        job = service.submit(format="wav")["id"]
        eventually(lambda: (service.job(job)["progress"] or {}).get("stage") == "storing")
        why = service.job(job)["progress"]["detail"]

        def said() -> str:
            [worker] = service.client.get("/v1/health").json()["workers"]
            return str(worker["detail"])

        eventually(
            lambda: said().startswith("stopped claiming: waits to store 1 song: the bucket 'music' does not exist")
        )
        httpx.put(f"http://127.0.0.1:{server.port}/music").raise_for_status()
        ended = service.ended(job)

        assert why == "the audio store's bucket or folder does not exist"
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)


# --- Weights --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_from_a_bucket_with_its_hashes(server: S3, checkpoint: Path, tmp_path: Path) -> None:
    """A folder of the cache that was copied to a bucket is fetched from it, whole, and once."""
    server.upload(checkpoint, "ace")

    folder = weights.resolve("m", MODEL, tmp_path, lambda *report: None)
    server.kill()

    assert weights.verify(folder, MODEL).files == weights.verify(checkpoint, MODEL).files
    assert weights.check_hashes(folder, lambda *report: None)
    assert weights.resolve("m", MODEL, tmp_path, lambda *report: None) == folder


def test_an_object_with_other_bytes_than_the_manifest_says_is_refused(
    server: S3, checkpoint: Path, tmp_path: Path
) -> None:
    """An object that was changed in the bucket, at the same size, is found by its hash and named."""
    server.upload(checkpoint, "ace")
    content = bytearray((checkpoint / LARGEST).read_bytes())
    content[5000] ^= 1
    obstore.put(from_url("s3://music/ace"), LARGEST, bytes(content))

    with pytest.raises(errors.CorruptFile, match=f"{LARGEST} of s3://music/ace was fetched twice and is wrong"):
        weights.resolve("m", MODEL, tmp_path, lambda *report: None)


def test_a_server_that_dies_in_the_middle_of_a_download_costs_only_the_rest(
    server: S3, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before the server died is kept, and the next start goes on from there."""
    add = Progress.add
    large = enlarged(checkpoint, tmp_path / "large", megabytes=60)
    (large / "sophia.manifest.json").unlink()  # of the checkpoint that it was made from
    server.upload(large, "ace")

    def dies_half_way(progress: Progress, count: int) -> None:
        add(progress, count)
        if progress.done > 0.3 * progress.total:
            server.kill()

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "add", dies_half_way)  # `report` hears of bytes too seldom: all may have come by then
        with pytest.raises(errors.HubUnreachable, match=r"was interrupted .* are kept"):
            weights.resolve("m", MODEL, tmp_path / "cache", lambda *report: None)
    server.start()
    server.upload(large, "ace")
    fractions: list[float | None] = []

    folder = weights.resolve("m", MODEL, tmp_path / "cache", lambda _, fraction, __: fractions.append(fraction))

    assert fractions[0]
    assert fractions[0] > 0.3
    assert (folder / LARGEST).read_bytes() == (large / LARGEST).read_bytes()
    assert weights.check_hashes(folder, lambda *report: None)


@pytest.mark.parametrize(
    ("url", "words"),
    [("s3://music/other", "has no files"), ("s3://nobody/ace", "does not exist or access is denied")],
)
def test_a_bucket_or_prefix_that_is_not_there_is_named(url: str, words: str, server: S3, tmp_path: Path) -> None:
    """A wrong address is an error that names the setting and the address."""
    with pytest.raises(errors.UnknownRepository, match=rf"models\.m\.source: {url} {words}"):
        weights.resolve("m", ModelArgs(source=url), tmp_path, lambda *report: None)


def test_a_bucket_that_does_not_answer_is_reported(server: S3, tmp_path: Path) -> None:
    """Without the server and without a cached copy, the error says where to look."""
    server.kill()

    with pytest.raises(errors.HubUnreachable, match="s3://music/ace did not answer"):
        weights.resolve("m", MODEL, tmp_path, lambda *report: None)
