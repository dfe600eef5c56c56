"""The speed, size and error of each audio format, and how much of the device's time is lost to encoding.

Usage: python -m benchmarks.codecs [--before FOLDER]     (part of `make bench`)

1. Each format encodes a minute of music. The benchmark prints how many times faster than real time one core is, the bit rate, and
   the largest difference from the samples (full scale is 1) in the first millisecond, in the last one and in between.
2. A worker whose engine sleeps instead of computing, at 200 times real time, generates 16 songs of 60 s that are queued already.
   The loss is the fraction of the time until the last song is generated in which the engine does not generate. The same is done
   with songs whose files have one second of audio, though the engine sleeps as long: their loss is the cost of claiming and
   publishing, and the difference is lost to encoding. Each figure is the lowest of RUNS runs.

FOLDER is a checkout of another version, such as f09e160, which is measured in the same way for comparison. Exits with 1 if more
than BOUND of the device's time is lost to encoding the default format.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import av
import numpy as np
import numpy.typing as npt
import psutil

from serve_app.artifacts import Artifacts
from serve_app.audio import Song, Tags, encode
from serve_app.config import AppArgs, ModelArgs
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import SAMPLE_RATE, Format, MusicRequest
from serve_app.store import Store
from serve_app.worker.worker import Worker

BOUND: Final = 0.1
RUNS: Final = 2
SONGS: Final = 16
SONG_S: Final = 60
REAL_TIMES: Final = 200
STEPS: Final = 8
EDGE: Final = SAMPLE_RATE // 1000
CORES: Final = len(os.sched_getaffinity(0))


def music(seconds: float) -> npt.NDArray[np.float32]:
    """Chords and a beat in soft noise, equally loud throughout, because a pure tone would be too easy for a codec."""
    frames = round(seconds * SAMPLE_RATE)
    time_s = np.arange(frames) / SAMPLE_RATE
    chord = np.sum([np.sin(2 * np.pi * tone * time_s + tone) for tone in (110, 220, 277, 330, 440, 880)], axis=0)
    noise = np.random.default_rng(1).standard_normal((frames, 2))
    beat = 0.2 * noise * np.exp(-30 * (time_s % 0.5))[:, None]
    samples = 0.08 * np.stack([chord, np.roll(chord, 12)], axis=1) + 0.02 * noise + beat
    return np.clip(samples, -1, 1).astype(np.float32)


# --- Formats --------------------------------------------------------------------------------------------------------------


def print_formats() -> None:
    samples = music(SONG_S)
    print(f"{'format':8}{'x real time':>12}{'kbit/s':>9}{'first 1 ms':>12}{'last 1 ms':>11}{'between':>9}")
    for format in get_args(Format):
        file = encode(samples, format, Tags("song", "piano", 7, "ace-step"))
        speed = SONG_S / min(processor_s(format, samples) for _ in range(3))
        error = np.abs(played(file)[: len(samples)] - samples)
        ends = error[:EDGE].max(), error[-EDGE:].max()
        between = error[EDGE:-EDGE].max()
        rate = len(file) * 8 / SONG_S / 1000
        print(f"{format:8}{speed:12.0f}{rate:9.0f}{ends[0]:12.5f}{ends[1]:11.5f}{between:9.5f}", flush=True)


def processor_s(format: Format, samples: npt.NDArray[np.float32]) -> float:
    began = time.process_time()
    encode(samples, format, Tags("song", "piano", 7, "ace-step"))
    return time.process_time() - began


def played(file: bytes) -> npt.NDArray[np.float32]:
    """The samples that FFmpeg's libraries decode from a file."""
    with av.open(io.BytesIO(file), "r") as container:
        resampler = av.AudioResampler(format="flt", layout="stereo")
        frames = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.asarray(np.concatenate(frames, axis=1).reshape(-1, 2), np.float32)


# --- A device at 200 times real time --------------------------------------------------------------------------------------


