"""An engine that tells how long each stage of its last job took, and which latents it made."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from benchmarks.player import Samples
from serve_app.audio import Song
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.protocol import NO_INPUTS, EngineFacts, OnStep, SongInputs
from serve_app.music import MusicRequest


@dataclass
class Clock:
    """Seconds by stage of one job, from the engine's own reports. At each report it waits for the device."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    steps_s: list[float] = field(default_factory=list)
    stage: str = "conditioning"
    since: float = 0.0

    def start(self) -> None:
        """Begin the song's first stage."""
        self._wait()
        self.since = time.perf_counter()

    def on_step(self, stage: str, step: int, steps: int) -> None:
        """Called by the engine after each step or tile."""
        self._wait()
        now = time.perf_counter()
        passed = now - self.since
        self.since = now
        if stage == "conditioning":
            return
        if stage == "denoising" and step == 1:
            stage = "conditioning and first step"
        elif stage == "denoising":
            self.steps_s.append(passed)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + passed

    def finish(self) -> None:
        """Count the time after the last tile: the copy to the host and the scaling to the peak level."""
        self._wait()
        self.seconds["copy and level"] = time.perf_counter() - self.since

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class MeasuredEngine(AceStepEngine):
    """An engine whose jobs are measured. `facts` is what it reported when it was loaded."""

    facts: EngineFacts
    clock: Clock
    """The times of the last job."""
    latents: list[torch.Tensor]
    """The latents (frames, 64) of the last job's songs."""

    def load(self, report: Callable[[str, float | None, str], None]) -> EngineFacts:
        self.facts = super().load(report)
        return self.facts

    def generate(
        self,
        request: MusicRequest,
        on_step: OnStep,
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        """Generates as AceStepEngine does, and measures."""
        self.clock = Clock(self._pipe.device)
        self.latents = []

        def report(stage: str, step: int, steps: int) -> None:
            self.clock.on_step(stage, step, steps)
            on_step(stage, step, steps)

        self.clock.start()
        for song in super().generate(request, report, stopped, inputs):
            assert song.latents is not None
            self.latents.append(torch.from_numpy(song.latents))
            yield song
        self.clock.finish()

    def decoded(self, latents: torch.Tensor) -> Samples:
        """The samples (2, samples) that the VAE makes of latents (frames, 64). No job may run meanwhile."""
        vae = self._pipe.vae
        with torch.inference_mode():
            audio = vae.decode(latents.T[None].to(vae.device, vae.dtype), return_dict=False)[0]
        song: Samples = audio[0].float().cpu().numpy()
        return song

    def encoded(self, song: Samples) -> torch.Tensor:
        """The latents (frames, 64) that the VAE makes of samples (2, samples). No job may run meanwhile."""
        from serve_app.engine.ace_step.sources import encoded

        with torch.inference_mode():
            return encoded(self._pipe, song.T)[0].float().cpu()
