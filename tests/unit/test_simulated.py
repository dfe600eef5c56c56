"""The simulated engine: length, steps, stopping, and no import of torch."""

import subprocess
import sys
import time

import numpy as np
import pytest

from serve_app import errors
from serve_app.config import ModelArgs, SimulatedArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import SAMPLE_RATE, MusicRequest
from tests.support.helpers import quickest_s


def test_a_song_has_the_asked_length_and_seeds() -> None:
    """Every variation is a quiet tone of the exact length whose pitch depends on its seed."""
    request = MusicRequest(prompt="x", duration=1.5, variations=3, seed=40)

    songs = list(_engine(0).generate(request, lambda *step: None, lambda: False))

    assert [song.seed for song in songs] == [40, 41, 42]
    assert {song.samples.shape for song in songs} == {(72_000, 2)}
    assert songs[0].samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(songs[0].samples[:SAMPLE_RATE, 0]))
    assert spectrum.argmax() == 440
    assert 0 < np.abs(songs[0].samples).max() < 0.2


def test_steps_are_reported_as_by_the_real_engine() -> None:
    """Stages come in order, with the variant's number of steps where the request names none."""
    steps: list[tuple[str, int, int]] = []

    list(_engine(0).generate(MusicRequest(prompt="x", seed=1), lambda *step: steps.append(step), lambda: False))

    assert steps == [("conditioning", 0, 1), *(("denoising", i, 8) for i in range(1, 9)), ("decoding", 1, 1)]


def test_it_stops_within_one_step() -> None:
    """When the job is lost during step 3, step 4 is never run."""
    steps: list[tuple[str, int, int]] = []

    with pytest.raises(errors.Stopped):
        list(
            _engine(0.001).generate(
                MusicRequest(prompt="x", seed=1),
                lambda *step: steps.append(step),
                lambda: ("denoising", 3, 8) in steps,
            )
        )

    assert steps[-1] == ("denoising", 3, 8)


def test_late_steps_do_not_add_up() -> None:
    """Time that the caller spends between two steps does not lengthen the song's total time."""

    def generate() -> None:
        list(
            _engine(0.05).generate(
                MusicRequest(prompt="x", steps=10, seed=1),
                lambda *step: time.sleep(0.04),  # not a wait for something: a caller that is slow
                lambda: False,
            )
        )

    assert quickest_s(generate) < 10 * (0.05 + 0.04)


def test_loading_reports_the_phases_of_a_real_load() -> None:
    """Loading passes through preflight, download, load with a growing fraction, and warm_up."""
    reports: list[tuple[str, float | None]] = []

    facts = _engine(0, load_s=0.5).load(lambda phase, fraction, detail: reports.append((phase, fraction)))

    assert list(dict.fromkeys(phase for phase, _ in reports)) == ["preflight", "download", "load", "warm_up"]
    assert [fraction for phase, fraction in reports if phase == "load"] == [0.5, 1.0]
    assert (facts.source, facts.device, facts.noise) == ("simulated", "simulated", True)


def test_it_needs_no_torch() -> None:
    """The simulated engine starts without importing torch, so that many fit on a small machine."""
    code = "import sys, serve_app.engine.simulated; print('torch' in sys.modules, 'diffusers' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def _engine(step_s: float, load_s: float = 0) -> SimulatedEngine:
    return SimulatedEngine("m", ModelArgs(source="simulated", simulated=SimulatedArgs(step_s=step_s, load_s=load_s)))


def test_stems_are_one_tone_for_each_track() -> None:
    """A simulated job of stems has a song for each track, all with the seed of the request."""
    request = MusicRequest(prompt="x", seed=4, task_type="stems", source=f"input:{'0' * 64}", tracks=["drums", "bass"])

    songs = list(
        SimulatedEngine("m", ModelArgs(source="simulated")).generate(request, lambda *step: None, lambda: False)
    )

    assert [(song.seed, song.track) for song in songs] == [(4, "drums"), (4, "bass")]
    assert MusicRequest(prompt="x", task_type="stems", source=request.source).songs == 12
