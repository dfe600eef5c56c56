"""The toy model plans and renders over HTTP: a real language model, and the engine that plays its codes."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import pytest

from miniature import songs
from miniature.pieces import compose_song
from miniature.planner_texts import told
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.music import SAMPLE_RATE
from serve_app.music.plan import CODES
from tests.support.paths import ROOT
from tests.support.running import Service, running

TOY: Final = ModelArgs.model_validate(
    {
        "source": "embedded",
        "device": "cpu",
        "planner": {"source": "embedded", "rows": 16, "context": 2048, "placement": "worker"},
        "scaling": {"min_workers": 1, "max_workers": 1},
    }
)
CAPTION: Final = "piano, calm"
LINE: Final = "bafi la gu mibo kume fela\n"
LYRIC_LINES: Final = (1, 2, 3, 4, 6, 8, 12, 16)
SEEDS: Final = 8


@pytest.fixture(scope="module")
def service(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the toy model and its planner."""
    engine = AceStepEngine("toy", TOY, cache)
    with running(tmp_path_factory.mktemp("toy"), {"toy": TOY}, engine) as service:
        yield service


@pytest.fixture(scope="module")
def song(service: Service) -> dict[str, Any]:
    """A finished job whose metadata and codes were planned."""
    return service.ended(service.submit(prompt=CAPTION, thinking="codes", seed=7)["id"])


def posted(service: Service, route: str, **body: Any) -> dict[str, Any]:
    answer = service.client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def naming(count: int) -> list[tuple[str, int, str]]:
    """Captions of held-out songs that name tempo and key, with both."""
    random = np.random.default_rng(5)
    asked = []
    for seed in range(songs.FIRST_SEED, songs.FIRST_SEED + songs.HELD_OUT_SONGS):
        facts = compose_song(seed, songs.song_length_s(seed)).facts
        request = told(facts, random)
        if str(facts.bpm) in request.caption and request.keyscale in request.caption:
            asked.append((request.caption, facts.bpm, request.keyscale))
    return asked[:count]


def sums(job: dict[str, Any]) -> list[str]:
    return [file["sha256"] for file in job["audio"]]


def test_a_song_is_planned_and_rendered(service: Service, song: dict[str, Any]) -> None:
    """The plan has the request's length, metadata in range, and five codes for each second of the file."""
    plan = service.client.get(song["links"]["plan"]).json()

    assert song["state"] == "succeeded", song["error"]
    assert (plan["duration"], song["audio"][0]["seconds"]) == (2, 2)
    assert 30 <= plan["bpm"] <= 300
    assert len(plan["codes"][0]) == 10
    assert len(set(plan["codes"][0])) > 3


@pytest.mark.long
def test_tempo_and_key_of_the_caption_are_planned(service: Service) -> None:
    """Of ten captions of songs that the planner has not seen, which name tempo and key, at least nine get both."""
    asked = naming(10)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: posted(service, "plan", prompt=one[0], thinking="metadata", seed=1), asked))

    kept = [(plan["bpm"], plan["keyscale"]) == named[1:] for plan, named in zip(found, asked, strict=True)]
    assert len(kept) == 10
    assert sum(kept) >= 9


def test_the_same_request_and_seeds_give_the_same_bytes(service: Service, song: dict[str, Any]) -> None:
    """The request of a job, sent again, is planned and rendered to the same file; another `plan_seed` gives another."""
    again = service.client.post("/v1/jobs", json=song["request"]).json()["id"]
    other = service.client.post("/v1/jobs", json=song["request"] | {"plan_seed": 8}).json()["id"]

    assert sums(service.ended(again)) == sums(song)
    assert sums(service.ended(other)) != sums(song)


@pytest.mark.long
def test_a_plan_of_a_job_gives_its_song(service: Service, song: dict[str, Any]) -> None:
    """`plan: job:ID` renders the same codes to the same file, and nothing is planned again."""
    reused = service.ended(service.submit(prompt=CAPTION, plan=f"job:{song['id']}", seed=7)["id"])

    assert sums(reused) == sums(song)
    assert reused["timing"]["plan_s"] is None


@pytest.mark.long
def test_a_plan_before_its_song_is_the_songs_plan(service: Service, song: dict[str, Any]) -> None:
    """POST /v1/plan gives, code for code, the plan that the job with the same request has."""
    body = {name: song["request"][name] for name in ("prompt", "duration", "seed", "plan_seed")}

    assert posted(service, "plan", **body) == service.client.get(song["links"]["plan"]).json()


