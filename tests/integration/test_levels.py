"""The level of songs that are made from the latents of another one, which was normalised after it had been decoded."""

from typing import Any

import numpy as np
import pytest
import torch

from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.work import Work, finished, work_of
from serve_app.engine.protocol import SongInputs
from serve_app.music import MusicRequest
from tests.support.engines import generate

RATE = 48_000
GAIN = 2.0


def work(**fields: Any) -> Work:
    """Work on a source of two seconds at a level of 0.5 that was normalised by GAIN."""
    inputs = SongInputs(source=np.full((2 * RATE, 2), 0.5, np.float32), source_gain=GAIN)
    request = MusicRequest.model_validate({"prompt": "x", "seed": 1, "source": f"input:{'0' * 64}", **fields})
    return work_of(request, inputs, "base")


def decoded(level: float) -> np.ndarray:
    """What the VAE might give: two seconds at one level."""
    return np.full((2, 2 * RATE), level, np.float32)


def test_what_a_repaint_adds_has_the_gain_of_the_source() -> None:
    """A source that was made twice as loud gets a new part that is, too; its own samples stay."""
    song, gain = finished(decoded(0.1), work(task_type="repaint", repaint_start=1.0), seed=1)

    assert gain == GAIN
    assert (song[:RATE] == 0.5).all()
    np.testing.assert_allclose(song[RATE + RATE // 10 :], 0.2, rtol=1e-6)


def test_stems_have_the_gain_of_the_source() -> None:
    """Stems add up to the source as it is heard, and not to what its latents decode to."""
    [part] = work(task_type="stems", tracks=["drums"]).parts()

    stem, gain = finished(decoded(0.1), part, seed=1)

    assert gain == GAIN
    np.testing.assert_allclose(stem, 0.2, rtol=1e-6)


def test_a_song_tells_by_which_gain_it_was_normalised(engine: AceStepEngine) -> None:
    """The song's samples are those that its latents decode to, times its gain."""
    [song] = generate(engine)

    assert song.latents is not None
    with torch.inference_mode():
        raw = engine._pipe.vae.decode(torch.from_numpy(song.latents.T[None]), return_dict=False)[0][0].numpy()
    assert song.gain != 1.0
    assert song.gain * np.abs(raw[:, : len(song.samples)]).max() == pytest.approx(np.abs(song.samples).max(), rel=1e-3)
    np.testing.assert_allclose(song.gain * raw.T[: len(song.samples)], song.samples, atol=1e-3)
