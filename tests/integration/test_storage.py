"""An unusable audio store: reported at the start and while it lasts, with its cause, and without addresses for strangers."""

import errno
import logging
import pickle
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts
from serve_app.artifacts import files as artifacts_module
from serve_app.artifacts.causes import ROWS, Place, explain
from serve_app.background import storage_watch
from serve_app.errors import ArtifactsUnavailable, NotFound
from serve_app.ops import doctor
from serve_app.supervision import Supervisor
from tests.support.answering import Answering, answering
from tests.support.disks import fill, small_disk
from tests.support.helpers import eventually
from tests.support.running import running

JOB = "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
KEY = f"{JOB}/1/0.flac"

ANSWERS = [
    (404, "NoSuchBucket", "missing", "the bucket 'music' does not exist"),
    (404, "", "missing", "the bucket 'music' does not exist"),
    (403, "RequestTimeTooSkewed", "refused", "clock differs"),
    (403, "InvalidAccessKeyId", "refused", "the credentials are not accepted"),
    (403, "SignatureDoesNotMatch", "refused", "the credentials are not accepted"),
    (400, "ExpiredToken", "refused", "the credentials are not accepted"),
    (401, "", "refused", "the credentials are not accepted"),
    (400, "AuthorizationHeaderMalformed", "refused", "lies in another region"),
    (301, "", "refused", "redirects to another address"),
    (403, "QuotaExceeded", "full", "is full, or over its quota"),
    (507, "", "full", "is full, or over its quota"),
    (503, "SlowDown", "away", "is throttling requests"),
    (429, "", "away", "is throttling requests"),
    (403, "AccessDenied", "refused", "these credentials lack a permission in the bucket 'music'"),
    (403, "", "refused", "these credentials lack a permission in the bucket 'music'"),
    (500, "InternalError", "away", "overloaded or failing"),
    (418, "Teapot", "away", "HTTP status 418"),
]

