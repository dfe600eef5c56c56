"""What turbo is asked beside the words' places while its heads learn them: which syllables are sung around a frame or a token.

A head finds a syllable if the frame that sings it and the tokens that spell it say the same of it. Neither does by itself, and a
head alone learns both only slowly. So linear probes, which no checkpoint keeps, ask for the consonant and the vowel of the
syllable before, of this one and of the next one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from miniature.lyrics import CONSONANTS, VOWELS
from miniature.singing import LATENTS_A_SECOND, Span, Syllable, tokens_of

PLACES = (-1, 0, 1)
"""Of the syllables that are asked for, seen from the one that is sung."""
UNASKED = -100
"""Stands for a sound where nothing is sung: cross-entropy leaves it out."""
QUICKNESS = 10.0
"""Of a probe beside the networks at the same learning rate: what it asks for should not be behind what they know."""
_SIZES = [len(CONSONANTS), len(VOWELS)] * len(PLACES)


class SoundProbe(nn.Module):
    """Tells the sounds from states (..., width): the logarithms' scores of each, one after another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, sum(_SIZES))
        nn.init.zeros_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)

    def loss(self, states: Tensor, sounds: Tensor) -> Tensor:
        """The mean cross-entropy of the sounds (..., 6), of which some are UNASKED."""
        scores = (QUICKNESS * self.scores(states)).float().flatten(0, -2).split(_SIZES, dim=-1)
        wanted = sounds.flatten(0, -2).unbind(-1)
        losses = [
            nn.functional.cross_entropy(each, sound, ignore_index=UNASKED, reduction="sum")
            for each, sound in zip(scores, wanted, strict=True)
        ]
        return torch.stack(losses).sum() / (sounds != UNASKED).sum().clamp(min=1)


def frame_sounds(text: str, syllables: Sequence[Syllable], frames: int) -> np.ndarray:
    """The sounds around each latent frame: (frames, 6)."""
    numbers = np.full(frames, -1)
    for number, syllable in enumerate(syllables):
        first = round(syllable.start_s * LATENTS_A_SECOND)
        numbers[first : round(syllable.end_s * LATENTS_A_SECOND)] = number
    return _around(text, syllables, numbers)


def token_sounds(text: str, syllables: Sequence[Syllable], offsets: Sequence[Span]) -> np.ndarray:
    """The sounds around each token of the lyrics' text: (tokens, 6). `offsets` has the place of each token in the text."""
    numbers = np.full(len(offsets), -1)
    for number, syllable in enumerate(syllables):
        numbers[tokens_of(syllable, offsets)] = number
    return _around(text, syllables, numbers)


def _around(text: str, syllables: Sequence[Syllable], numbers: np.ndarray) -> np.ndarray:
    """The sounds around the syllables of these numbers; -1 is none."""
    unasked = (UNASKED, UNASKED)
    sounds = np.array([unasked, *(_sounds(text, syllable) for syllable in syllables), unasked])
    found = [np.where(numbers < 0, 0, np.clip(numbers + place + 1, 0, len(sounds) - 1)) for place in PLACES]
    around: np.ndarray = np.concatenate([sounds[each] for each in found], -1)
    return around


def _sounds(text: str, syllable: Syllable) -> tuple[int, int]:
    """The numbers of a syllable's consonant and vowel."""
    first, after = syllable.place
    return CONSONANTS.index(text[first]), VOWELS.index(text[after - 1])
