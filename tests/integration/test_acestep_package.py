"""ACE-Step's known clients in JavaScript under Node, as pages of another site. `make clients` runs them."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile

from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated

JAVASCRIPT = ROOT / "tests" / "javascript"
SITE = "http://localhost:5173"
JSON = dict[str, Any]

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules").exists(),
    reason="Node's packages are not here: make clients",
)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service with a model that has a worker and one that has none, and its only key."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    settings: dict[str, Any] = {"api": {"cors_origins": [SITE]}, "queue": {"max_owner_jobs": 4}}
    with running(tmp_path_factory.mktemp("locked"), models, **settings) as service:
        key = service.store.keys.create("studio")
        eventually(lambda: service.client.get("/v1/stats").status_code == 401)
        yield service, key


def seen(service: Service, scenario: str, key: str = "") -> JSON:
    """What the clients of a scenario have seen."""
    command = ["node", str(JAVASCRIPT / "acestep.mjs"), scenario, service.url, SITE, key]
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def assert_plays(song: JSON) -> None:
    """The song decodes, has its length and is not silent."""
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(song["audio"])))
    assert (song["status"], song["type"], rate, len(samples) / rate) == (1, "audio/wav", 48_000, 2.0)
    assert abs(samples).max() > 0.01


def test_the_browser_daw_makes_songs_without_a_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Multipart bodies with files, and an earlier song as a source, from another site's page."""
    with running(tmp_path_factory.mktemp("open"), api={"cors_origins": [SITE]}) as service:
        found = seen(service, "daw")
        first, cover, again = found["songs"]
        sources = [service.job(song["task"])["request"]["source"] for song in (cover, again)]

    for song in found["songs"]:
        assert_plays(song)
    assert sources[0].startswith("input:")
    assert sources[1] == f"job:{first['task']}/0"
    assert found["health"]["status"] == "ok"
    assert "text2music" in found["inventory"]["models"][0]["supported_task_types"]
    assert (found["init"]["loaded_model"], found["stats"]["queue_size"]) == ("ace-step", 0)


@pytest.mark.parametrize("scenario", ["script", "urlencoded"])
def test_pages_with_a_key_make_a_song(locked: tuple[Service, str], scenario: str) -> None:
    """JSON with the key in the header, and a form with the key as a field."""
    [song] = seen(locked[0], scenario, locked[1])["songs"]

    assert_plays(song)


def test_a_page_reads_why_it_is_refused(locked: tuple[Service, str]) -> None:
    """A bad key, an unknown model, bad input, a path and a full queue have their statuses and texts, which the page may read."""
    found = seen(locked[0], "refused", locked[1])

    assert {name: answer["status"] for name, answer in found.items()} == {
        "key": 401, "model": 400, "input": 400, "path": 400, "limit": 429,
    }  # fmt: skip
    assert all(answer["detail"] == answer["error"] != "" for answer in found.values())
    assert "audio_duration" in found["input"]["detail"]
    assert "max_owner_jobs" in found["limit"]["detail"]


def test_a_running_task_is_cancelled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """/cancel_task ends a running task, whose result then says so."""
    models = {"ace-step": simulated(step_s=0.2)}
    with running(tmp_path_factory.mktemp("slow"), models, api={"cors_origins": [SITE]}) as service:
        found = seen(service, "cancelled")

    assert found["answer"]["status"] == "cancelled"
    assert found["status"] == 2
    assert "was cancelled" in found["items"][0]["error"]
