"""Uploading recordings over HTTP: raw and multipart, who may see them, and files that cannot be used."""

import hashlib
import select
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.recordings import FORMATS, long_silence, recording
from tests.support.retention import keys
from tests.support.running import Service, running

JSON = dict[str, Any]
TWO_SECONDS_OF_WAV = recording("wav")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with small limits on inputs and no worker, which asks for keys."""
    inputs = {"max_bytes": 500_000, "max_owner_bytes": 1_000_000, "max_seconds": 3, "upload_timeout_s": 8}
    folder = tmp_path_factory.mktemp("limited")
    with running(folder, workers=0, inputs=inputs, auth={"mode": "keys"}) as service:
        yield service


@pytest.fixture
def me(limited: Service, request: pytest.FixtureRequest) -> dict[str, str]:
    """The headers of a key of this test's own."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())[:60]
    return new_key(limited, name)


def new_key(service: Service, name: str) -> dict[str, str]:
    """The headers of a new key, once the API process knows it."""
    headers = {"Authorization": f"Bearer {service.store.keys.create(name)}"}
    eventually(lambda: service.client.get("/v1/usage", headers=headers).is_success)
    return headers


def post(service: Service, data: bytes, **headers: str) -> httpx.Response:
    return service.client.post("/v1/inputs", content=data, headers=headers)


@pytest.mark.parametrize(
    "format", [name if name in ("flac", "webm") else pytest.param(name, marks=pytest.mark.long) for name in FORMATS]
)
def test_every_format_can_be_uploaded(service: Service, format: str) -> None:
    """The answer tells what the file contains, under the hash of its bytes; Location is where to find it again."""
    data = recording(format)
    answer = post(service, data)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert found["id"] == hashlib.sha256(data).hexdigest()
    assert found["name"] == f"input:{found['id']}"
    assert (found["bytes"], found["sample_rate"], found["channels"], found["silent"]) == (len(data), 48_000, 2, False)
    assert found["seconds"] == pytest.approx(2, abs=0.05)
    assert service.client.get(answer.headers["location"]).json() == found


def test_a_multipart_upload_is_the_same_input(service: Service) -> None:
    """The part `file` counts, and its name and type do not."""
    data = recording("flac", 1.0)
    first = post(service, data, **{"content-type": "text/plain"})
    again = service.client.post("/v1/inputs", files={"file": ("../../etc/passwd", data, "video/mp4")})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    listed = service.client.get("/v1/inputs").json()["inputs"]
    assert [one["id"] for one in listed].count(first.json()["id"]) == 1


@pytest.mark.parametrize(
    "parts", [{"song": ("a.wav", TWO_SECONDS_OF_WAV)}, {"file": (None, "text")}], ids=["another name", "no file"]
)
def test_a_multipart_upload_without_a_file_is_refused(service: Service, parts: JSON) -> None:
    """The error names the part that is missing."""
    answer = service.client.post("/v1/inputs", files=parts)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "'file'" in answer.json()["detail"]


def test_a_multipart_body_that_is_none_is_refused(service: Service) -> None:
    """A body that ends in the middle of a part, and one without a boundary, get 400."""
    for content_type in ("multipart/form-data; boundary=x", "multipart/form-data"):
        answer = post(service, b"--x\r\nContent-Disposition: form", **{"content-type": content_type})
        assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "unreadable_audio"),
        (b"Not a song.", "unreadable_audio"),
        (TWO_SECONDS_OF_WAV[:99_999], "damaged_audio"),
        (recording("mp3", 4.0), "audio_too_long"),
        (long_silence(1 / 3), "audio_too_long"),
    ],
    ids=["empty", "text", "truncated", "long", "bomb"],
)
def test_a_file_that_cannot_be_used_is_refused_and_not_kept(
    limited: Service, me: dict[str, str], data: bytes, code: str
) -> None:
    """Each fault has its code, and no row or file is left."""
    before = keys(limited.artifacts)
    answer = post(limited, data, **me)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert limited.client.get("/v1/inputs", headers=me).json()["inputs"] == []
    assert keys(limited.artifacts) == before


