"""The toy model's evaluation, on a running service with the embedded checkpoint."""

import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from miniature.clips import render_clip
from miniature.dataset import chosen_clips, held_out_clips
from miniature.evaluate import as_whole_piece, compare, evaluate
from miniature.pieces import compose
from serve_app.config import ModelArgs, PlannerArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from tests.support.helpers import free_port
from tests.support.running import Service, running, simulated

EMBEDDED = ModelArgs(source="embedded", device="cpu", planner=PlannerArgs(source="embedded"))


@pytest.fixture(scope="module")
def playing(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the embedded checkpoint and its planner."""
    engine = AceStepEngine("ace-step", EMBEDDED, cache)
    engine.load(lambda phase, fraction, detail: None)
    with running(tmp_path_factory.mktemp("evaluation"), {"ace-step": EMBEDDED}, engine) as service:
        yield service


@pytest.mark.long
def test_songs_are_compared_with_what_was_asked(playing: Service) -> None:
    """Songs over HTTP get all figures, beside those of the synthesizer's clips, which are in their key's scale."""
    pieces = (compose(seed).facts for seed in itertools.count())
    facts = list(itertools.islice((piece for piece in pieces if piece.piece_s == 5), 2))

    evaluation = evaluate(playing.client, facts)

    figures = {figure.name: figure for figure in evaluation.figures}
    assert {"energy in scale", "key", "tempo", "instrument", "drums", "bass", "ending"} <= set(figures)
    assert all(0 <= share <= 1 for one in figures.values() for share in (one.songs, one.clips, one.chance))
    assert figures["energy in scale"].clips > 0.9
    assert figures["energy in scale"].songs > 0.5
    assert figures["ending"].clips == 1
    assert evaluation.songs == 2
    assert "2 songs" in evaluation.table()
    assert json.loads(json.dumps(evaluation.fields()))["figures"][0]["name"] == "energy in scale"


def test_songs_on_codes_are_compared_with_those_without() -> None:
    """Both columns are shares of songs, and the error is that of their difference, song by song."""
    facts = [held_out_clips()[number] for number in (0, 3, 10)]  # in G, D sharp and E minor
    clips = [_wav(render_clip(known)) for known in facts]

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        song = asked["seed"] - 1 if asked["thinking"] == "none" else asked["seed"] % 3
        return httpx.Response(200, content=clips[song])

    with httpx.Client(base_url="http://sophia", transport=httpx.MockTransport(answer)) as client:
        comparison = compare(client, facts)

    scale = comparison.differences[0]
    assert (scale.name, comparison.songs) == ("energy in scale", 3)
    assert scale.without > 0.9
    assert scale.on_codes < 0.9
    assert 0 < scale.error < 0.5
    assert "3 songs each" in comparison.table()


def test_a_service_that_gives_no_song_is_reported(tmp_path: Path) -> None:
    """An answer without a song ends the evaluation with the song's number, its prompt and the answer."""
    with (
        running(tmp_path, {"ace-step": simulated()}) as service,
        httpx.Client(base_url=f"{service.url}/no") as client,
        pytest.raises(RuntimeError, match=r"song 1, '.+ bpm, .+': status 404, "),
    ):
        evaluate(client, held_out_clips()[:2])


@pytest.mark.long
def test_a_service_that_does_not_answer_is_one_line() -> None:
    """Without an answer, the command fails with a line that names the song, its prompt and the address."""
    address = f"http://127.0.0.1:{free_port()}"

    run = subprocess.run(
        [sys.executable, "-m", "miniature", "evaluate", "--url", address], capture_output=True, text=True, check=False
    )

    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(rf"song 1, '.+': {address}/? gave no answer: .+\n", run.stderr)


def test_what_is_asked_for_is_a_whole_piece() -> None:
    """A piece of a minute is asked for as one of ten seconds, a shorter one as it is, and both are to end."""
    facts = held_out_clips()
    long = next(known for known in facts if known.piece_s > 10)
    short = next(known for known in facts if known.piece_s < 10)

    assert as_whole_piece(long).piece_s == 10
    assert as_whole_piece(short).piece_s == short.piece_s
    assert as_whole_piece(long).ending
    assert as_whole_piece(short).ending


def test_the_evaluations_captions_are_the_data_sets_held_out_ones() -> None:
    """A data set's last clips are those whose captions are evaluated, and differ between seeds."""
    assert list(chosen_clips(102, 0))[-100:] == held_out_clips()
    assert held_out_clips(1) != held_out_clips()


def _wav(song: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, song.T, 48_000, format="WAV", subtype="FLOAT")
    return file.getvalue()
