"""The values that jobs.py defines, and their JSON in the database."""

import json

from serve_app.errors import BadAudio
from serve_app.jobs import JobFailure, StoredAudio, WorkerPhase

STORED = (
    '{"key": "j/1-w/0.flac", "format": "flac", "seconds": 2.5, "sample_rate": 48000, "channels": 2, "bytes": 4, '
    '"sha256": "00", "seed": 7}'
)
FAILURE = '{"code": "bad_audio", "message": "NaN"}'


def test_a_stored_file_is_the_same_json_in_the_database_as_in_earlier_versions() -> None:
    """JSON of earlier versions is read, and written again byte for byte."""
    file = StoredAudio.from_json(json.loads(STORED))

    assert file == StoredAudio("j/1-w/0.flac", "flac", 2.5, 48_000, 2, 4, "00", 7)
    assert json.dumps(file.to_json()) == STORED


def test_a_failure_is_the_same_json_in_the_database_as_in_earlier_versions() -> None:
    """A failure has an error's code and message, and reads JSON of earlier versions."""
    failure = JobFailure.from_error(BadAudio("NaN"))

    assert json.dumps(failure.to_json()) == FAILURE
    assert JobFailure.from_json(json.loads(FAILURE)) == failure


def test_keys_that_a_later_version_added_are_ignored() -> None:
    """During a rollout an API process reads rows of a later version."""
    assert StoredAudio.from_json({**json.loads(STORED), "loudness": -14.0}).seed == 7
    assert JobFailure.from_json({**json.loads(FAILURE), "retryable": True}).code == "bad_audio"


def test_a_worker_is_starting_or_ready_or_neither() -> None:
    """The phases up to warm_up are starting, idle and generating are ready, draining and failed are neither."""
    assert [phase.value for phase in WorkerPhase if phase.is_starting] == [
        "starting",
        "preflight",
        "download",
        "load",
        "warm_up",
    ]
    assert [phase.value for phase in WorkerPhase if phase.is_ready] == ["idle", "generating"]
