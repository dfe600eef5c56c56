"""Asks a running Sophia for the songs that the held-out captions describe, and listens to them."""

import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from miniature.captions import full_request
from miniature.clips import render_clip
from miniature.listening import agreements, song_agreements
from miniature.measures import ends
from miniature.pieces import Facts

LONGEST_S = 10
"""Of a longer piece, a version of ten seconds is requested, with an ending."""
SONG_TIMEOUT_S = 120
START_TIMEOUT_S = 120
REPORT_EVERY = 10


@dataclass(frozen=True)
class Figure:
    """How often songs are as asked for, beside the synthesizer's clips of the same captions and beside chance."""

    name: str
    songs: float
    clips: float
    chance: float


@dataclass(frozen=True)
class Evaluation:
    """The figures of `songs` songs, and the mean time from a request to its audio."""

    figures: Sequence[Figure]
    songs: int
    seconds_a_song: float

    def table(self) -> str:
        lines = [f"{'':18}{'songs':>8}{'clips':>8}{'chance':>8}"]
        lines += [
            f"{figure.name:18}{figure.songs:8.2f}{figure.clips:8.2f}{figure.chance:8.2f}" for figure in self.figures
        ]
        return "\n".join([*lines, f"{self.songs} songs, {self.seconds_a_song:.2f} s each"])

    def fields(self) -> dict[str, Any]:
        """All figures, to be written as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """How often songs are as asked for without planned codes and on them.

    `error` is the standard error of the difference between both, from the differences of the single songs.
    """

    name: str
    without: float
    on_codes: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """What planned codes change in `songs` songs."""

    differences: Sequence[Difference]
    songs: int

    def table(self) -> str:
        lines = [f"{'':18}{'without':>9}{'codes':>9}{'error':>9}"]
        lines += [f"{one.name:18}{one.without:9.3f}{one.on_codes:9.3f}{one.error:9.3f}" for one in self.differences]
        return "\n".join([*lines, f"{self.songs} songs each; error: of the difference between both columns"])

    def fields(self) -> dict[str, Any]:
        """All figures, to be written as JSON."""
        return asdict(self)


def evaluate(client: httpx.Client, facts: Sequence[Facts]) -> Evaluation:
    """Asks for a song for each clip's facts (at least two), and compares what is heard.

    Raises RuntimeError, with the request's number and the answer, if the service gives no song.
    """
    asked = [as_whole_piece(clip) for clip in facts]
    began = time.monotonic()
    songs = _songs(client, asked)
    seconds = (time.monotonic() - began) / len(songs)
    print("listening", file=sys.stderr, flush=True)
    clips = [render_clip(clip) for clip in facts]
    of_songs = agreements(songs, asked)
    of_clips = agreements(clips, facts)
    figures = [
        Figure(name, right, of_clips[name][0], _cut_clips_that_end(clips, facts) if name == "ending" else chance)
        for name, (right, chance) in of_songs.items()
    ]
    return Evaluation(figures, len(songs), seconds)


def compare(client: httpx.Client, facts: Sequence[Facts]) -> Comparison:
    """Asks for two songs for each clip's facts (at least two clips), without planned codes and on them, with the same seeds.

    Raises RuntimeError, with the request's number and the answer, if the service gives no song.
    """
    asked = [as_whole_piece(clip) for clip in facts]
    without = song_agreements(_songs(client, asked), asked)
    on_codes = song_agreements(_songs(client, asked, thinking="codes"), asked)
    return Comparison([_difference(name, without[name], on_codes[name]) for name in without], len(asked))


def _difference(name: str, without: np.ndarray, on_codes: np.ndarray) -> Difference:
    error = (on_codes - without).std(ddof=1) / np.sqrt(len(without))
    return Difference(name, float(without.mean()), float(on_codes.mean()), float(error))


def as_whole_piece(facts: Facts) -> Facts:
    """The facts of the song that is asked for: a whole piece, of ten seconds at the most, with its ending."""
    return replace(facts, piece_s=min(facts.piece_s, LONGEST_S), starts_at_s=0.0, ending=True)


def _songs(client: httpx.Client, asked: Sequence[Facts], thinking: str = "none") -> list[np.ndarray]:
    return [_song(client, facts, number, len(asked), thinking) for number, facts in enumerate(asked, 1)]


def _song(client: httpx.Client, facts: Facts, number: int, of: int, thinking: str) -> np.ndarray:
    request = full_request(facts)
    fields = {
        "prompt": request.prompt,
        "lyrics": request.lyrics,
        "bpm": request.bpm,
        "keyscale": request.keyscale,
        "timesignature": request.timesignature,
        "duration": request.seconds,
        "vocal_language": request.language,
        "seed": number,
        "format": "wav",
        "thinking": thinking,
    }
    try:
        answer = client.post("/v1/music", json=fields, timeout=SONG_TIMEOUT_S)
    except httpx.TransportError as error:
        raise RuntimeError(f"song {number}, {request.prompt!r}: {client.base_url} gave no answer: {error}") from error
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"song {number}, {request.prompt!r}: status {answer.status_code}, {answer.text}")
    if number % REPORT_EVERY == 0 or number == of:
        print(f"{number} of {of} songs", file=sys.stderr, flush=True)
    samples, _ = soundfile.read(io.BytesIO(answer.content), dtype="float32", always_2d=True)
    song: np.ndarray = samples.T
    return song


def _cut_clips_that_end(clips: Sequence[np.ndarray], facts: Sequence[Facts]) -> float:
    """How often an ending is heard where there is none. All songs are asked to end, so their facts give no chance level."""
    cut = [ends(clip) for clip, known in zip(clips, facts, strict=True) if not known.ending]
    return sum(cut) / len(cut) if cut else 0.0


@contextmanager
def own_service(source: str, planner: str) -> Iterator[str]:
    """Starts Sophia on a Ray cluster of its own, with one worker for the model and planner of these sources; gives its URL."""
    # Ray takes seconds to import, which the other commands and an evaluation of a running service need not wait for.
    import ray
    from ray import serve

    from serve_app.app import build
    from serve_app.config import AppArgs
    from tests.support.helpers import eventually, free_port

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Ray prints what its processes say to the standard output, which is for the figures.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        ray.init("local", include_dashboard=False, log_to_driver=False)
        try:
            model = {
                "source": source,
                "device": "cpu",
                "planner": {"source": planner},
                "scaling": {"min_workers": 1, "max_workers": 1},
            }
            args = AppArgs.model_validate({"data_dir": Path(folder), "models": {"toy": model}})
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(build(args), name="sophia", route_prefix="/")
            eventually(lambda: _ready(url), START_TIMEOUT_S)
            yield url
        finally:
            serve.shutdown()
            ray.shutdown()


def _ready(url: str) -> bool:
    health = httpx.get(f"{url}/v1/health", timeout=SONG_TIMEOUT_S).json()
    return bool(health["scale"]["toy"]["ready"])
