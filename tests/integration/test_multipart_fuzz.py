"""Multipart bodies, whole and damaged, that hypothesis makes: schemathesis sends none of these."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.recordings import pcm
from tests.support.running import Service, running, simulated

WAV = pcm(np.full((48, 2), 0.5, np.float32), 48_000)
TEXTS = [
    b'{"prompt": "piano", "duration": 1, "format": "wav"}',
    b'{"prompt": "piano", "task_type": "cover", "duration": 1}',
    b'{"prompt": 7, "source": []}',
    b"[" * 5000,
    b"null",
    b"anna",
    b"",
    b"\xff\xfe\0",
]
NAMES = [
    "request",
    "source",
    "reference",
    "file",
    "name",
    "audio",
    "voice",
    "",
    "constructor",
    "a" * 3000,
    "\u00fc\u4e16",
]
TYPES = ["", "application/json", "audio/wav", "text/plain; charset=utf-16", "multipart/mixed; boundary=x", "x" * 9000]

contents = st.sampled_from([WAV, *TEXTS]) | st.binary(max_size=200)
dispositions = st.builds(
    lambda name, file: f'form-data; name="{name}"' + (f'; filename="{file}"' if file is not None else ""),
    st.sampled_from(NAMES),
    st.none() | st.sampled_from(["a.wav", "", "../../etc/passwd", "C:\\a", "\u4e16.mp3"]),
) | st.sampled_from(
    ["attachment", "form-data", 'form-data; name=request; name="source"', "", "form-data; name*=utf-8''%ff"]
)
odd = st.tuples(dispositions, st.sampled_from(TYPES), contents)
whole = st.sampled_from(
    [
        ('form-data; name="request"', "application/json", TEXTS[0]),
        ('form-data; name="reference"; filename="a.wav"', "audio/wav", WAV),
        ('form-data; name="file"; filename="a.wav"', "audio/wav", WAV),
        ('form-data; name="name"', "", b"anna"),
    ]
)
parts = st.lists(whole, max_size=3, unique=True) | st.lists(whole | odd, max_size=4)


def body_of(some: list[tuple[str, str, bytes]], boundary: bytes, damage: tuple[int, bytes] | None) -> bytes:
    """The parts as a multipart body. `damage`: bytes that replace those at this place, and what follows if they are none."""
    body = b""
    for disposition, kind, content in some:
        head = f"Content-Disposition: {disposition}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
        body += b"--" + boundary + b"\r\n" + head.encode() + b"\r\n" + content + b"\r\n"
    body += b"--" + boundary + b"--\r\n"
    if damage is None:
        return body
    place = damage[0] % len(body)
    return body[:place] + damage[1] + body[place + len(damage[1]) :] if damage[1] else body[:place]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("fuzz"), {"ace-step": simulated(step_s=0)}) as service:
        yield service


# starlette leaves the closing of a part's file that has no end to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function SpooledTemporaryFile")
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    route=st.sampled_from(["/v1/jobs", "/v1/music", "/v1/inputs", "/v1/voices"]),
    some=parts,
    boundary=st.sampled_from([b"x", b"----x", b"'()+_,-./:=?", b"x" * 70]),
    kind=st.sampled_from(
        ["multipart/form-data; boundary=%s", 'Multipart/Form-Data;boundary="%s"', "multipart/form-data"]
    ),
    damage=st.none() | st.tuples(st.integers(0, 10_000), st.sampled_from([b"", b"\0", b"\r\n", b"--", b"\r\n--x--"])),
)
def test_no_multipart_body_breaks_the_api(
    service: Service,
    route: str,
    some: list[tuple[str, str, bytes]],
    boundary: bytes,
    kind: str,
    damage: tuple[int, bytes] | None,
) -> None:
    """Each is accepted, or refused with a code; and the service goes on."""
    headers = {"Content-Type": kind % boundary.decode() if "%" in kind else kind}
    answer = service.client.post(route, content=body_of(some, boundary, damage), headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["code"]
    assert service.client.get("/healthz").status_code == 200
