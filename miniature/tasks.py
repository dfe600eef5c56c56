"""Training examples of ACE-Step's tasks: what diffusers' pipeline would feed the transformer, and what it should play.

The source latents and the mask are the transformer's context. Mask 1 means "play here", 0 means "keep the source"; in
training only a repaint has both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from diffusers import AceStepPipeline
from diffusers.pipelines.ace_step.pipeline_ace_step import DEFAULT_DIT_INSTRUCTION

from miniature.mixing import Latents, mixed, silence
from miniature.singing import LATENTS_A_SECOND, Syllable, sung_between, sung_syllables

HELD_OUT = 100  # the last clips of a data set: never trained on

Texts = Callable[[Any, np.random.Generator, bool], tuple[str, str]]
"""Facts, randomness and whether the instrument is named → the prompt's and the lyrics' text, in the pipeline's templates."""

# How often each task is drawn. Turbo's checkpoints of ACE-Step know the first three tasks only.
TURBO_SHARES: Mapping[str, float] = {"text2music": 0.6, "repaint": 0.2, "cover": 0.2}
BASE_SHARES: Mapping[str, float] = {
    "text2music": 0.4,
    "repaint": 0.1,
    "cover": 0.1,
    "extract": 0.15,
    "lego": 0.15,
    "complete": 0.1,
}
REFERENCE_SHARE = 0.3
AUDIBLE = 0.5  # a stem's greatest distance from silence, in the latents' standard deviations
SOURCE_NOISE = 0.05  # the VAE's encoder gives a source's latents only nearly


