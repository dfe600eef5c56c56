"""The longest songs, in every format, through a real worker process. `make long` runs this: it takes minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs
from serve_app.music import MEDIA_TYPES, SAMPLE_RATE, MusicRequest
from serve_app.store import Store
from tests.support.signals import edit_list

WORKER_GB = 3.0
ENCODER_GB = 1.0
LENGTH_S = 600

WORKER = """
import json, resource, sys, time
from pathlib import Path
from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs, ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from serve_app.worker.worker import Worker, WorkerOptions
from tests.support.peak_memory import peak_kilobytes

args = AppArgs(data_dir=Path(sys.argv[1]), models={"m": ModelArgs(source="random", device="cpu")}, encoding={"processes": 2})
store = Store(args.resolved_database_url)
engine = AceStepEngine("m", args.models["m"], Path(sys.argv[2]))
options = WorkerOptions(encoding=args.encoding)
worker = Worker("m", engine, store, Artifacts(args.resolved_artifacts_url), args.queue, options=options)
worker.start()
while any(store.backlog.counts()[state] for state in ("queued", "running")):
    time.sleep(0.5)
worker.drain()
store.close()
own = peak_kilobytes()
encoders = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest one's
print(json.dumps({"worker": own / 1e6, "encoder": encoders / 1e6}))
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_minutes_in_every_format_in_bounded_memory(tmp_path: Path, cache: Path, checkpoint: Path) -> None:
    """A worker plays a 600 s song in each format and stays under 3 GB at its peak, and each of its encoders under 1 GB."""
    args = AppArgs(data_dir=tmp_path)
    store = Store(args.resolved_database_url)
    store.migrate()
    for audio_format in MEDIA_TYPES:
        request = {
            "prompt": "x",
            "model": "m",
            "seed": 3,
            "duration": float(LENGTH_S),
            "steps": 1,
            "format": audio_format,
        }
        store.jobs.submit(MusicRequest.model_validate(request), owner="", deadline_s=3600, max_attempts=1)

    ran = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), str(cache)], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr[-3000:]
    artifacts = Artifacts(args.resolved_artifacts_url)
    for job in store.jobs.page():
        assert job.status == "succeeded", job.error
        (file,) = job.audio
        path = tmp_path / "audio" / file.key
        if file.format == "aac":  # which libsndfile cannot read
            assert edit_list(path.read_bytes()) == (LENGTH_S * SAMPLE_RATE, 1024)
            continue
        with soundfile.SoundFile(path) as audio:
            assert (audio.samplerate, audio.channels) == (SAMPLE_RATE, 2)
            assert len(audio) == LENGTH_S * SAMPLE_RATE
            assert abs(audio.read(SAMPLE_RATE)).max() > 0.001
        assert artifacts.size(file.key) == file.bytes
        print(f"{file.format}: {file.bytes / 1e6:.1f} MB, timing {job.timing}")
    peak_gb = json.loads(ran.stdout.splitlines()[-1])
    print(f"peak memory of the worker {peak_gb['worker']:.2f} GB, of an encoder {peak_gb['encoder']:.2f} GB")
    assert peak_gb["worker"] < WORKER_GB
    assert peak_gb["encoder"] < ENCODER_GB
    store.close()
