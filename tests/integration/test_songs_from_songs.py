"""Songs from songs over HTTP: from an upload or an earlier job to the files, with a real base model of random weights."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from serve_app.config import ModelArgs
from tests.support.engines import base_engine
from tests.support.recordings import pcm
from tests.support.running import Service, running

RATE = 48_000
QUICK = {"prompt": "piano", "steps": 1, "guidance_scale": 1.0, "format": "wav", "seed": 3}
"""A request that takes little time."""


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a base model that has a worker, and a turbo model that has none."""
    engine = base_engine(checkpoint, tmp_path_factory.mktemp("base"))
    models = {"base": engine._args, "turbo": ModelArgs(source="simulated", variant="turbo")}
    with running(tmp_path_factory.mktemp("songs"), models, engine) as service:
        yield service


@pytest.fixture(scope="module")
def recording(service: Service) -> npt.NDArray[np.int16]:
    """A recording of four seconds, which is uploaded."""
    random = np.random.default_rng(1)
    return (3000 * random.standard_normal((4 * RATE, 2))).astype(np.int16)


@pytest.fixture(scope="module")
def uploaded(service: Service, recording: npt.NDArray[np.int16]) -> str:
    """The name of the uploaded recording."""
    data = pcm(recording.astype(np.float32) / np.float32(32768), RATE, "WAV")
    answer = service.client.post("/v1/inputs", content=data)
    assert answer.status_code in (200, 201), answer.text
    return f"input:{answer.json()['id']}"


def test_a_repaint_of_an_upload_keeps_the_rest(
    service: Service, uploaded: str, recording: npt.NDArray[np.int16]
) -> None:
    """In the WAV file of a repaint, the samples outside the part differ by 0 from the upload's, and the job knows its length."""
    part = {"repaint_start": 1.0, "repaint_end": 2.0, "repaint_mode": "aggressive", "repaint_strength": 0.3}
    job = _ended(service, task_type="repaint", source=uploaded, extend_after=1.0, duration=9, **part)

    song = _samples(service, job)
    assert job["request"]["duration"] == 5.0
    assert [warning.partition(":")[0] for warning in job["warnings"]] == [
        "duration is ignored",
        "repaint_strength is ignored",
    ]
    assert np.array_equal(song[:RATE], recording[:RATE])
    assert np.array_equal(song[2 * RATE : 4 * RATE], recording[2 * RATE :])
    assert (song[RATE : 2 * RATE] != recording[RATE : 2 * RATE]).mean() > 0.9
    assert len(song) == 5 * RATE


def test_an_edit_of_an_upload_is_as_long_as_it(service: Service, uploaded: str) -> None:
    """A base model plays it, and reports the settings that edits ignore; a turbo model's refusal names the base model."""
    words = {"task_type": "edit", "source": uploaded, "source_prompt": "violin", "source_lyrics": "la la"}

    part = {"steps": 4, "edit_start": 0.25, "edit_end": 0.75, "edit_draws": 2}
    job = _ended(service, **words, **part, duration=4, sampler="heun")
    refused = service.client.post("/v1/jobs", json={**QUICK, **words, "model": "turbo"}).json()

    assert job["audio"][0]["seconds"] == 4.0
    assert job["warnings"] == ["sampler is ignored by task_type edit."]
    assert refused["errors"][0]["message"] == "cannot be done by 'turbo', a turbo model; send it to the model 'base'"


def test_stems_of_a_song_are_files_with_their_tracks(service: Service, uploaded: str) -> None:
    """A job of stems has a file for each track, as long as its source, named by the track, alone and in the zip file."""
    first = _ended(service, task_type="cover-nofsq", source=uploaded)

    job = _ended(service, task_type="stems", source=f"job:{first['id']}", tracks=["drums", "vocals"])

    assert [file["track"] for file in job["audio"]] == ["drums", "vocals"]
    assert {file["seconds"] for file in job["audio"]} == {4.0}
    name = service.client.head(job["audio"][1]["url"]).headers["content-disposition"]
    assert name == 'inline; filename="piano-vocals-3.wav"'
    archive = zipfile.ZipFile(io.BytesIO(service.client.get(job["links"]["songs"]).content))
    assert archive.namelist() == ["piano-drums-3.wav", "piano-vocals-3.wav"]
    assert archive.read("piano-vocals-3.wav") == service.client.get(job["audio"][1]["url"]).content