class Clips(Protocol):
    """What examples need of a data set: float16 latents (clips, frames, 64) of mixes and stems, and each clip's facts.

    A stem that a clip lacks is silence. Facts have `instrument`; `ending`: the piece is `piece_s` seconds long and ends in the
    clip; and `voice`: the clip sings its `syllables`.
    """

    @property
    def mix(self) -> Any: ...

    @property
    def stems(self) -> Mapping[str, Any]: ...

    @property
    def facts(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Example:
    """One example; latents are (frames, 64).

    `reference` is None where the pipeline would feed silence. A cover's source is still to go through the audio codes.
    `syllables` are those that are to be aligned with the music; none if nothing is.
    """

    target: Latents
    source: Latents
    mask: np.ndarray[tuple[int], np.dtype[np.float32]]
    prompt: str
    lyrics: str
    reference: Latents | None
    cover: bool = False
    syllables: tuple[Syllable, ...] = ()


class Examples:
    """Draws examples from the clips that are not held out; none is a cover without `covers`."""

    def __init__(
        self,
        clips: Clips,
        texts: Texts,
        *,
        shares: Mapping[str, float],
        reference_frames: int,
        covers: bool = False,
    ) -> None:
        self._clips = clips
        self._texts = texts
        self._reference_frames = reference_frames
        known = {task: share for task, share in shares.items() if covers or task != "cover"}
        self._tasks = list(known)
        self._weights = np.array(list(known.values())) / sum(known.values())
        self._training = len(clips.facts) - HELD_OUT
        self._sung = [clip for clip in range(self._training) if clips.facts[clip].voice]
        self._by_instrument: dict[str, list[int]] = {}
        for clip in range(self._training):
            self._by_instrument.setdefault(clips.facts[clip].instrument, []).append(clip)

    def draw(self, random: np.random.Generator, frames: int) -> Example:
        """An example of a random clip and task, `frames` long."""
        clip = int(random.integers(self._training))
        task = str(random.choice(self._tasks, p=self._weights))
        return self.of(clip, task, random, frames)

    def draw_sung(self, random: np.random.Generator, frames: int | None = None, task: str = "text2music") -> Example:
        """An example of a random clip with a voice, as `sung` gives it. Raises ValueError if no clip has one."""
        if not self._sung:
            raise ValueError("no clip has a voice: alignment is learnt from sung clips")
        return self.sung(self._sung[int(random.integers(len(self._sung)))], random, frames, task)

    def sung(
        self, clip: int, random: np.random.Generator, frames: int | None = None, task: str = "text2music"
    ) -> Example:
        """The example of `frames` frames, or all, of a clip with a voice, with the syllables that are sung there."""
        facts = self._clips.facts[clip]
        length = self._clips.mix.shape[1] if frames is None else frames
        start = self._start(facts, random, length)
        example = self._cut(clip, task, random, start, length)
        syllables = sung_syllables(facts, example.lyrics)
        return replace(example, syllables=sung_between(syllables, start / LATENTS_A_SECOND, length / LATENTS_A_SECOND))

    def of(self, clip: int, task: str, random: np.random.Generator, frames: int) -> Example:
        """An example of one clip and task."""
        return self._cut(clip, task, random, self._start(self._clips.facts[clip], random, frames), frames)

    def _cut(self, clip: int, task: str, random: np.random.Generator, start: int, frames: int) -> Example:
        part = slice(start, start + frames)
        mix = self._clips.mix[clip, part].astype(np.float32)
        mask = np.ones(frames, np.float32)
        track: str | None = None
        added: list[str] = []
        target = mix
        source = silence(frames)
        if task == "repaint":
            mask = _window(random, frames)
            source = np.where(mask[:, None] > 0, source, self._heard(mix, random))
        elif task == "cover":
            source = self._heard(mix, random)
        elif task in ("extract", "lego", "complete"):
            stems = self._stems(clip, part)
            track = str(random.choice(list(stems)))
            target, source, added = _tracks(task, track, mix, stems, random)
            source = self._heard(source, random)
        instruction = AceStepPipeline._get_task_instruction(task, track, added)
        example = Example(target, source, mask, "", "", None, cover=task == "cover")
        return self._described(example, clip, instruction, task, random)

    def _described(
        self, example: Example, clip: int, instruction: str, task: str, random: np.random.Generator
    ) -> Example:
        facts = self._clips.facts[clip]
        reference: Latents | None = None
        if task in TURBO_SHARES and random.random() < REFERENCE_SHARE:
            reference = self._heard(self._reference(facts.instrument, clip, random), random)
        # With a reference, the instrument's name is left out: the timbre is to follow what is heard.
        prompt, lyrics = self._texts(facts, random, reference is None)
        prompt = prompt.replace(DEFAULT_DIT_INSTRUCTION, instruction, 1)
        return replace(example, prompt=prompt, lyrics=lyrics, reference=reference)

    def _start(self, facts: Any, random: np.random.Generator, frames: int) -> int:
        longest = self._clips.mix.shape[1] - frames
        if facts.ending:
            # The example ends with the piece, as the pipeline's song does, and the text's duration stays true.
            return int(np.clip(facts.piece_s * LATENTS_A_SECOND - frames, 0, longest))
        return int(random.integers(longest + 1))

    def _reference(self, instrument: str, clip: int, random: np.random.Generator) -> Latents:
        others = self._by_instrument[instrument]
        other = clip
        while other == clip and len(others) > 1:
            other = int(random.choice(others))
        mix = self._clips.mix[other]
        start = int(random.integers(max(1, len(mix) - self._reference_frames + 1)))
        # A clip that is shorter than the reference is repeated, as the pipeline repeats short reference audio.
        frames = np.arange(start, start + self._reference_frames) % len(mix)
        reference: Latents = mix[frames].astype(np.float32)
        return reference

    def _stems(self, clip: int, part: slice) -> dict[str, Latents]:
        """The tracks that are heard in this part of the clip."""
        stems = {name: stem[clip, part].astype(np.float32) for name, stem in self._clips.stems.items()}
        heard = {name: stem for name, stem in stems.items() if np.abs(stem - silence(1)).max() > AUDIBLE}
        return heard or stems

    def _heard(self, exact: Latents, random: np.random.Generator) -> Latents:
        """What the VAE's encoder would give for these latents."""
        noise = random.standard_normal(exact.shape).astype(np.float32)
        return exact + np.float32(SOURCE_NOISE) * noise


def _window(random: np.random.Generator, frames: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A repaint's mask: 1 in a window of a fifth to four fifths of the frames."""
    length = int(frames * random.uniform(0.2, 0.8))
    start = int(random.integers(frames - length + 1))
    mask = np.zeros(frames, np.float32)
    mask[start : start + length] = 1
    return mask


def _tracks(
    task: str, track: str, mix: Latents, stems: Mapping[str, Latents], random: np.random.Generator
) -> tuple[Latents, Latents, list[str]]:
    """Target and source of extract, lego or complete, and the tracks that complete adds.

    Extract takes `track` out of the mix; lego plays `track` to the others; complete plays the mix to some of the tracks.
    """
    if task == "extract":
        return stems[track], mix, []
    if task == "lego":
        return stems[track], _mixed([stem for name, stem in stems.items() if name != track], mix), []
    given = {name for name in stems if name == track or random.random() < 0.3}
    added = [name for name in stems if name not in given]
    return mix, _mixed([stems[name] for name in given], mix), added


def _mixed(stems: Sequence[Latents], like: Latents) -> Latents:
    return mixed(stems) if stems else silence(len(like))
