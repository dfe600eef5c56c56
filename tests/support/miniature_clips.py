"""A data set of noise and short sessions, for tests of the toy model's training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.pipelines.ace_step.pipeline_ace_step import DEFAULT_DIT_INSTRUCTION, SFT_GEN_PROMPT

from miniature.mixing import LINEAR, Latents, mixed, silence
from miniature.stage import Session
from miniature.tasks import HELD_OUT

FRAMES = 256


@dataclass(frozen=True)
class Facts:
    """What training reads of a clip's facts."""

    instrument: str
    ending: bool
    piece_s: int = 9
    bpm: int = 90
    voice: bool = False
    lyrics: str = ""
    syllables: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class NoiseClips:
    """Clips whose stems are noise; the first has no drums."""

    mix: np.ndarray
    stems: dict[str, np.ndarray]
    facts: list[Facts]


class Steps(Session):
    """A session of a number of steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(hours=1.0)
        self._left = steps

    @property
    def running(self) -> bool:
        self._left -= 1
        return self._left >= 0


def lowest(frames: int) -> Latents:
    """The lowest latents (frames, 64) that audio can have: an energy has a floor, the other numbers have none."""
    floor = silence(frames)
    floor[:, :LINEAR] = -np.inf
    return floor


def noise_clips(training: int = 6) -> NoiseClips:
    """A data set with the clips that are held out and these for training."""
    random = np.random.default_rng(3)
    count = training + HELD_OUT
    # No analysis gives energies below those of silence.
    stems = {
        name: np.maximum(random.standard_normal((count, FRAMES, 64)), lowest(FRAMES)).astype(np.float16)
        for name in ("drums", "keyboard")
    }
    stems["drums"][0] = silence(FRAMES)
    parts = [[stem[clip].astype(np.float32) for stem in stems.values()] for clip in range(count)]
    mix = np.stack([mixed(part) for part in parts]).astype(np.float16)
    facts = [Facts("piano" if clip % 2 else "flute", ending=clip == 1) for clip in range(count)]
    return NoiseClips(mix, stems, facts)


def noise_texts(facts: Any, _random: np.random.Generator, names_instrument: bool) -> tuple[str, str]:
    """Texts in the pipeline's templates."""
    caption = facts.instrument if names_instrument else "a tune"
    return SFT_GEN_PROMPT.format(
        DEFAULT_DIT_INSTRUCTION, caption, "- bpm: 90\n"
    ), f"# Languages\nen\n\n# Lyric\n{facts.lyrics}<|endoftext|>"