def test_a_request_is_formatted(service: Service) -> None:
    """The caption is written anew, what the request decides is kept, and the rest is in range."""
    formatted = posted(service, "format", prompt="piano", lyrics="[verse]\n" + LINE, bpm=99, seed=1)

    assert formatted["bpm"] == 99
    assert formatted["caption"]
    assert 10 <= formatted["duration"] <= 600
    assert formatted["codes"] == []


@pytest.mark.long
def test_a_description_becomes_a_song(service: Service) -> None:
    """Sample makes up caption and metadata, and without lyrics the song is instrumental."""
    sampled = posted(service, "sample", prompt="a calm piano song", lyrics="[Instrumental]", seed=1)

    assert sampled["instrumental"] is True
    assert sampled["caption"]
    assert 30 <= sampled["bpm"] <= 300


def test_codes_are_understood(service: Service, song: dict[str, Any]) -> None:
    """Codes of the planner get caption and metadata. Those of another song may be unknown to the toy planner, which says so."""
    codes = service.client.get(song["links"]["plan"]).json()["codes"][0]
    understood = posted(service, "understand", audio_codes=codes, plan_seed=1)
    unknown = service.client.post("/v1/understand", json={"audio_codes": [1]})

    assert understood["caption"]
    assert understood["keyscale"].endswith(("major", "minor"))
    assert understood["duration"] >= 10
    assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid_request")


@pytest.mark.long
def test_an_upload_is_heard(service: Service, song: dict[str, Any]) -> None:
    """The engine finds the codes of an upload. The toy planner knows 1,024 of the 64,000 codes, and names one that it does not."""
    file = service.client.get(song["audio"][0]["url"]).content
    upload = service.client.post("/v1/inputs", content=file).json()
    answer = service.client.post("/v1/understand", json={"source": upload["name"]})

    assert answer.status_code == 422
    assert "is not an audio code of this planner, which has 1024 codes" in answer.json()["detail"]


@pytest.mark.long
def test_the_engine_hears_five_codes_a_second(cache: Path) -> None:
    """The same samples have the same codes, in the range of the codebook; other samples have others."""
    engine = AceStepEngine("toy", TOY, cache)
    engine.load(lambda *progress: None)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 3 * SAMPLE_RATE, 2)).astype(np.float32)

    first, again, other = (engine.codes_of(samples) for samples in (noise[0], noise[0], noise[1]))

    assert (len(first), first) == (15, again)
    assert first != other
    assert all(0 <= code < CODES for code in first)


@pytest.mark.long
def test_the_readmes_request_is_planned(service: Service) -> None:
    """The README's planned song gets a length, a tempo and a key."""
    (body,) = re.findall(r"-d '(.*\"thinking\".*)'", (ROOT / "README.md").read_text())
    plan = posted(service, "plan", **json.loads(body))

    assert 10 <= plan["duration"] <= 600
    assert plan["bpm"]
    assert plan["keyscale"]


@pytest.mark.long
def test_open_lengths_follow_the_lyrics(service: Service) -> None:
    """With `duration: auto`, more lines of lyrics get longer songs: the mean over some seeds grows. Prints the figures."""

    def length(lines: int, seed: int) -> float:
        lyrics = "[verse]\n" + LINE * lines
        body = {
            "prompt": "piano with vocals, 90 bpm, calm",
            "lyrics": lyrics,
            "duration": "auto",
            "thinking": "metadata",
        }
        return float(posted(service, "plan", **body, seed=seed)["duration"])

    asked = [(lines, seed) for lines in LYRIC_LINES for seed in range(SEEDS)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: length(*one), asked))
    lengths = {lines: [s for (of, _), s in zip(asked, found, strict=True) if of == lines] for lines in LYRIC_LINES}
    for lines, seconds in lengths.items():
        print(f"{lines} lines: {fmean(seconds):.1f} s ({min(seconds):.0f} to {max(seconds):.0f})")

    means = [fmean(seconds) for seconds in lengths.values()]
    assert means[-1] > 2 * means[0]
    assert sum(later > earlier for earlier, later in pairwise(means)) >= len(means) - 3
