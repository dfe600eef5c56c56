"""Songs made from earlier songs and with a reference, over HTTP, by the real engine."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.protocol import EngineFacts
from serve_app.music import SAMPLE_RATE
from tests.conftest import RANDOM
from tests.support.recordings import pcm, tones
from tests.support.running import Service, running

Samples = npt.NDArray[np.float32]
SECONDS = 6
EDGE = SAMPLE_RATE // 10
"""Longer than any cross-fade."""


class EncodingEngine(AceStepEngine):
    """An engine with the random checkpoint, whose VAE encodes to 64 channels instead of 4."""

    def load(self, report: Callable[[str, float | None, str], None]) -> EngineFacts:
        facts = super().load(report)
        encoder = self._pipe.vae.encoder
        encoder.conv2 = torch.nn.Conv1d(encoder.conv2.in_channels, 2 * 64, kernel_size=3, padding=1)
        return facts


@pytest.fixture(scope="module")
def encoding(cache: Path) -> AceStepEngine:
    """The engine of `real`, whose worker loads it."""
    return EncodingEngine("ace-step", RANDOM, cache)


@pytest.fixture(scope="module")
def real(encoding: AceStepEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the engine."""
    with running(tmp_path_factory.mktemp("real"), {"ace-step": RANDOM}, encoding) as service:
        yield service


@pytest.fixture(scope="module")
def source(real: Service) -> str:
    """The name of an uploaded recording of 6 s, in 32-bit WAV."""
    file = pcm(tones(SECONDS), SAMPLE_RATE, subtype="FLOAT")
    return str(real.client.post("/v1/inputs", content=file).json()["name"])


def made(service: Service, **fields: Any) -> tuple[str, Samples]:
    """The id of a job and the samples of its first song."""
    fields = {"steps": 2, "seed": 7, "format": "wav32", **fields}
    job = service.ended(service.submit(**fields)["id"])
    assert job["state"] == "succeeded", job["error"]
    file = service.client.get(f"/v1/jobs/{job['id']}/audio").content
    samples, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    return job["id"], samples


def repainted(service: Service, source: str, start: int, end: int) -> tuple[str, Samples]:
    return made(service, task_type="repaint", source=source, repaint_start=start, repaint_end=end)


def test_a_repaint_of_an_earlier_song_starts_from_its_latents(
    real: Service, source: str, encoding: AceStepEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gets them with the samples, and what is kept is that song, sample by sample."""
    job, song = repainted(real, source, 2, 4)
    given = []
    generate = encoding.generate

    def listen(*arguments: Any) -> Any:
        given.append(arguments[3])
        return generate(*arguments)

    monkeypatch.setattr(encoding, "generate", listen)
    _, again = repainted(real, f"job:{job}/0", 4, 5)
    kept = 4 * SAMPLE_RATE - EDGE
    np.testing.assert_array_equal(again[:kept], song[:kept])
    assert given[0].source_latents is not None
    assert given[0].source_latents.shape == (25 * SECONDS, 64)
    np.testing.assert_array_equal(given[0].source, song)


def test_a_song_with_a_reference_differs_from_one_without(real: Service, source: str) -> None:
    """The same seed and words; a longer song is not made of it."""
    _, plain = made(real, duration=2)
    _, imitating = made(real, duration=2, reference=source)
    assert plain.shape == imitating.shape
    assert np.abs(plain - imitating).max() > 0