def test_every_stem_of_twelve_can_be_downloaded_and_used(service: Service, uploaded: str) -> None:
    """Each URL that a job of all tracks shows answers, and the last stem can be the source of another job."""
    job = _ended(service, task_type="stems", source=uploaded)

    answers = [service.client.head(file["url"]).status_code for file in job["audio"]]
    last = _ended(service, task_type="cover-nofsq", source=f"job:{job['id']}/11")

    assert answers == [200] * 12
    assert last["audio"][0]["seconds"] == 4.0


def test_a_songs_audio_codes_make_a_cover_of_it(service: Service, uploaded: str) -> None:
    """A request with a song's codes gives the song that a cover of it gives, but for the rounding of kept latents."""
    first = _ended(service, task_type="cover-nofsq", source=uploaded)
    [told] = service.client.get(first["links"]["codes"]).json()["songs"]
    cover = _ended(service, task_type="cover", source=f"job:{first['id']}", seed=5)

    by_codes = _ended(service, audio_codes=told["audio_codes"], duration=told["seconds"], seed=5)
    other = _ended(service, duration=told["seconds"], seed=5)

    assert told["audio_codes"].count("|>") == 20
    expected = _samples(service, cover).astype(np.float64)
    near = np.abs(_samples(service, by_codes) - expected).mean()
    far = np.abs(_samples(service, other) - expected).mean()
    print(f"mean difference from the cover: {near:.1f} by codes, {far:.1f} by words alone")
    assert near < far / 4


def test_a_job_whose_song_another_job_needs_is_not_deleted(service: Service, uploaded: str) -> None:
    """The first job can be deleted once no queued or running job has its song as the source."""
    first = _ended(service, task_type="cover-nofsq", source=uploaded)
    fields = {**QUICK, "task_type": "cover-nofsq", "source": f"job:{first['id']}/0", "model": "turbo"}
    needing = service.client.post("/v1/jobs", json=fields).json()

    refused = service.client.delete(f"/v1/jobs/{first['id']}")
    cancelled = service.client.post(f"/v1/jobs/{needing['id']}/cancel")
    deleted = service.client.delete(f"/v1/jobs/{first['id']}")

    assert refused.status_code == 409
    assert "makes a song from its songs" in refused.json()["detail"]
    assert (cancelled.status_code, deleted.status_code) == (200, 204)


def test_a_task_of_base_models_is_refused_for_others(service: Service, uploaded: str) -> None:
    """The error names the field, the model's variant and the models that can; /v1/models lists the tasks of each."""
    body = {**QUICK, "model": "turbo", "task_type": "extract", "source": uploaded}

    answer = service.client.post("/v1/jobs", json=body)

    [error] = answer.json()["errors"]
    assert answer.status_code == 422
    assert error["field"] == "task_type"
    assert error["message"] == "cannot be done by 'turbo', a turbo model; send it to the model 'base'"
    tasks = {model["name"]: model["tasks"] for model in service.client.get("/v1/models").json()["models"]}
    assert "extract" in tasks["base"]
    assert "extract" not in tasks["turbo"]


def test_a_part_outside_the_source_is_refused_at_once(service: Service, uploaded: str) -> None:
    """A part beyond the end of the source, and a song that would be too long, are refused at submission."""
    fields = {**QUICK, "task_type": "repaint", "source": uploaded}

    beyond = service.client.post("/v1/jobs", json={**fields, "repaint_start": 9}).json()["errors"]
    too_long = service.client.post("/v1/jobs", json={**fields, "extend_after": 600}).json()["errors"]

    assert [(error["field"], error["message"]) for error in beyond] == [
        ("repaint_start", "is 9, but the source ends at 4 s")
    ]
    assert [error["message"] for error in too_long] == ["would make a song of 604 s; it must be from 1 to 600 s"]


def _ended(service: Service, **fields: Any) -> dict[str, Any]:
    job = service.ended(service.submit(**{**QUICK, **fields})["id"])
    assert job["state"] == "succeeded", job
    return job


def _samples(service: Service, job: dict[str, Any]) -> npt.NDArray[np.int16]:
    """The samples of the job's first file: (frames, 2)."""
    samples, _rate = soundfile.read(io.BytesIO(service.client.get(job["audio"][0]["url"]).content), dtype="int16")
    song: npt.NDArray[np.int16] = samples
    return song
