"""Asks a running Sophia when the words of the synthesizer's clips are sung, and compares with when they are.

A clip is uploaded and its last second is played anew (`repaint`), so that the rest of the song is the synthesizer's. Sophia then
says when each word is sung, and gives a score. The same clip without the voice in its second half leaves out half of its lines.
Songs that the model sings itself show what the best of four has over the mean.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import numpy as np
import soundfile

from miniature.captions import full_request
from miniature.clips import mix, render_stems
from miniature.latents import SAMPLE_RATE
from miniature.lyric_heads import CLOSE_S
from miniature.pieces import CLIP_S, Facts

PLAYED_ANEW_S = 1
CANDIDATES = 4
POLL_S = 0.05
JOB_TIMEOUT_S = 120


@dataclass(frozen=True)
class Figures:
    """How well the model follows lyrics.

    `median_s`: how far half of the words are off at most, in seconds; `close`: the share that is at most CLOSE_S off. `even_s`: how
    far half of them would be off if all were spread evenly. `sung` and `left_out`: the mean scores of clips that sing all of their
    lines and of those that sing the first half; `falls`: the share of the clips in which the second score is lower. `best` and
    `mean`: of the scores of CANDIDATES songs, averaged over the requests.
    """

    words: int
    median_s: float
    close: float
    even_s: float
    sung: float
    left_out: float
    falls: float
    best: float
    mean: float

    def fields(self) -> dict[str, float]:
        """All figures, to be written as JSON."""
        return asdict(self)


def measure(client: httpx.Client, clips: Sequence[Facts]) -> Figures:
    """The figures of clips with a voice, each of which costs three jobs.

    Raises RuntimeError, with the answer, if the service does not do as it is asked.
    """
    played = [_timed(client, facts, _audio(facts)) for facts in clips]
    halved = [_timed(client, facts, _audio(facts, sung_until_s=CLIP_S / 2)) for facts in clips]
    candidates = [_candidates(client, facts) for facts in clips]
    errors = np.concatenate([word_errors(facts, starts) for facts, (starts, _) in zip(clips, played, strict=True)])
    even = np.concatenate([word_errors(facts, _evenly(facts)) for facts in clips])
    scores = np.array([[full, half] for (_, full), (_, half) in zip(played, halved, strict=True)])
    return Figures(
        words=len(errors),
        median_s=float(np.median(errors)),
        close=float((errors <= CLOSE_S).mean()),
        even_s=float(np.median(even)),
        sung=float(scores[:, 0].mean()),
        left_out=float(scores[:, 1].mean()),
        falls=float((scores[:, 1] < scores[:, 0]).mean()),
        best=float(np.mean([max(scores) for scores in candidates])),
        mean=float(np.mean([np.mean(scores) for scores in candidates])),
    )


def word_errors(facts: Facts, starts: Sequence[float]) -> np.ndarray:
    """How far the starts of a clip's words, in seconds, are from when it sings their first syllables. Words of the last second,
    which the model plays itself, do not count.
    """
    sung = word_starts(facts)
    if len(starts) != len(sung):
        raise RuntimeError(f"{len(starts)} words have times, and the clip sings {len(sung)}: {facts.lyrics!r}")
    errors = np.abs(np.array(starts) - sung)
    kept: np.ndarray = errors[np.array(sung) < CLIP_S - PLAYED_ANEW_S]
    return kept


def word_starts(facts: Facts) -> list[float]:
    """When a clip sings the first syllable of each word, in seconds."""
    starts = []
    syllables = iter(facts.syllables)
    for word in _words(facts):
        sung = ""
        first_s: float | None = None
        while len(sung) < len(word):
            syllable, start_s = next(syllables)
            first_s = start_s if first_s is None else first_s
            sung += syllable
        starts.append(float(first_s or 0.0))
    return starts


def _words(facts: Facts) -> list[str]:
    return [word for line in facts.lyrics.split("\n") if not line.startswith("[") for word in line.split()]


def _evenly(facts: Facts) -> list[float]:
    """The starts of the words if all syllables took the same time."""
    letters = np.cumsum([0, *(len(word) for word in _words(facts))])
    starts: list[float] = (letters[:-1] / letters[-1] * min(facts.piece_s, CLIP_S)).tolist()
    return starts


def _audio(facts: Facts, sung_until_s: float = CLIP_S) -> bytes:
    """A clip as a WAV file, whose voice sings until a time."""
    stems = render_stems(facts)
    stems["vocals"][:, round(sung_until_s * SAMPLE_RATE) :] = 0
    file = io.BytesIO()
    soundfile.write(file, mix(stems).T, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _timed(client: httpx.Client, facts: Facts, audio: bytes) -> tuple[list[float], float]:
    """The starts of the words that the service finds in a clip's audio, in seconds, and the score."""
    source = _read(client.post("/v1/inputs", content=audio))["name"]
    window = {"repaint_start": CLIP_S - PLAYED_ANEW_S, "repaint_end": CLIP_S}
    job = _job(client, facts, task_type="repaint", source=source, lyrics_timing=True, **window)
    lines = _read(client.get(job["audio"][0]["lyrics_url"]))["lines"]
    return [word["start"] for line in lines for word in line["words"]], float(job["audio"][0]["lyric_score"])


def _candidates(client: httpx.Client, facts: Facts) -> list[float]:
    """The scores of the songs of which the service publishes the best."""
    job = _job(client, facts, duration=min(facts.piece_s, round(CLIP_S)), best_of=CANDIDATES)
    return [float(candidate["lyric_score"]) for candidate in job["audio"][0]["candidates"]]


def _job(client: httpx.Client, facts: Facts, **fields: Any) -> dict[str, Any]:
    """A finished job of a clip's caption and lyrics."""
    asked = full_request(facts)
    request = {"prompt": asked.prompt, "lyrics": asked.lyrics, "bpm": asked.bpm, "keyscale": asked.keyscale, "seed": 1}
    job: dict[str, Any] = _read(client.post("/v1/jobs", json={**request, "vocal_language": asked.language, **fields}))
    until = time.monotonic() + JOB_TIMEOUT_S
    while job["state"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(POLL_S)
        job = _read(client.get(f"/v1/jobs/{job['id']}"))
    if job["state"] != "succeeded":
        raise RuntimeError(f"job {job['id']} is {job['state']}: {job['error']}")
    return job


def _read(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: status {answer.status_code}, {answer.text}")
    return answer.json()
