"""When the tokens of the lyrics are sung, and how closely a song follows them, from the transformer's cross-attention.

The method is that of the original ACE-Step (acestep/core/scoring: dit_alignment.py and dit_score.py).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_HEARD: Final = 0.1
"""A token counts as sung if its strongest attention is above this share of the song's strongest."""

_NOTICEABLE: Final = 0.01
"""Attention up to this share of the song's strongest does not move a token's centre in time."""

_OVERLAP_FRAMES: Final = 9.0
"""A token may have its centre this many frames before its predecessor's and is still in order: 0.72 s."""

_BOTH: Final = 0
_NEXT_TOKEN: Final = 1
_NEXT_FRAME: Final = 2
"""The steps of a path: to the next token and frame, to the next token in the same frame, to the next frame of the same token."""


@dataclass(frozen=True)
class AttentionMaps:
    """How strongly a song attends to the tokens of its lyrics, as arrays of shape (tokens, frames)."""

    weights: Floats
    """The share of a frame's attention that each token gets, averaged over the heads."""
    agreement: Floats
    """Where token and frame choose each other, without what a token or a frame has everywhere; larger is better."""


def token_times(maps: AttentionMaps, frame_s: float) -> Floats:
    """Returns each token's start and end in seconds, of shape (tokens, 2).

    `frame_s` is the length of a frame. A token ends where the next one starts, or with the song; in the original, it ends where
    its last frame starts. Tokens that share a frame have no length, but for the last of them.
    """
    tokens, frames = best_path(maps.agreement - maps.agreement.mean())
    first = frames[np.searchsorted(tokens, np.arange(len(maps.agreement)))]
    return np.stack([first, [*first[1:], maps.agreement.shape[1]]], axis=1) * frame_s


def lyric_score(maps: AttentionMaps, is_word: npt.NDArray[np.bool_]) -> float:
    """Returns how closely the song follows its lyrics, from 0 to 1: coverage² · monotonicity² · confidence.

    `is_word`, of shape (tokens,), is false for the tokens of section tags. Coverage is the share of words that get noticeable
    attention, monotonicity the share of neighbours that are in order, confidence the mean attention along the best path.
    """
    lowest = maps.weights.min()
    span = maps.weights.max() - lowest
    if span <= 1e-9:
        return 0.0
    energy = (maps.weights - lowest) / span
    tokens, frames = best_path(energy**2)
    confidence = float(energy[tokens, frames].mean())
    return float(_coverage(energy[is_word]) ** 2 * _monotonicity(energy[is_word]) ** 2 * confidence)


def _coverage(energy: Floats) -> float:
    """Returns the share of tokens that are heard."""
    return float((energy.max(axis=1) > _HEARD).mean()) if len(energy) else 1.0


def _monotonicity(energy: Floats) -> float:
    """Returns the share of neighbouring tokens whose centres in time are in order."""
    weights = np.where(energy > _NOTICEABLE, energy, 0.0)
    total = weights.sum(axis=1)
    heard = total > 1e-9
    centres = (weights[heard] @ np.arange(energy.shape[1])) / total[heard]
    if len(centres) < 2:
        return 1.0
    return float((np.diff(centres) >= -_OVERLAP_FRAMES).mean())


def best_path(gain: Floats) -> tuple[Numbers, Numbers]:
    """Returns the path through `gain`, of shape (tokens, frames), along which its sum is largest, as token and frame numbers.

    It leads from the first token and frame to the last ones, and each of its steps goes on by a token, a frame or both (dynamic
    time warping). Of equal paths it takes the one that stays longest with a token.
    """
    tokens, frames = gain.shape
    moves = np.zeros((tokens + frames - 1, tokens), np.uint8)
    costs = _Diagonals(tokens)
    for diagonal in range(tokens + frames - 1):
        among = np.arange(max(0, diagonal - frames + 1), min(tokens, diagonal + 1))
        both, next_token, next_frame = costs.before(among)
        move = np.full(len(among), _NEXT_FRAME, np.uint8)
        move[(next_token < both) & (next_token < next_frame)] = _NEXT_TOKEN
        move[(both < next_token) & (both < next_frame)] = _BOTH
        moves[diagonal, among] = move
        cheapest = np.choose(move, (both, next_token, next_frame))
        costs.add(among, cheapest - gain[among, diagonal - among])
    return _traced_back(moves, tokens, frames)


class _Diagonals:
    """The costs of reaching the cells of the last two diagonals. All cells of a diagonal are computed at once."""

    def __init__(self, tokens: int) -> None:
        # By token, after one more entry for the missing token before the first.
        self._last = np.full(tokens + 1, np.inf)
        self._second_last = np.full(tokens + 1, np.inf)
        self._second_last[0] = 0.0  # the start

    def before(self, among: Numbers) -> tuple[Floats, Floats, Floats]:
        """Returns the costs of the cells from which the cells `among` are reached, by the kind of step."""
        return self._second_last[among], self._last[among], self._last[among + 1]

    def add(self, among: Numbers, costs: Floats) -> None:
        """Goes on by a diagonal, whose cells `among` have these costs."""
        self._second_last = self._last
        self._last = np.full(len(self._last), np.inf)
        self._last[among + 1] = costs


def _traced_back(moves: npt.NDArray[np.uint8], tokens: int, frames: int) -> tuple[Numbers, Numbers]:
    token = tokens - 1
    frame = frames - 1
    path = [(token, frame)]
    while token > 0 or frame > 0:
        move = moves[token + frame, token]
        token -= int(move != _NEXT_FRAME)
        frame -= int(move != _NEXT_TOKEN)
        path.append((token, frame))
    found = np.array(path[::-1], np.int64)
    return found[:, 0], found[:, 1]
