"""Encoder processes: what they cost the worker, and what happens when they or the worker die."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

from serve_app.audio import Encoders, SharedSamples, Tags, encode
from serve_app.errors import EncodingFailed
from serve_app.worker.unstored_songs import MAX_SONGS, UnstoredSongs
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.signals import music

TAGS = Tags(title="song", prompt="piano", seed=7, model="ace-step")


@pytest.fixture
def encoders() -> Iterator[Encoders]:
    """A pool of one process, which is started when it is needed."""
    pool = Encoders(1)
    yield pool
    pool.close()


def processes(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The encoder processes of this one, or of another."""
    found = []
    for child in (of or psutil.Process()).children():
        with suppress(psutil.NoSuchProcess):
            if "serve_app.audio.process" in " ".join(child.cmdline()):
                found.append(child)
    return found


def started(pool: Encoders) -> psutil.Process:
    """The process of a pool of one."""
    before = {process.pid for process in processes()}
    pool.warm_up()
    return eventually(lambda: next((process for process in processes() if process.pid not in before), None))


@pytest.mark.fault("C6")
def test_a_process_gives_the_same_file_and_takes_the_work_off_the_worker(encoders: Encoders) -> None:
    """The file is the one that `encode` makes, and the worker's own process spends a small part of the time on it."""
    samples = music(20)
    began = time.process_time()
    ours = encode(samples, "mp3", TAGS)
    alone = time.process_time() - began
    encoders.warm_up()

    began = time.process_time()
    with SharedSamples(samples) as song:
        theirs = encoders.encode(song, "mp3", TAGS)
    beside = time.process_time() - began

    assert bytes(theirs) == ours
    assert beside < alone / 3


@pytest.mark.fault("C6")
def test_a_song_whose_encoder_dies_is_tried_once_more(encoders: Encoders) -> None:
    """A process that is killed over a song costs the worker nothing, and the song comes out as it should."""
    process = started(encoders)
    process.suspend()
    with ThreadPoolExecutor(1) as threads, SharedSamples(music(1)) as song:
        file = threads.submit(encoders.encode, song, "flac", TAGS)
        eventually(lambda: not encoders.idle)

        process.kill()

        assert bytes(file.result(60)) == encode(music(1), "flac", TAGS)


@pytest.mark.fault("C6")
def test_an_encoder_that_always_dies_fails_the_job_with_its_cause(encoders: Encoders) -> None:
    """After two deaths the song's job fails and its error names the signal; the pool goes on with the next song."""
    others = {process.pid for process in processes()}
    done = threading.Event()

    def kill_all() -> None:
        while not done.wait(0.01):
            for process in processes():
                if process.pid not in others:
                    process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    with SharedSamples(music(1)) as song:
        with pytest.raises(
            EncodingFailed, match="failed twice while encoding this song: it was killed by SIGKILL"
        ) as caught:
            encoders.encode(song, "flac", TAGS)
        provoked("encoding_failed", "the encoder process dies twice on the same song", caught.value.message)
        done.set()
        killer.join()
        assert encoders.encode(song, "flac", TAGS)


def test_a_codecs_own_error_is_reported_and_its_process_continues(encoders: Encoders) -> None:
    """What the codec raises becomes EncodingFailed at once; the next song is encoded by the same process."""
    process = started(encoders)
    unknown: Any = "nothing"
    with SharedSamples(music(1)) as song:
        with pytest.raises(EncodingFailed, match="The nothing encoder failed: "):
            encoders.encode(song, unknown, TAGS)

        assert encoders.encode(song, "wav", TAGS)
    assert process.is_running()


WORKER = """
import sys
from serve_app.audio import Encoders
encoders = Encoders(1)
encoders.warm_up()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.fault("C6")
def test_encoders_die_with_a_worker_that_is_killed() -> None:
    """A SIGKILL of the worker leaves no encoder process behind."""
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        (process,) = processes(psutil.Process(worker.pid))

        worker.send_signal(signal.SIGKILL)
        worker.wait()

    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def test_an_encoder_process_has_no_torch(encoders: Encoders) -> None:
    """The program of an encoder process imports neither torch nor Ray."""
    program = "import sys, serve_app.audio.process; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_unstored_songs_are_limited_by_seconds_and_by_number() -> None:
    """A song beyond either limit waits until another is stored; a single song is always allowed."""
    unstored = UnstoredSongs(max_seconds=100)

    assert unstored.reserve(600, timeout=0)
    assert not unstored.reserve(1, timeout=0)
    unstored.release(600)
    assert all(unstored.reserve(1, timeout=0) for _ in range(MAX_SONGS))
    assert not unstored.reserve(1, timeout=0)


def test_a_song_in_shared_memory_is_the_song(encoders: Encoders) -> None:
    """Samples of any layout in memory arrive as they are."""
    samples = np.asfortranarray(music(1))

    with SharedSamples(samples) as song:
        assert bytes(encoders.encode(song, "wav32", TAGS)) == encode(samples, "wav32", TAGS)
