"""One request with its inputs, as the engine works on it: checked, with its length, and taken apart into stems."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve_app import errors
from serve_app.config import Variant
from serve_app.engine.ace_step.generating import fade, post_process
from serve_app.engine.ace_step.splice import spliced
from serve_app.engine.protocol import OnStep, SongInputs
from serve_app.music import SAMPLE_RATE, SOURCE_TASKS, TASKS, MusicRequest, SourcePlan, Track, source_plan


@dataclass(frozen=True)
class Work:
    """A request with its inputs."""

    request: MusicRequest
    """Its duration is that of the song, its variations are the songs to play."""
    inputs: SongInputs
    plan: SourcePlan | None
    """None for a song without a source."""
    stem: Track | None = None
    """The track, if the song is one of several stems."""

    def with_latents(self, latents: np.ndarray) -> "Work":
        """Returns the work with the latents of its source, of shape (latent frames, 64)."""
        return replace(self, inputs=replace(self.inputs, source_latents=latents))

    def parts(self) -> Sequence["Work"]:
        """Returns the parts that make its songs: for the task `stems` one for each track, else the work itself."""
        if not self.request.stems:
            return [self]
        return [
            replace(self, request=self.request.model_copy(update={"track": track}), stem=track)
            for track in self.request.stems
        ]


def work_of(request: MusicRequest, inputs: SongInputs, variant: Variant) -> Work:
    """Returns the work on `request`.

    Raises:
        InvalidRequest: models of this variant cannot do the task, or the source is missing or shorter than the request says.
    """
    task = request.task_type
    request = request.model_copy(update={"variations": max(request.variations, request.best_of)})
    if task not in TASKS[variant]:
        raise errors.InvalidRequest(
            f"task_type: is {task!r}, which {variant} models cannot do; they do {', '.join(TASKS[variant])}"
        )
    if task not in SOURCE_TASKS:
        return Work(request, inputs, plan=None)
    if inputs.source is None or len(inputs.source) == 0:
        raise errors.InvalidRequest(f"source: is missing; task_type {task!r} makes a song from another one")
    try:
        plan = source_plan(request, len(inputs.source))
    except ValueError as error:
        raise errors.InvalidRequest(str(error)) from error
    return Work(request.model_copy(update={"duration": plan.duration}), inputs, plan)


def finished(raw: np.ndarray, work: Work, seed: int) -> tuple[np.ndarray, float]:
    """Returns the samples of a song, of shape (frames, 2), from the decoded `raw` (2, frames), which is changed in place.

    Also returns their gain: they are the decoded ones times this. A repaint is spliced into its source, and stems add up to it, so
    both have the gain of the source: it was normalised, and the latents that the model heard were not. Other songs are normalised.
    """
    from serve_app.engine.ace_step.tasks import binding

    request = work.request
    gain = work.inputs.source_gain
    if work.stem is not None:
        raw *= gain
        stem = np.ascontiguousarray(raw[:, : round(request.duration * SAMPLE_RATE)].T)
        if not np.isfinite(stem).all():
            raise errors.BadAudio(f"The model produced NaN or infinite samples with seed {seed}. Try another seed.")
        return stem, gain
    if request.task_type != "repaint" or work.plan is None or work.inputs.source is None:
        return post_process(raw, request, seed)
    raw *= gain
    song = spliced(raw, work.inputs.source, work.plan, binding(request).ramp_s, seed)
    fade(song.T, request)
    return song, gain


def part_progress(on_step: OnStep, number: int, parts: int) -> OnStep:
    """Returns what the part `number`, counted from 0, of `parts` reports its steps to: they are steps of the whole request."""

    def report(stage: str, step: int, steps: int) -> None:
        on_step(stage, number * steps + step, parts * steps)

    return report
