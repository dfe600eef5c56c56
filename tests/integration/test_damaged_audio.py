"""Damaged recordings: bit flips, truncations, holes and lies in headers, in every format."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.support.helpers import eventually
from tests.support.recordings import FORMATS, recording
from tests.support.retention import keys
from tests.support.running import SONG, Service, running

HEADER_BYTES = 200
REFUSED = {"damaged_audio", "unreadable_audio", "audio_too_long", "decoder_limit"}


def damaged(number: int) -> bytes:
    """The damaged file of this number; the kind of damage and the format follow from it."""
    random = np.random.default_rng(number)
    data = bytearray(recording(FORMATS[number % len(FORMATS)]))
    place = int(random.integers(len(data)))
    match number // len(FORMATS) % 5:
        case 0:  # flipped bits anywhere
            for position in random.integers(len(data), size=1 + place % 50):
                data[position] ^= 1 << int(random.integers(8))
        case 1:  # a truncated file
            del data[place:]
        case 2:  # numbers in the header, such as sizes, rates and channels
            for position in random.integers(HEADER_BYTES, size=3):
                data[position : position + 4] = random.choice(
                    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\1\0\0\0"]
                )
        case 3:  # a hole
            data[place : place + 4096] = bytes(len(data[place : place + 4096]))
        case _:  # another file in the middle
            data[place:place] = recording(FORMATS[int(random.integers(len(FORMATS)))])[:4096]
    return bytes(data)


def open_files() -> Counter[str]:
    """What this process has open besides pooled connections: sockets of clients and the database's files."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found[os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]] += 1
    return Counter({name: count for name, count in found.items() if name != "socket" and ".db" not in name})


def upload_and_use(service: Service, number: int) -> str:
    """Upload a damaged file, and use it if it is accepted. How that ended."""
    with httpx.Client(base_url=service.url, timeout=120) as client:
        answer = client.post("/v1/inputs", content=damaged(number))
        if answer.status_code == 422:
            assert answer.json()["code"] in REFUSED, answer.text
            return str(answer.json()["code"])
        assert answer.status_code in (200, 201), f"{number}: {answer.text}"
        job = client.post("/v1/jobs", json={**SONG, "reference": answer.json()["name"]})
        if job.status_code == 422 and "silent" in job.text:
            return "silent"
        assert job.status_code == 202, f"{number}: {job.text}"
    ended = service.ended(job.json()["id"])
    assert ended["state"] == "succeeded", f"{number}: {ended['error']}"
    return "used"


@pytest.mark.parametrize(
    "count", [4, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1200)])], ids=["4", "200"]
)
def test_damaged_files_break_nothing(tmp_path: Path, count: int) -> None:
    """Each is refused with a code or can be used; no 5xx, no dead worker, and no process, descriptor or file is left."""
    with running(tmp_path) as service, ThreadPoolExecutor(4) as clients:
        warm_up = service.client.post("/v1/inputs", content=recording("wav")).json()
        before = open_files()
        results = Counter(clients.map(lambda number: upload_and_use(service, number), range(count)))
        stored = {key for key in keys(service.artifacts) if key.startswith("inputs/")}
        listed = service.client.get("/v1/inputs", params={"limit": 200}).json()["inputs"]
        song = service.ended(service.submit(reference=warm_up["name"])["id"])
        eventually(lambda: not open_files() - before)
    print(dict(results))
    assert sum(results.values()) == count
    assert results["used"] > 0
    assert results["damaged_audio"] > 0
    assert song["state"] == "succeeded"
    assert {key.rpartition("/")[2] for key in stored} == {one["id"] for one in listed}
    assert not [child for child in psutil.Process().children() if "decoding" in " ".join(child.cmdline())]