def test_a_file_that_is_too_large_is_refused_while_it_arrives(limited: Service, me: dict[str, str]) -> None:
    """Also if the client does not say how large it is, or sends it as a part."""
    data = bytes(600_000)
    parts = limited.client.post("/v1/inputs", files={"file": data}, headers=me)
    declared = post(limited, data, **me)
    streamed = limited.client.post("/v1/inputs", content=iter([data[:300_000], data[300_000:]]), headers=me)
    for answer in (parts, declared, streamed):
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert "inputs.max_bytes" in answer.json()["detail"]
    provoked("body_too_large", "an upload larger than inputs.max_bytes", declared.json()["detail"])


def test_a_large_body_is_still_refused_elsewhere(service: Service) -> None:
    """Only uploads may be larger than api.max_body_bytes."""
    answer = service.client.post("/v1/jobs", content=bytes(2_000_000), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert "api.max_body_bytes" in answer.json()["detail"]


def test_the_inputs_of_a_key_are_limited_and_a_deletion_makes_room(limited: Service, me: dict[str, str]) -> None:
    """The error says how much is used; /v1/usage says it as well."""
    made = [post(limited, recording("wav", seconds), **me) for seconds in (2.0, 2.1)]
    refused = post(limited, recording("wav", 2.2), **me)
    usage = limited.client.get("/v1/usage", headers=me).json()
    deleted = limited.client.delete(f"/v1/inputs/{made[0].json()['id']}", headers=me)
    accepted = post(limited, recording("wav", 2.2), **me)
    assert [answer.status_code for answer in (*made, refused, deleted, accepted)] == [201, 201, 429, 204, 201]
    assert refused.json()["code"] == "quota_exceeded"
    assert usage["input_bytes"] == sum(answer.json()["bytes"] for answer in made)
    assert usage["max_input_bytes"] == 1_000_000
    provoked("quota_exceeded", "more uploaded bytes than one API key may keep", refused.json()["detail"])


def test_nobody_else_sees_an_input(limited: Service, me: dict[str, str]) -> None:
    """Another key gets 404, an empty list, and an input of its own for the same file; deleting it leaves the first one's."""
    other = new_key(limited, "another")
    mine = post(limited, TWO_SECONDS_OF_WAV, **me).json()
    path = f"/v1/inputs/{mine['id']}"
    seen = [limited.client.get(path, headers=other), limited.client.delete(path, headers=other)]
    assert [answer.status_code for answer in seen] == [404, 404]
    assert limited.client.get("/v1/inputs", headers=other).json()["inputs"] == []
    assert post(limited, TWO_SECONDS_OF_WAV, **other).status_code == 201
    assert limited.client.delete(path, headers=other).status_code == 204
    assert limited.client.get(path, headers=me).json()["id"] == mine["id"]
    assert limited.client.post("/v1/inputs", content=TWO_SECONDS_OF_WAV).status_code == 401


def test_deleting_an_input_deletes_its_file(limited: Service, me: dict[str, str]) -> None:
    """It is gone from the list, from its path and from the audio store."""
    before = keys(limited.artifacts)
    made = post(limited, recording("ogg"), **me).json()
    assert len(keys(limited.artifacts)) == len(before) + 1
    assert limited.client.delete(f"/v1/inputs/{made['id']}", headers=me).status_code == 204
    assert limited.client.get(f"/v1/inputs/{made['id']}", headers=me).status_code == 404
    assert keys(limited.artifacts) == before


def test_the_list_has_pages(limited: Service, me: dict[str, str]) -> None:
    """The cursor leads through all inputs, each once."""
    made = {post(limited, recording("ogg", seconds), **me).json()["id"] for seconds in (0.5, 0.6, 0.7)}
    first = limited.client.get("/v1/inputs", params={"limit": 2}, headers=me).json()
    second = limited.client.get("/v1/inputs", params={"limit": 2, "cursor": first["next_cursor"]}, headers=me).json()
    assert second["next_cursor"] is None
    ids = [one["id"] for one in first["inputs"] + second["inputs"]]
    assert len(ids) == 3
    assert set(ids) == made


@pytest.mark.parametrize("sent", [0, 50_000])
def test_a_client_that_stops_in_the_middle_leaves_nothing(limited: Service, me: dict[str, str], sent: int) -> None:
    """Neither one that disconnects nor one that falls silent; the latter gets 408."""
    before = keys(limited.artifacts)
    address = httpx.URL(limited.url)
    head = (
        f"POST /v1/inputs HTTP/1.1\r\nHost: {address.host}\r\nAuthorization: {me['Authorization']}\r\n"
        "Content-Length: 100000\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 80)) as gone:
        gone.sendall(head.encode() + TWO_SECONDS_OF_WAV[:sent])
    with socket.create_connection((address.host, address.port or 80)) as silent:
        silent.sendall(head.encode() + TWO_SECONDS_OF_WAV[:sent])
        silent.settimeout(60)
        answer = silent.recv(65_536).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert limited.client.get("/v1/inputs", headers=me).json()["inputs"] == []
    assert keys(limited.artifacts) == before


def test_a_key_may_upload_only_so_many_files_at_once(tmp_path: Path) -> None:
    """One of two slow uploads gets 429, which names the setting; when the other one is gone there is room again."""
    with running(tmp_path, workers=0, inputs={"uploads_per_key": 1}) as service:
        with closing(slow_upload(service)) as first, closing(slow_upload(service)) as second:
            answered, _, _ = select.select([first, second], [], [], 30)
            refused = [slow.recv(65_536).decode() for slow in answered]
        accepted = eventually(lambda: answer if (answer := post(service, TWO_SECONDS_OF_WAV)).is_success else None)
    assert len(refused) == 1
    assert refused[0].startswith("HTTP/1.1 429")
    assert "inputs.uploads_per_key" in refused[0]
    assert accepted.status_code == 201


def slow_upload(service: Service) -> socket.socket:
    """A connection on which an upload has begun."""
    address = httpx.URL(service.url)
    connection = socket.create_connection((address.host, address.port or 80))
    host = address.netloc.decode()
    connection.sendall(f"POST /v1/inputs HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n".encode())
    return connection


def test_a_file_that_the_store_has_lost_is_stored_again(service: Service) -> None:
    """The same file is uploaded after its copy was lost: the copy is there again."""
    data = recording("flac")
    sha256 = post(service, data).json()["id"]
    key = service.store.inputs.get("", sha256).key
    service.artifacts.delete([key])

    again = post(service, data)

    assert again.status_code == 200
    assert service.artifacts.get(key) == data


def test_the_charset_of_a_multipart_body_is_utf_8(service: Service) -> None:
    """Text in another encoding is refused before it is decoded: Python's punycode takes half a minute for a megabyte."""
    for path, charset in (("/v1/inputs", "punycode"), ("/v1/jobs", "punycode"), ("/v1/jobs", "undefined")):
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        body = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + b"a" * 100_000 + b"\r\n--x--\r\n"

        answer = service.client.post(path, content=body, headers=headers)

        assert answer.status_code == 415, answer.text
        assert charset in answer.json()["detail"]


@pytest.mark.parametrize(("parts", "text"), [(1, "x" * 5000), (9, "x")])
def test_text_beside_an_uploaded_file_is_limited(service: Service, parts: int, text: str) -> None:
    """Parts of text are kept in memory, so a body may have only few and short ones."""
    answer = service.client.post("/v1/inputs", files={f"part{n}": (None, text) for n in range(parts)})

    assert answer.status_code == 400, answer.text
