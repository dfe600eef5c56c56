"""Latents kept beside the audio: their file, who reads it, and when it is deleted."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from serve_app.artifacts.latents import codes_from_file, from_file, to_file
from serve_app.audio import Song
from serve_app.background import janitor
from serve_app.config import InputArgs
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest
from serve_app.worker.song_inputs import SongInputReader
from tests.support.retention import KEPT, always, keys
from tests.support.running import Service, running, simulated

LATENTS = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
CODES = (0, 63_999, 7)
CHECKPOINT = "simulated@ 0"
GAIN = 1.7


class WithLatents(SimulatedEngine):
    """Gives each song latents and audio codes, as the real engine does."""

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        for song in super().generate(request, on_step, stopped, inputs):
            yield replace(song, latents=LATENTS, codes=CODES, gain=GAIN)


def service(folder: Path, **settings: Any) -> Any:
    return running(folder, engine=WithLatents("ace-step", simulated()), **settings)


def latents_of(here: Service) -> list[str]:
    return sorted(key for key in keys(here.artifacts) if key.endswith(".latents"))


def test_the_file_holds_bfloat16_rounded_as_torch_rounds() -> None:
    """Other programs can read it; 192 kB a minute."""
    file = to_file(LATENTS, "here", gain=GAIN)
    read = safetensors.torch.load(file)["latents"]
    assert read.dtype is torch.bfloat16
    assert torch.equal(read, torch.from_numpy(LATENTS).bfloat16())
    again = from_file(file, "here")
    assert again is not None
    np.testing.assert_array_equal(again.values, read.float().numpy())
    assert again.gain == GAIN
    assert len(to_file(np.zeros((25 * 60, 64), np.float32), "here")) < 193_000


def test_the_file_holds_the_audio_codes_as_integers() -> None:
    """Other programs can read them, and the latents are as without them; a file without codes, or a damaged one, has None."""
    file = to_file(LATENTS, "here", CODES)

    assert safetensors.torch.load(file)["codes"].tolist() == list(CODES)
    assert codes_from_file(file) == list(CODES)
    with_codes = from_file(file, "here")
    without = from_file(to_file(LATENTS, "here"), "here")
    assert with_codes is not None
    assert without is not None
    np.testing.assert_array_equal(with_codes.values, without.values)
    assert codes_from_file(to_file(LATENTS, "here")) is None
    assert codes_from_file(file[:-1]) is None
    assert codes_from_file(b"") is None


def test_a_file_that_cannot_be_used_is_none() -> None:
    """Latents of another checkpoint, and every kind of damage to the header; the song's samples are enough."""
    file = to_file(LATENTS, "here")
    assert from_file(file, "elsewhere") is None
    assert from_file(file[:-1], "here") is None
    assert from_file(b"", "here") is None
    for position in range(8 + 16):
        damaged = bytearray(file)
        damaged[position] ^= 0x40
        assert from_file(bytes(damaged), "here") is None, position


def test_latents_are_kept_read_and_deleted_with_their_job(tmp_path: Path) -> None:
    """One file a song, which a later job with the song as its source starts from, if the same checkpoint generates it."""
    with service(tmp_path) as here:
        job = here.ended(here.submit(variations=2)["id"])
        kept = latents_of(here)
        request = MusicRequest(prompt="x", model="ace-step", seed=1).model_copy(update={"source": f"job:{job['id']}/1"})
        later = replace(here.store.jobs.get(job["id"]), request=request)
        reader = SongInputReader(here.store, here.artifacts, InputArgs())
        found, other = (reader.read(later, lambda *_: None, name, lambda: False) for name in (CHECKPOINT, "another"))
        here.client.delete(f"/v1/jobs/{job['id']}")
        left = keys(here.artifacts)
    assert [key.rpartition("/")[2] for key in kept] == ["0.latents", "1.latents"]
    assert found.source is not None
    assert found.source_latents is not None
    np.testing.assert_allclose(found.source_latents, LATENTS, rtol=2**-8)
    assert other.source is not None
    assert other.source_latents is None
    assert (found.source_gain, other.source_gain) == (GAIN, 1.0)
    assert left == set()


@pytest.mark.parametrize(
    ("settings", "fields"), [({}, {"keep_latents": False}), ({"encoding": {"keep_latents": False}}, {})]
)
def test_latents_can_be_switched_off(tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any]) -> None:
    """By a request for its songs, and by the operator for all."""
    with service(tmp_path, **settings) as here:
        job = here.ended(here.submit(**fields)["id"])
        codes = here.client.get(job["links"]["codes"])
        assert job["state"] == "succeeded"
        assert latents_of(here) == []
    assert (codes.status_code, codes.json()["code"]) == (404, "not_found")
    assert "has no audio codes" in codes.json()["detail"]


def test_a_jobs_audio_codes_are_told_for_each_song(tmp_path: Path) -> None:
    """As ACE-Step's text, which a request may send back; a job without songs has none."""
    with service(tmp_path) as here:
        job = here.ended(here.submit(variations=2, seed=4)["id"])
        told = here.client.get(job["links"]["codes"])
        songs = told.json()["songs"]
        cover = here.submit(audio_codes=songs[1]["audio_codes"])
        here.store.retention.mark_audio_gone([job["id"]])
        gone = here.client.get(job["links"]["codes"])
        waiting = here.client.get(here.submit(duration=600)["links"]["codes"])

    text = "<|audio_code_0|><|audio_code_63999|><|audio_code_7|>"
    assert [(song["seed"], song["track"], song["seconds"], song["audio_codes"]) for song in songs] == [
        (4, None, 2.0, text),
        (5, None, 2.0, text),
    ]
    assert [song["url"] for song in songs] == [file["url"] for file in job["audio"]]
    assert cover["request"]["audio_codes"] == list(CODES)
    assert (gone.status_code, gone.json()["code"]) == (410, "audio_expired")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "conflict")


def test_the_janitor_keeps_latents_as_long_as_their_song(tmp_path: Path) -> None:
    """An audit removes none that belong to a job. A job whose song is lost has lost its audio, even if its latents are left."""
    with service(tmp_path) as here:
        job = here.ended(here.submit()["id"])
        janitor.audit(here.store, here.artifacts, KEPT, always)
        kept = latents_of(here)
        here.artifacts.delete(key for key in keys(here.artifacts) if not key.endswith(".latents"))
        janitor.audit(here.store, here.artifacts, KEPT, always)
        gone = here.job(job["id"])["audio_gone_at"]
        janitor.expire(here.store, here.artifacts, KEPT.model_copy(update={"rows_s": 0.0}), always)
        left = keys(here.artifacts)
    assert len(kept) == 1
    assert gone is not None
    assert left == set()