NUMBERS = [
    (errno.EDQUOT, "full", "the disk quota of the user with the id"),
    (errno.EFBIG, "full", "the file is larger than the process"),
    (errno.EACCES, "refused", "lacks a permission in the folder"),
    (errno.EIO, "away", "input/output error"),
    (errno.ESTALE, "away", "network file system"),
    (errno.EMFILE, "away", "too many open files"),
    (errno.EBADMSG, "away", "the operating system reports"),
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """A stand-in for S3 that answers as the test wants; clients retry for a second."""
    monkeypatch.setattr(artifacts_module, "_RETRY_S", 1)
    with answering() as server:
        _point_at(monkeypatch, server.port)
        yield server


def _point_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def _failed(artifacts: Artifacts) -> ArtifactsUnavailable:
    with pytest.raises(ArtifactsUnavailable) as caught:
        artifacts.probe()
    return caught.value


def _told_nothing_secret(error: ArtifactsUnavailable) -> None:
    for text in (error.message, error.public, error.public_why):
        assert "GenericError" not in text
        assert not re.search(r"very-secret|AKIDEXAMPLE|127\.0\.0\.1|inner-address|/tmp/", text)
    assert "music" not in error.public + error.public_why


# --- Causes -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("E5")
@pytest.mark.parametrize(("status", "code", "cause", "words"), ANSWERS)
def test_an_object_stores_error_is_explained(bucket: Answering, status: int, code: str, cause: str, words: str) -> None:
    """Every refusal of an object store becomes a cause and a sentence without its address or a secret."""
    bucket.says(status, code)
    artifacts = Artifacts("s3://music/audio")

    error = _failed(artifacts)

    assert (error.cause, words in error.why) == (cause, True), error.why
    _told_nothing_secret(error)
    if code == "NoSuchBucket":  # which object_store reports as a missing file, for reads and for deletes
        for use in (
            artifacts.get,
            artifacts.size,
            lambda key: artifacts.delete([key]),
            lambda _: list(artifacts.list()),
        ):
            with pytest.raises(ArtifactsUnavailable, match="the bucket 'music' does not exist"):
                use(KEY)


def test_a_missing_file_is_no_missing_bucket(bucket: Answering) -> None:
    """A missing key stays NotFound, and deleting it is no failure."""
    bucket.says(404, "NoSuchKey")
    artifacts = Artifacts("s3://music/audio")

    for use in (artifacts.get, artifacts.size):
        with pytest.raises(NotFound):
            use(KEY)
    artifacts.delete([KEY])


@pytest.mark.parametrize(("number", "cause", "words"), NUMBERS)
def test_a_file_systems_error_is_explained(tmp_path: Path, number: int, cause: str, words: str) -> None:
    """Every file system error number becomes a cause and a sentence."""
    found, why = explain(OSError(number, "said by the kernel"), Place(tmp_path, ""))

    assert (found, words in why) == (cause, True), why
    assert str(tmp_path) not in why


def test_a_store_that_cannot_be_reached_says_what_is_wrong_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port, an unknown host name and a silent server are distinguished."""
    monkeypatch.setattr(artifacts_module, "_RETRY_S", 0.2)
    with socket.socket() as reserved:  # bound and not listening
        reserved.bind(("127.0.0.1", 0))
        _point_at(monkeypatch, reserved.getsockname()[1])
        refused = _failed(Artifacts("s3://music/audio"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nobody.invalid")
    unknown = _failed(Artifacts("s3://music/audio"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_TIMEOUT", "300ms")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        late = _failed(Artifacts("s3://music/audio"))

    assert "nothing listens at its endpoint" in refused.why
    assert "its host name cannot be resolved" in unknown.why
    assert "it does not answer in time" in late.why
    assert {refused.cause, unknown.cause, late.cause} == {"away"}
    _told_nothing_secret(refused)


TRANSPORT = {
    "no credentials were found": "Error performing PUT http://169.254.169.254/latest/api/token - status code: 403",
    "TLS certificate": "HTTP error: error sending request kind: Connect, InvalidCertificate(UnknownIssuer)",
    "cannot be connected to": "HTTP error: error sending request kind: Connect, (os error 113)",
    "the connection to it broke": "in 2ms - HTTP error: error decoding response body",
}


@pytest.mark.parametrize("words", TRANSPORT)
def test_what_can_hardly_be_provoked_here_is_known_by_its_text(words: str) -> None:
    """Network failures that need another machine are recognised by the client's text."""
    assert words in explain(Exception(TRANSPORT[words]), Place(None, "music"))[1]


def test_each_row_of_the_table_is_tested() -> None:
    """Every row of the table of causes has a test above or below."""
    elsewhere = ("the disk is full", "the folder is read-only", "the folder does not exist", "nothing listens",
                 "its host name", "does not answer in time")  # fmt: skip
    words = [
        *(answer[3].replace("'music'", "{bucket}") for answer in ANSWERS),
        *(row[2] for row in NUMBERS),
        *TRANSPORT,
    ]

    shown = [part.replace("with the id", "{user}").replace("the user {user}", "the user {user}") for part in words]

    assert [row.explanation for row in ROWS if not any(part in row.explanation for part in (*shown, *elsewhere))] == []


def test_an_unknown_failure_is_reported_without_addresses() -> None:
    """An unknown failure is reported in the client's words, without addresses and paths."""
    cause, why = explain(
        Exception("Generic S3 error: odd thing at https://u:p@host/x?sig=1 in /srv/a\nDebug"), Place(None, "b")
    )

    assert (cause, why) == ("away", "unknown error: S3 error: odd thing at … in …")


def test_the_error_survives_its_way_between_processes() -> None:
    """Cause and text survive pickling."""
    error = ArtifactsUnavailable(f"write {KEY}", "full", "the disk is full: 0.1 of 40 MB are free")

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert (copy.message, copy.public, copy.cause, copy.why) == (error.message, error.public, error.cause, error.why)


# --- Real disks -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B14", "E5", "E9")
def test_a_disk_says_whether_it_is_full_or_read_only_and_works_again(tmp_path: Path) -> None:
    """A full disk and a read-only one are reported, and work again once they are repaired."""
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        artifacts = Artifacts((disk / "audio").as_uri())
        artifacts.probe()
        filler = fill(disk)
        full = _failed(artifacts)
        filler.unlink()
        artifacts.probe()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        read_only = _failed(artifacts)
        late = Artifacts((disk / "songs").as_uri())  # its folder cannot be made now: that is no reason not to start
        no_folder = _failed(late)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        late.probe()

        assert (full.cause, full.public_why) == ("full", "the audio store is full")
        assert re.search(r"the disk is full: 0\.\d of 8 MB are free", full.why)
        assert (read_only.cause, no_folder.cause) == ("read_only", "read_only")
        assert "the folder is read-only" in read_only.why
        assert not [file for file in disk.rglob("*") if file.is_file()]
        _told_nothing_secret(full)
        _told_nothing_secret(read_only)


# --- Where it is reported ---------------------------------------------------------------------------------------------


@pytest.mark.fault("B14", "E5", "E9")
def test_a_store_that_refuses_is_reported_everywhere(
    bucket: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Readiness, health, the doctor and one log line report why no song can be stored; strangers see no bucket name."""
    monkeypatch.setattr(storage_watch, "FAILING_EVERY_S", 0.05)
    monkeypatch.setattr(doctor, "_packages", lambda: "")  # their import takes most of a minute
    bucket.says(404, "NoSuchBucket")
    with (
        caplog.at_level(logging.INFO, "ray.serve.sophia"),
        running(tmp_path, artifacts_url="s3://music/audio") as service,
    ):
        eventually(
            lambda: (
                service.client.get("/readyz").json()["reason"] == "the audio store's bucket or folder does not exist"
            )
        )
        asked = bucket.requests
        eventually(lambda: bucket.requests > asked + 5)
        ready = service.client.get("/readyz")
        health = service.client.get("/v1/health").json()
        [line] = [record for record in caplog.records if "no song can be stored" in record.getMessage()]
        [found] = [finding for finding in doctor.check(service.args) if finding.check == "audio store"]

        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert "music" not in ready.text
        assert health["status"] == "degraded"
        assert "the bucket 'music' does not exist: create it" in health["notices"][0]
        assert "the bucket 'music' does not exist" in line.getMessage()
        assert (found.code, "the bucket 'music' does not exist" in found.message) == ("artifacts_unavailable", True)
        assert service.client.get("/ping").status_code == 200


@pytest.mark.fault("B14", "E9")
def test_a_full_disk_is_reported_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk makes the service not ready and degraded until there is room."""
    monkeypatch.setattr(storage_watch, "EVERY_S", 0.05)
    monkeypatch.setattr(storage_watch, "FAILING_EVERY_S", 0.05)
    with small_disk(tmp_path / "disk", megabytes=8) as disk, running(tmp_path, artifacts_url=disk.as_uri()) as service:
        assert service.client.get("/readyz").status_code == 200
        filler = fill(disk)
        eventually(lambda: service.client.get("/readyz").json()["reason"] == "the audio store is full")
        health = service.client.get("/v1/health").json()
        filler.unlink()
        eventually(lambda: service.client.get("/readyz").status_code == 200)

        assert health["status"] == "degraded"
        assert re.search(r"the disk is full: 0\.\d of 8 MB are free", health["notices"][0])
        assert "full" not in str(service.client.get("/v1/health").json()["notices"])


@pytest.mark.fault("B10", "B14")
def test_a_check_with_an_unexpected_error_is_reported_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error does not end the storage watch: health reports it until a probe succeeds."""
    monkeypatch.setattr(storage_watch, "EVERY_S", 0.05)
    monkeypatch.setattr(storage_watch, "FAILING_EVERY_S", 0.05)
    probe = Artifacts.probe

    def broken(self: Artifacts) -> None:
        raise RuntimeError("a bug")

    with running(tmp_path) as service:
        monkeypatch.setattr(Artifacts, "probe", broken)
        eventually(lambda: "storage fails with RuntimeError" in str(service.client.get("/v1/health").json()))
        monkeypatch.setattr(Artifacts, "probe", probe)
        eventually(lambda: "storage fails" not in str(service.client.get("/v1/health").json()))


def test_nothing_reports_a_working_store_before_the_first_check(tmp_path: Path) -> None:
    """Until the store was probed once, it is not reported as working."""
    watch = storage_watch.StorageWatch(Artifacts(tmp_path.as_uri()), Supervisor())

    failure = watch.failure()

    assert failure is not None
    assert "has not answered since this process started" in failure.why
