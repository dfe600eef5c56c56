"""An engine that sleeps instead of computing, so that many workers can run on two cores."""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

import numpy as np

from serve_app import errors
from serve_app.audio import Song
from serve_app.config import ModelArgs, Variant
from serve_app.engine.protocol import NO_INPUTS, EngineFacts, OnStep, SongInputs
from serve_app.music import MAX_SEED, SAMPLE_RATE, TASKS, VARIANT_DEFAULTS, MusicRequest
from serve_app.weights import Report

_TONE_HZ: Final = 440
_AMPLITUDE: Final = 0.1


class SimulatedEngine:
    """Sleeps for configured times instead of generating. Only for tests of scheduling, scaling and faults.

    It says nothing about audio: every song is a quiet 440 Hz tone, whatever the request.
    """

    slots: int = 1

    def __init__(self, name: str, args: ModelArgs) -> None:
        self._name = name
        self._args = args
        self._variant: Variant = args.variant or "turbo"

    def load(self, report: Report) -> EngineFacts:
        """Sleeps for `simulated.load_s` seconds and reports the phases of a real load."""
        report("preflight", None, "simulated: nothing to import")
        report("download", 1.0, "simulated: nothing to download")
        _wait(
            self._args.simulated.load_s, lambda fraction: report("load", fraction, f"simulated: {fraction:.0%} loaded")
        )
        report("warm_up", None, "simulated: nothing to warm up")
        return EngineFacts(
            variant=self._variant,
            source="simulated",
            revision=None,
            dtype="none",
            device="simulated",
            tasks=TASKS[self._variant],
            noise=True,
            versions={"numpy": version("numpy")},
            weights_bytes=0,
        )

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:  # noqa: ARG002 - the Engine protocol's signature
        """Returns one warning: the audio is not music."""
        return (f"{self._name} is simulated: the audio is a test tone, not music.",)

    def codes_of(self, samples: np.ndarray) -> tuple[int, ...]:
        """Returns five codes a second that mean nothing."""
        return tuple(range(5 * len(samples) // SAMPLE_RATE))

    def generate(
        self,
        request: MusicRequest,
        on_step: OnStep,
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,  # noqa: ARG002 - the Engine protocol's signature
    ) -> Iterator[Song]:
        """Sleeps `simulated.step_s` per denoising step, then yields one tone of the requested duration per variation.

        Raises:
            Stopped: `stopped()` returned true between two steps.
        """
        if request.seed is None:
            raise ValueError("the request has no seed: the caller must set one")
        steps = request.steps or VARIANT_DEFAULTS[self._variant].steps
        _stop_if(stopped)
        on_step("conditioning", 0, 1)
        start = time.monotonic()
        for step in range(1, steps + 1):
            _sleep_until(start + step * self._args.simulated.step_s)
            on_step("denoising", step, steps)
            _stop_if(stopped)
        tone = _tone(round(request.duration * SAMPLE_RATE))
        tracks = request.stems
        for i in range(request.songs):
            _stop_if(stopped)
            on_step("decoding", i + 1, request.songs)
            seed = request.seed if tracks else (request.seed + i) % (MAX_SEED + 1)
            yield Song(seed=seed, samples=tone.copy(), track=tracks[i] if tracks else None)


def _wait(seconds: float, report: Callable[[float], None]) -> None:
    """Sleeps for `seconds` and reports the elapsed fraction about five times a second."""
    start = time.monotonic()
    ticks = max(1, round(seconds / 0.2))
    for tick in range(1, ticks + 1):
        _sleep_until(start + seconds * tick / ticks)
        report(tick / ticks)


def _sleep_until(moment: float) -> None:
    """Sleeps until `moment` on the monotonic clock. Unlike fixed sleeps in a row, this does not accumulate late wake-ups."""
    time.sleep(max(0.0, moment - time.monotonic()))


def _stop_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise errors.Stopped


def _tone(frames: int) -> np.ndarray:
    """Returns a sine as float32 of shape (frames, 2). It repeats one second, which holds exactly 440 periods."""
    second = _AMPLITUDE * np.sin(2 * np.pi * _TONE_HZ * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    mono = np.resize(second.astype(np.float32), frames)
    return np.repeat(mono[:, None], 2, axis=1)
