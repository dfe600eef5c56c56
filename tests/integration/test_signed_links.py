"""Links that open a job's songs and events without an API key, as a browser's player and event stream need them."""

import io
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import soundfile

from serve_app.api.signed_links import LinkSigner
from sophia_client import Client
from tests.support.helpers import eventually
from tests.support.running import SONG, Service, running, simulated


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model that has a worker and one that has none, whose caller has a key."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("links"), models, api={"link_ttl_s": 600}) as service:
        service.use_key()
        yield service


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    """A job with two songs."""
    return str(service.ended(service.submit(**SONG, variations=2)["id"])["id"])


def links_of(service: Service, job: str, **query: Any) -> dict[str, Any]:
    answer = service.client.get(f"/v1/jobs/{job}/links", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


def expired_link(service: Service, path: str, ago_s: float = 1) -> str:
    digest = service.store.keys.digests()["studio"]
    return LinkSigner("studio", digest, int(time.time() - ago_s)).link(path)


def test_links_open_songs_and_events_without_a_key(service: Service, job: str) -> None:
    """Each song plays, in parts too, the zip file and the events open, and none of that needs a header."""
    links = links_of(service, job)

    for number, path in enumerate(links["audio"]):
        samples, rate = soundfile.read(io.BytesIO(httpx.get(service.url + path).content))
        assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True), number
    part = httpx.get(service.url + links["audio"][1], headers={"Range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    assert httpx.head(service.url + links["audio"][0]).status_code == 200
    assert httpx.get(service.url + links["songs"]).content[:2] == b"PK"
    assert httpx.get(service.url + links["events"]).text.startswith("event: done\n")


def test_a_link_opens_nothing_else(service: Service, job: str) -> None:
    """Its query opens no other song, job or route, changes nothing, and a changed expiry or signature is refused."""
    other = service.submit(model="asleep")["id"]
    path, _, query = links_of(service, job)["audio"][0].partition("?")
    later = query.replace("expires=", "expires=1")
    elsewhere = (f"/v1/jobs/{job}/audio/1", f"/v1/jobs/{job}/audio", f"/v1/jobs/{job}", f"/v1/jobs/{other}/events")

    statuses = [httpx.get(f"{service.url}{place}?{query}").status_code for place in elsewhere]
    statuses += [
        httpx.get(f"{service.url}{path}?{changed}").status_code for changed in (later, query[:-1], query + "x")
    ]
    statuses.append(httpx.get(f"{service.url}{path}?{query.partition('&')[2]}").status_code)
    statuses.append(httpx.get(f"{service.url}{path}", params={"expires": 1, "signature": "ä"}).status_code)
    statuses.append(httpx.delete(f"{service.url}/v1/jobs/{job}?{query}").status_code)

    assert statuses == [401, 401, 401, 401, 401, 401, 422, 401, 401, 401]
    assert httpx.get(f"{service.url}{path}?{query}").status_code == 200


def test_a_link_expires(service: Service, job: str) -> None:
    """A link lives as long as was asked for, at most `api.link_ttl_s`; then it is refused, and the answer says so."""
    path = f"/v1/jobs/{job}/audio/0"

    short, longest = (links_of(service, job, **query)["audio"][0] for query in ({"seconds": 60}, {"seconds": 1e6}))
    refused = httpx.get(service.url + expired_link(service, path))

    left_s = [int(httpx.URL(link).params["expires"]) - time.time() for link in (short, longest)]
    assert 0 < left_s[0] <= 60 < left_s[1] <= 600
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert "has expired" in refused.json()["detail"]
    assert service.client.get(expired_link(service, path)).status_code == 200  # the key in the header still counts


def test_an_event_stream_ends_with_its_link(service: Service) -> None:
    """A stream that is open when its link expires ends, and cannot be opened again."""
    job = service.submit(model="asleep")["id"]
    link = service.url + links_of(service, job, seconds=1)["events"]

    began = time.monotonic()
    followed = httpx.get(link, timeout=30)

    assert followed.text.startswith("event: state\n")
    assert time.monotonic() - began < 10
    assert httpx.get(link).status_code == 401


def test_a_revoked_key_closes_its_links(service: Service) -> None:
    """Links are signed with the key of their owner, so they end with it; another owner's signature does not open a job."""
    headers = {"Authorization": f"Bearer {service.store.keys.create('guest')}"}
    eventually(lambda: httpx.get(f"{service.url}/v1/jobs", headers=headers).status_code == 200)
    body = {"prompt": "x", "model": "asleep"}
    guests = httpx.post(f"{service.url}/v1/jobs", json=body, headers=headers).json()["id"]
    link = service.url + httpx.get(f"{service.url}/v1/jobs/{guests}/links", headers=headers).json()["songs"]
    foreign = LinkSigner("studio", service.store.keys.digests()["studio"], int(time.time()) + 60)

    assert httpx.get(link).status_code == 409  # it has no songs yet
    assert httpx.get(service.url + foreign.link(f"/v1/jobs/{guests}/events")).status_code == 404
    service.store.keys.revoke("guest")
    eventually(lambda: httpx.get(link).status_code == 401)


def test_links_are_counted_and_never_logged(service: Service, job: str, caplog: pytest.LogCaptureFixture) -> None:
    """A link counts as a request of its owner, and wrong ones as refusals of their address; no log has a signature."""
    with running(service.args.data_dir, workers=0, api={"requests_per_s": 0.1, "request_burst": 4}) as strict:
        link = links_of(service, job)["audio"][0]
        with caplog.at_level(logging.DEBUG):
            statuses = [strict.client.get(link).status_code for _ in range(5)]
        wrong = [strict.client.get(f"{link[:-2]}__").status_code for _ in range(120)]

    assert statuses == [200, 200, 200, 200, 429]
    assert set(wrong) == {401, 429}
    server_logs = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert not any("signature" in text for text in server_logs)


def test_without_keys_links_are_plain_paths(service: Service) -> None:
    """While no key is needed, links have no signature and do not expire, also in our own client."""
    with running(service.args.data_dir / "open", workers=0) as plain, Client(plain.url) as client:
        job = client.submit("piano")

        links = client.links(job, seconds=60)

    assert (links.expires_at, links.audio) == (None, [])
    assert links.events == f"/v1/jobs/{job.id}/events"
