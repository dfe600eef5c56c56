"""Our own client package, blocking and for asyncio, against a running service."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from sophia_client import (
    ApiError,
    Client,
    Conflict,
    ConnectionLost,
    DamagedDownload,
    InvalidRequest,
    Job,
    JobFailed,
    NotFound,
    Retries,
    SophiaError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    WaitTimeout,
    WebhookRefused,
    read_webhook,
)
from sophia_client.errors import error_of
from tests.support.answering import answering
from tests.support.certificates import self_signed
from tests.support.helpers import eventually, free_port
from tests.support.recordings import recording
from tests.support.running import Service, running, simulated
from tests.support.sophia_clients import open_client
from tests.support.webhooks import SECRET, Receiver, running_receiver
from tests.support.wires import http_wire

FIELDS: dict[str, Any] = {"duration": 2, "seed": 7, "format": "flac"}
AT_ONCE = Retries(for_s=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    settings: dict[str, Any] = {"webhook_secret": SECRET, "webhooks": {"allow_private": True}}
    with running(tmp_path_factory.mktemp("client"), models, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def planning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model has a planner."""
    model = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.001, "plan_s": 0.01})
    with running(tmp_path_factory.mktemp("planning"), {"ace-step": model}) as service:
        yield service


@pytest.fixture(params=["sync", "asyncio"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each of the two clients."""
    with open_client(request.param, service.url) as client:
        yield client


@pytest.fixture(scope="module")
def finished(service: Service) -> Job:
    """A job that has a song."""
    with Client(service.url) as client:
        return client.make("piano", **{**FIELDS, "duration": 10, "format": "wav"})


def test_a_song_is_made_followed_and_downloaded(client: Any, tmp_path: Path) -> None:
    """make reports progress and returns the finished job, and download writes its song."""
    seen: list[Job] = []

    job = client.make("warm piano", on_change=seen.append, variations=2, **FIELDS)
    files = client.download_all(job, tmp_path / "songs")

    assert {one.state for one in seen} >= {"running", "succeeded"}
    assert any(one.progress and one.progress.steps for one in seen)
    assert [file.name for file in files] == [f"{job.id}-0.flac", f"{job.id}-1.flac"]
    for number, file in enumerate(files):
        samples, rate = soundfile.read(file)
        assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True)
        assert client.read(job, index=number) == file.read_bytes()
    assert sorted(path.name for path in (tmp_path / "songs").iterdir()) == [file.name for file in files]


def test_a_submission_whose_answer_is_lost_makes_one_job(service: Service) -> None:
    """The repeated submission gets the job that the first one made."""
    before = len(service.client.get("/v1/jobs", params={"model": "asleep"}).json()["jobs"])
    retries: list[SophiaError] = []
    with http_wire(service.url) as (wire, url):
        wire.breaks = [0, 40]
        with Client(url, retries=Retries(on_retry=lambda error, _: retries.append(error))) as client:
            job = client.submit("piano", model="asleep", **FIELDS)

    after = service.client.get("/v1/jobs", params={"model": "asleep"}).json()["jobs"]
    assert (len(after) - before, after[0]["id"]) == (1, job.id)
    assert [type(error) for error in retries] == [ConnectionLost] * 2


def test_a_job_is_followed_over_broken_connections(service: Service) -> None:
    """Connections break within events and between them; no version is seen twice, and the last one has ended."""
    job = service.submit(duration=2, steps=200)["id"]
    seen: list[Job] = []
    with http_wire(service.url) as (wire, url), Client(url) as client:
        wire.breaks = [100, 500]

        for version in client.follow(job):
            seen.append(version)
            if len(seen) < 3:
                wire.drop()

    assert wire.breaks == []
    assert seen[-1].state == "succeeded"
    assert len({one.model_dump_json() for one in seen}) == len(seen) > 1


def test_a_broken_download_goes_on_where_it_was(service: Service, finished: Job, tmp_path: Path) -> None:
    """Three connections bring parts of one file, which is the song to the last byte."""
    size = finished.audio[0].bytes
    received: list[int] = []
    with http_wire(service.url) as (wire, url), Client(url) as client:
        wire.breaks = [size // 3, size // 3]

        file = client.download(finished, tmp_path / "song.wav", on_bytes=lambda have, _: received.append(have))

    assert wire.breaks == []
    assert received == sorted(received)
    assert file.read_bytes() == service.client.get(finished.audio[0].url).content


def test_a_download_of_an_earlier_process_goes_on(client: Any, finished: Job, tmp_path: Path) -> None:
    """Bytes that are here already are not fetched again; if they are wrong, the file is deleted and the next try is whole."""
    song = client.read(finished)
    part = tmp_path / f".song.wav.{finished.audio[0].sha256[:16]}.part"
    received: list[int] = []

    part.write_bytes(song[:500_000])
    client.download(finished, tmp_path / "song.wav", on_bytes=lambda have, _: received.append(have))
    part.write_bytes(b"x" * 500_000)
    with pytest.raises(DamagedDownload):
        client.download(finished, tmp_path / "song.wav")
    client.download(finished, tmp_path / "again.wav")

    assert received[0] > 500_000
    assert (tmp_path / "song.wav").read_bytes() == (tmp_path / "again.wav").read_bytes() == song
    assert not part.exists()


def test_recordings_are_uploaded(client: Any, tmp_path: Path) -> None:
    """A file is uploaded by itself or as a field of a song, has one name, can be a voice, and is deleted."""
    path = tmp_path / "tone.wav"
    path.write_bytes(recording("wav"))

    uploaded = client.upload(path)
    job = client.submit("calm", model="asleep", task_type="cover", source=path)
    voice = client.set_voice("anna", path)

    assert uploaded.name == client.upload(path.read_bytes()).name == job.request["source"] == voice.input
    assert uploaded.id in [one.id for one in client.inputs()]
    assert [one.name for one in client.voices()] == ["anna"]
    with pytest.raises(Conflict):
        client.delete_input(uploaded)
    client.delete_voice("anna")
    client.delete(job)
    client.delete_input(uploaded.name)
    assert list(client.inputs()) == []


def test_a_song_is_extended(client: Any, service: Service) -> None:
    """The longer song has the earlier one as its source, and its words, tempo and model unless others are given."""
    with Client(service.url) as blocking:
        earlier = blocking.make("piano", lyrics="la la", bpm=100, **FIELDS)

    longer = client.wait(client.extend(earlier.id, after_s=3, prompt="violin"))

    kept = {name: longer.request[name] for name in ("source", "extend_after", "prompt", "lyrics", "bpm", "format")}
    assert kept == {
        "source": earlier.song(), "extend_after": 3, "prompt": "violin", "lyrics": "la la", "bpm": 100, "format": "flac"
    }  # fmt: skip
    assert longer.audio[0].seconds == 5.0


def test_jobs_are_listed_cancelled_retried_and_deleted(client: Any) -> None:
    """Every call that moves a job returns it, and refuses a second time."""
    job = client.submit("piano", model="asleep")

    assert client.cancel(job).state == "cancelled"
    with pytest.raises(JobFailed, match="is cancelled") as failed:
        client.wait(job)
    assert (failed.value.job.id, failed.value.code) == (job.id, "cancelled")
    with pytest.raises(Conflict):
        client.cancel(job)
    assert client.retry(job.id).state == "queued"
    assert job.id in [one.id for one in client.jobs(state="queued", model="asleep")]
    client.delete(job)
    for call in (client.job, client.delete, client.wait):
        with pytest.raises(NotFound):
            call(job)


def test_all_pages_of_jobs_are_listed(service: Service) -> None:
    """jobs yields more than one page has."""
    ids = {service.submit(model="asleep")["id"] for _ in range(51)}

    with Client(service.url) as client:
        listed = [one.id for one in client.jobs(model="asleep", state="queued")]

    assert ids <= set(listed)
    assert len(set(listed)) == len(listed)


def test_a_move_whose_answer_is_lost_is_no_conflict(service: Service) -> None:
    """cancel, retry and delete succeed if an earlier try of theirs has had its effect."""
    with http_wire(service.url) as (wire, url), Client(service.url) as direct:
        job = direct.submit("piano", model="asleep")
        for action, state in (("cancel", "cancelled"), ("retry", "queued")):
            wire.breaks = [0]
            with Client(url) as client:
                assert getattr(client, action)(job).state == state
        wire.breaks = [0]
        with Client(url) as client:
            client.delete(job)
        with pytest.raises(NotFound):
            direct.job(job)


def test_a_wait_ends_in_time(client: Any) -> None:
    """wait raises WaitTimeout with the job as it was, and the job goes on."""
    job = client.submit("piano", model="asleep")

    with pytest.raises(WaitTimeout) as late:
        client.wait(job, timeout_s=0.3)

    assert late.value.job is not None
    assert client.job(job).state == late.value.job.state == "queued"
    client.delete(job)


def test_a_wait_goes_on_without_room_for_a_stream(tmp_path: Path) -> None:
    """A client that gets no event stream looks at the job from time to time."""
    with running(tmp_path, api={"streams_per_key": 1}) as service, Client(service.url) as client:
        sleeping = service.submit(deadline_s=600, steps=200, duration=60)
        with service.client.stream("GET", f"/v1/jobs/{sleeping['id']}/events"):
            job = client.submit("piano", **FIELDS)
            service.client.post(f"/v1/jobs/{sleeping['id']}/cancel")
            seen = list(client.follow(job))

    assert seen[-1].state == "succeeded"


def test_refusals_are_exceptions_with_the_problems_fields(client: Any, finished: Job) -> None:
    """A wrong field, a wrong model, a missing job and a missing song are told apart; ValueError is for wrong arguments."""
    with pytest.raises(InvalidRequest) as wrong:
        client.submit("piano", duration=900, bpm=7)
    with pytest.raises(InvalidRequest, match="model"):
        client.submit("piano", model="none")
    with pytest.raises(NotFound):
        client.job("0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d")
    with pytest.raises(InvalidRequest) as unreadable:
        client.upload(b"no audio")
    with pytest.raises(ValueError, match="has 1 songs, numbered from 0, got 1"):
        client.read(finished, index=1)

    error = wrong.value
    assert (error.status, error.code, bool(error.request_id)) == (422, "invalid_request", True)
    assert [(one.field, one.value) for one in error.fields] == [("duration", "900"), ("bpm", "7")]
    assert "must be" in error.fields[0].message
    assert unreadable.value.code == "unreadable_audio"


def test_a_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    """The right key is accepted; no error has the wrong one in its text, nor one that cannot be a key."""
    with running(tmp_path, workers=0) as service:
        key = service.store.keys.create("studio")
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)

        with Client(service.url, key) as client:
            assert list(client.jobs()) == []
        with Client(service.url, f"{key}x") as client, pytest.raises(Unauthorized) as refused:
            client.models()
        with (
            Client(f"http://127.0.0.1:{free_port()}", key, retries=AT_ONCE) as client,
            pytest.raises(ConnectionLost) as lost,
        ):
            client.models()
        with pytest.raises(ValueError, match="printable ASCII") as impossible:
            Client(service.url, f"{key}\n")

    assert not any(key in f"{one.value!r} {one.value}" for one in (refused, lost, impossible))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://user:secret@host", "http://host?key=secret"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The error says what is allowed, and repeats no password."""
    with pytest.raises(ValueError, match="url must") as refused:
        Client(url)
    assert "secret" not in str(refused.value)


def test_limits_are_waited_for(tmp_path: Path) -> None:
    """A client over its request rate comes again when Retry-After says so; a queue that stays full is an exception."""
    retries: list[SophiaError] = []
    limits: dict[str, Any] = {"api": {"requests_per_s": 5, "request_burst": 5}, "queue": {"max_owner_jobs": 2}}
    with running(tmp_path, workers=0, **limits) as service:
        with Client(service.url, retries=Retries(on_retry=lambda error, _: retries.append(error))) as client:
            for _ in range(8):
                client.usage()
        with Client(service.url, retries=Retries(for_s=10)) as client:
            for _ in range(2):
                client.submit("piano")
            with pytest.raises(TooManyRequests) as full:
                client.submit("piano")

    assert {getattr(error, "code", "") for error in retries} == {"too_many_requests"}
    assert (full.value.code, full.value.retry_after_s) == ("quota_exceeded", 30.0)


@pytest.mark.parametrize(
    ("status", "content_type", "kind"),
    [
        (404, "text/plain", Unavailable),
        (500, "text/plain; charset=utf-8", Unavailable),
        (404, "application/problem+json", NotFound),
        (500, "application/problem+json", ApiError),
    ],
)
def test_errors_of_a_proxy_are_told_from_those_of_the_service(status: int, content_type: str, kind: type) -> None:
    """Ray Serve's proxy answers in plain text while it knows no routes yet or an API process has died; such calls are repeated."""
    answer = httpx.Response(status, headers={"Content-Type": content_type}, text="Internal Server Error")

    assert type(error_of(answer)) is kind


def test_another_service_is_recognised() -> None:
    """Answers that are not Sophia's are exceptions, whatever their status."""
    with answering() as other, Client(f"http://127.0.0.1:{other.port}", retries=AT_ONCE) as client:
        other.body = b"<html>"
        with pytest.raises(UnexpectedAnswer, match="not Sophia's ModelList"):
            client.models()
        other.status = 500
        with pytest.raises(SophiaError, match="not Sophia's: '<html>'"):
            client.models()


def test_a_certificate_that_is_not_trusted_is_an_error_at_once(tmp_path: Path) -> None:
    """Another try would not help; `tls` trusts a certificate of one's own."""
    certificate, server = self_signed(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=certificate)
    retries: list[SophiaError] = []
    with running_receiver(server) as receiver:
        url = f"https://localhost:{receiver.port}"
        impatient = Retries(on_retry=lambda error, _: retries.append(error))
        with Client(url, retries=impatient) as client, pytest.raises(ConnectionLost, match="certificate"):
            client.models()
        with Client(url, tls=trusting) as client, pytest.raises(UnexpectedAnswer):
            client.upload(b"x")

    assert retries == []


def test_webhooks_are_checked(client: Any, receiver: Receiver) -> None:
    """A webhook is read as its job's end; one that is forged, changed, too old or incomplete is refused."""
    job = client.make("piano", webhook_url=receiver.url, **FIELDS)
    eventually(lambda: receiver.received)
    [received] = receiver.received
    headers, body = received.headers, received.body
    sent_at = int(headers["webhook-timestamp"])

    event = read_webhook(SECRET, headers, body)

    assert (event.type, event.job.id, event.job.audio[0].sha256) == ("job.succeeded", job.id, job.audio[0].sha256)
    assert read_webhook(["whsec_" + "A" * 32, SECRET], headers, body).id == event.id == headers["webhook-id"]
    refused: list[dict[str, Any]] = [
        {"secret": "whsec_" + "A" * 32},
        {"body": body.replace(b"succeeded", b"cancelled")},
        {"now": sent_at + 301.0},
        {"headers": {}},
        {"headers": {**headers, "webhook-id": "another"}},
        {"headers": {**headers, "webhook-timestamp": "soon"}},
    ]
    for changes in refused:
        with pytest.raises(WebhookRefused):
            read_webhook(**{"secret": SECRET, "headers": headers, "body": body, "now": float(sent_at), **changes})
    with pytest.raises(ValueError, match="whsec_"):
        read_webhook("not base64!", headers, body)


def test_songs_are_planned(client: Any, planning: Service) -> None:
    """A plan before its song is used by it; texts are written, and songs and codes are described."""
    with open_client("sync" if isinstance(client, Client) else "asyncio", planning.url) as sophia:
        plan = sophia.plan("piano", duration=2, seed=7, bpm=93)
        job = sophia.make("piano", seed=7, format="flac", plan=plan.given())
        kept = sophia.plan_of(job)
        formatted = sophia.format("piano", bpm=99)
        sampled = sophia.sample("a sad song", lyrics="[Instrumental]")
        understood = sophia.understand(audio_codes=plan.codes[0])
        with pytest.raises(NotFound, match="has no plan"):
            sophia.plan_of(sophia.submit("piano", duration=1))

    assert (plan.bpm, len(plan.codes[0])) == (93, 10)
    assert kept.codes == plan.codes
    assert (formatted.bpm, formatted.codes) == (99, [])
    assert (sampled.caption, sampled.instrumental) == ("a sad song", True)
    assert understood.duration == 2


def test_lyrics_codes_and_the_service_are_asked_for(client: Any, finished: Job) -> None:
    """What the service knows about songs, models, limits and itself comes as objects."""
    assert [model.name for model in client.models().models] == ["ace-step", "asleep"]
    assert client.usage().max_queued_jobs > 0
    assert client.health().jobs["succeeded"] >= 1
    with pytest.raises(NotFound, match="did not ask"):
        client.lyrics(finished)