class Player(SimulatedEngine):
    """Sleeps for as long as such a device computes a song, and returns the same music each time. Records its start and end."""

    def __init__(self, seconds: float) -> None:
        super().__init__("m", ModelArgs(source="simulated"))
        self._music = music(seconds)
        self.began: float | None = None
        self.ended = 0.0

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        began = time.monotonic()
        self.began = self.began or began
        for step in range(1, STEPS + 1):
            time.sleep(max(0.0, began + step / STEPS * SONG_S / REAL_TIMES - time.monotonic()))
            on_step("denoising", step, STEPS)
        self.ended = time.monotonic()
        yield Song(seed=request.seed or 0, samples=self._music)


class Lost(NamedTuple):
    """The fraction of the device's time in which it had to wait, and the fraction of all cores that other programs used."""

    device: float
    cores: float


def lost(format: str, seconds: float) -> Lost:
    """The loss with files of `seconds` s of audio. It is larger if other programs use the cores."""
    began = time.monotonic()
    others_began_s = others_s()
    with tempfile.TemporaryDirectory() as folder:
        args = AppArgs(data_dir=Path(folder), models={"m": ModelArgs(source="simulated")})
        store = Store(args.resolved_database_url)
        store.migrate()
        for seed in range(SONGS):
            request: dict[str, Any] = {"prompt": "x", "model": "m", "seed": seed, "duration": float(SONG_S)}
            asked = MusicRequest.model_validate({**request, "format": format})
            store.jobs.submit(asked, owner="", deadline_s=3600, max_attempts=1)
        player = Player(seconds)
        worker = Worker("m", player, store, Artifacts(args.resolved_artifacts_url), args.queue)
        worker.start()
        while store.backlog.counts()["succeeded"] < SONGS:
            time.sleep(0.2)
        worker.drain()
        store.close()
    held_s = player.ended - (player.began or 0.0)
    others = (others_s() - others_began_s) / (time.monotonic() - began) / CORES
    return Lost(1 - SONGS * SONG_S / REAL_TIMES / held_s, others)


def others_s() -> float:
    """CPU seconds of the machine since its start, without those of this process and its ended children."""
    times = psutil.cpu_times()
    ours = psutil.Process().cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - sum(ours[:4]))


CASES: Final = {"mp3": ("mp3", SONG_S), "wav": ("wav", SONG_S), "files of a second": ("mp3", 1)}


def lost_in(tree: Path) -> dict[str, Lost]:
    """The result of `lowest`, with the code of the checkout `tree`."""
    program = "import json; from benchmarks.codecs import lowest; print(json.dumps(lowest()))"
    ours = Path(__file__).parents[1]
    path = os.pathsep.join([str(tree), str(ours)])
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it has a log line for each job
        check=True,
    )
    return {name: Lost(*parts) for name, parts in json.loads(ran.stdout.splitlines()[-1]).items()}


def lowest() -> dict[str, Lost]:
    """The lowest `lost` of RUNS runs for each of CASES, because other load on the machine can only increase it."""
    return {name: min(lost(*case) for _ in range(RUNS)) for name, case in CASES.items()}


def main() -> int:
    """Print both parts. Returns 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, help="a checkout of another version to measure beside this one")
    before = parser.parse_args().before
    print_formats()
    print(f"\nlost time of a device at {REAL_TIMES} times real time, {SONGS} songs of {SONG_S} s, {CORES} cores:")
    if before is not None:
        print(summary("before", lost_in(before)), flush=True)
    now = lost_in(Path(__file__).parents[1])
    print(summary("now", now))
    return 0 if to_encoding(now) <= BOUND else 1


def to_encoding(parts: dict[str, Lost]) -> float:
    """The fraction of the device's time that is lost to encoding the default format."""
    return parts["mp3"].device - parts["files of a second"].device


def summary(name: str, parts: dict[str, Lost]) -> str:
    cases = ", ".join(f"{part.device:.1%} with {case}" for case, part in parts.items())
    others = max(part.cores for part in parts.values())
    return f"{name}: {cases}; {to_encoding(parts):.1%} to encoding mp3; other programs used up to {others:.0%} of the cores"


if __name__ == "__main__":
    sys.exit(main())
