"""A worker reads the recordings that a job names, decodes them beside its device, and passes them to the engine."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serve_app.artifacts import Artifacts
from serve_app.audio import Song
from serve_app.config import InputArgs
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import ArtifactsUnavailable, DecodingFailed, InputLost
from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.worker.song_inputs import SongInputReader
from tests.support.failure_codes import provoked
from tests.support.recordings import recording, tones
from tests.support.running import SONG, Service, running, simulated
from tests.support.stored_inputs import add_file

WAV = recording("wav32")


class Listening(SimulatedEngine):
    """Keeps the inputs of its last job."""

    inputs: SongInputs = NO_INPUTS

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        self.inputs = inputs
        return super().generate(request, on_step, stopped, inputs)


@pytest.fixture
def engine() -> Listening:
    """The engine of `here`."""
    return Listening("ace-step", simulated())


@pytest.fixture
def here(tmp_path: Path, engine: Listening) -> Iterator[Service]:
    """A service whose worker has the engine."""
    with running(tmp_path, engine=engine) as service:
        yield service


def upload(service: Service, data: bytes) -> str:
    return str(service.client.post("/v1/inputs", content=data).json()["name"])


def test_the_engine_gets_the_samples_of_an_upload(here: Service, engine: Listening) -> None:
    """The exact ones for a float file at 48 kHz. The next job without a recording gets none."""
    job = here.ended(here.submit(reference=upload(here, WAV))["id"])
    given = engine.inputs.reference
    assert job["state"] == "succeeded"
    assert given is not None
    np.testing.assert_array_equal(given, tones())
    assert engine.inputs.source is None
    here.ended(here.submit()["id"])
    assert engine.inputs.reference is None


def test_the_engine_gets_the_samples_of_an_earlier_song(here: Service, engine: Listening) -> None:
    """The file that the earlier job published is decoded."""
    first = here.ended(here.submit(**SONG, variations=2)["id"])
    job = here.ended(here.submit(reference=f"job:{first['id']}/1")["id"])
    assert job["state"] == "succeeded"
    given = engine.inputs.reference
    assert given is not None
    assert given.shape == (2 * 48_000, 2)
    assert np.abs(given).max() == pytest.approx(0.1, abs=1e-3)  # the simulated engine's tone


def test_a_job_whose_recording_is_gone_fails_at_once(here: Service) -> None:
    """It is not retried, and the worker goes on."""
    name = upload(here, recording("flac"))
    here.artifacts.delete([file.key for file in here.artifacts.list("inputs")])
    job = here.ended(here.submit(reference=name)["id"])
    assert (job["state"], job["attempt"], job["error"]["code"]) == ("failed", 1, "input_lost")
    provoked("input_lost", "a job whose recording was removed from the audio store", job["error"]["message"])
    assert here.ended(here.submit()["id"])["state"] == "succeeded"


def test_a_job_whose_recording_was_changed_fails(here: Service) -> None:
    """A file with other bytes than were uploaded is not used."""
    name = upload(here, recording("flac"))
    (file,) = here.artifacts.list("inputs")
    here.artifacts.put(file.key, recording("ogg"))
    job = here.ended(here.submit(reference=name)["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "input_lost")


def test_a_job_waits_for_an_audio_store_that_cannot_be_read(here: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt counts, and the next one succeeds."""
    name = upload(here, WAV)
    get = here.artifacts.get
    failures = [ArtifactsUnavailable("be read")]

    def get_later(key: str) -> bytes:
        if failures:
            raise failures.pop()
        return get(key)

    monkeypatch.setattr(here.artifacts, "get", get_later)
    job = here.ended(here.submit(reference=name)["id"])
    assert (job["state"], job["attempt"]) == ("succeeded", 2)


# --- The reader -----------------------------------------------------------------------------------------------------


def job_with(store: Store, **names: str) -> Job:
    """A job whose request has these names, whatever its task."""
    request = MusicRequest(prompt="piano", model="m", seed=1)
    job, _ = store.jobs.submit(request, owner="me", deadline_s=600, max_attempts=3)
    return replace(job, request=request.model_copy(update=names))


def reader(store: Store, artifacts: Artifacts, **settings: Any) -> SongInputReader:
    return SongInputReader(store, artifacts, InputArgs(**settings))


def test_source_and_reference_are_told_apart(sqlite_store: Store, artifacts: Artifacts) -> None:
    """Each field has its recording, and the stage `preparing` counts them."""
    source = add_file(sqlite_store, artifacts, recording("wav32", 1.0))
    reference = add_file(sqlite_store, artifacts, recording("wav32", 0.5))
    steps: list[tuple[str, int, int]] = []
    job = job_with(sqlite_store, source=source, reference=reference)
    found = reader(sqlite_store, artifacts).read(job, lambda *step: steps.append(step), "", lambda: False)
    assert found.source is not None
    assert found.reference is not None
    assert (len(found.source), len(found.reference)) == (48_000, 24_000)
    assert steps == [("preparing", 0, 2), ("preparing", 1, 2)]


def test_a_codec_that_crashes_fails_the_job_and_not_the_worker(
    sqlite_store: Store, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's process dies alone; no process is left."""
    job = job_with(sqlite_store, reference=add_file(sqlite_store, artifacts, WAV))
    (tmp_path / "soxr.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputLost, match="SIGSEGV"):
        reader(sqlite_store, artifacts).read(job, lambda *_: None, "", lambda: False)
    assert not [child for child in psutil.Process().children() if "decoding" in " ".join(child.cmdline())]


def test_a_decoder_that_takes_too_long_is_tried_again(
    sqlite_store: Store, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may be busy: the file was decoded in time when it was uploaded."""
    job = job_with(sqlite_store, reference=add_file(sqlite_store, artifacts, WAV))
    (tmp_path / "soxr.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DecodingFailed) as failed:
        reader(sqlite_store, artifacts, decode_timeout_s=1).read(job, lambda *_: None, "", lambda: False)
    assert failed.value.retryable
    provoked("decoding_failed", "a recording whose decoding hangs in a worker", failed.value.message)
