"""Clips of which only the mix is known: what the training of turbo's heads learns from. Most of them are sung."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from miniature.clips import render_clip
from miniature.dataset import held_out_clips
from miniature.latents import analyse
from miniature.mixing import Latents
from miniature.pieces import Facts, compose

FIRST_SEED = 3_000_000
SUNG_OF_THREE = 2
"""Of three clips, so many are sung."""
REPORT_EVERY = 100


@dataclass(frozen=True)
class Mixes:
    """The clips' latents `mix` (clips, 256, 64) and their facts. The last HELD_OUT are for evaluation."""

    mix: np.ndarray
    facts: Sequence[Facts]
    stems: Mapping[str, np.ndarray] = field(default_factory=dict)


def build(folder: Path, clips: int) -> Mixes:
    """So many clips, and the held-out ones after them: read from the folder, or made and kept there, which takes minutes."""
    facts = [*chosen(clips), *held_out_clips()]
    file = folder / f"{clips}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "unfinished.npy"
        np.save(unfinished, np.stack([_analysed(known, number, len(facts)) for number, known in enumerate(facts, 1)]))
        unfinished.replace(file)
    return Mixes(np.load(file, mmap_mode="r"), facts)


def _analysed(facts: Facts, number: int, of: int) -> Latents:
    if number % REPORT_EVERY == 0:
        print(f"{number} of {of} clips", flush=True)
    return analyse(render_clip(facts)).astype(np.float16)


def chosen(clips: int) -> Iterator[Facts]:
    """The facts of so many clips, of which two thirds are sung."""
    number = FIRST_SEED
    for clip in range(clips):
        sung = clip % 3 < SUNG_OF_THREE
        while (facts := compose(number).facts).voice != sung:
            number += 1
        number += 1
        yield facts
