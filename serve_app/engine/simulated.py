"""An engine that sleeps instead of computing, so that many workers fit on two cores."""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

import numpy as np

from serve_app import errors
from serve_app.audio import Song
from serve_app.config import ModelArgs, Variant
from serve_app.engine.protocol import EngineFacts, OnStep
from serve_app.music import MAX_SEED, SAMPLE_RATE, TASKS, VARIANT_DEFAULTS, MusicRequest
from serve_app.weights import Report

_TONE_HZ: Final = 440
_AMPLITUDE: Final = 0.1


class SimulatedEngine:
    """AceStepEngine's interface with sleeps of known length: for tests of scheduling, scaling and faults only.

    Nothing about audio is ever shown with it: every song is a quiet 440 Hz tone, whatever was asked for.
    """

    slots: int = 1

    def __init__(self, name: str, args: ModelArgs) -> None:
        self._name = name
        self._args = args
        self._variant: Variant = args.variant or "turbo"

    def load(self, report: Report) -> EngineFacts:
        """Takes `simulated.load_s` seconds, reported as the phases of a real load."""
        report("preflight", None, "simulated: nothing to import")
        report("download", 1.0, "simulated: nothing to fetch")
        _pass(
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
        """Says that this is no music."""
        return (f"{self._name} is simulated: the audio is a test tone, not music.",)

    def generate(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> Iterator[Song]:
        """Sleeps `simulated.step_s` a denoising step, then yields tones of the asked length with seeds seed + i.

        Raises:
            Stopped: `stopped` said so, between two steps.
        """
        if request.seed is None:
            raise ValueError("the caller fills in the seed")
        steps = request.steps or VARIANT_DEFAULTS[self._variant].steps
        _stop_if(stopped)
        on_step("conditioning", 0, 1)
        start = time.monotonic()
        for step in range(1, steps + 1):
            _sleep_until(start + step * self._args.simulated.step_s)
            on_step("denoising", step, steps)
            _stop_if(stopped)
        tone = _tone(round(request.duration * SAMPLE_RATE))
        for i in range(request.variations):
            _stop_if(stopped)
            on_step("decoding", i + 1, request.variations)
            yield Song(seed=(request.seed + i) % (MAX_SEED + 1), samples=tone.copy())


def _pass(seconds: float, report: Callable[[float], None]) -> None:
    """Lets `seconds` go by, reporting the fraction gone about five times a second."""
    start = time.monotonic()
    ticks = max(1, round(seconds / 0.2))
    for tick in range(1, ticks + 1):
        _sleep_until(start + seconds * tick / ticks)
        report(tick / ticks)


def _sleep_until(moment: float) -> None:
    """Sleeps until a moment of the monotonic clock, so that late wake-ups do not add up."""
    time.sleep(max(0.0, moment - time.monotonic()))


def _stop_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise errors.Stopped


def _tone(frames: int) -> np.ndarray:
    """A sine, (frames, 2) in float32: one second is computed and repeated, as 440 periods fit into it exactly."""
    second = _AMPLITUDE * np.sin(2 * np.pi * _TONE_HZ * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    mono = np.resize(second.astype(np.float32), frames)
    return np.repeat(mono[:, None], 2, axis=1)
