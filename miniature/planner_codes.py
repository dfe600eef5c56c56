"""The audio codes that the planner may write: some that stand for all, so that a small model can learn them.

The codes differ little from their neighbours, and each is rare: 240 songs had 13,039 different ones. What a code stands for is
taken as its spectral lines' levels and its bands' energies. Those of the songs' codes are grouped by k-means, and the code
nearest to a group's centre stands for the group.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

from miniature.codes import line_levels
from miniature.mixing import LINEAR
from serve_app.music.plan import CODES

GROUPS = 1024
ROUNDS = 8
_BANDS_WEIGHT = 0.15
_AT_ONCE = 2000


def substitutes(checkpoint: Path, songs: Sequence[Sequence[int]], groups: int = GROUPS) -> np.ndarray:
    """For each of the 64,000 codes, the code that stands for it: (64,000,). Code 0 stands for itself.

    `checkpoint` is the folder of the pipeline whose codes they are, `songs` the codes of songs.
    """
    sounds = sounds_of(checkpoint)
    used, counts = np.unique(np.concatenate([np.asarray(song) for song in songs]), return_counts=True)
    centres = _centres(sounds[used], counts.astype(np.float64), min(groups, len(used)))
    return _nearest_of(sounds, np.unique(np.append(used[_nearest(centres, sounds[used])], 0)))


def nearest(checkpoint: Path, chosen: Sequence[int]) -> np.ndarray:
    """For each of the 64,000 codes, that of the `chosen` ones which sounds most like it: (64,000,). Code 0, a chosen one, stays."""
    return _nearest_of(sounds_of(checkpoint), np.asarray(chosen))


def _nearest_of(sounds: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    result: np.ndarray = chosen[_nearest(sounds, sounds[chosen])]
    result[0] = 0
    return result


@torch.inference_mode()
def sounds_of(checkpoint: Path) -> np.ndarray:
    """What each code stands for, as numbers whose distance is heard: (64,000, 101)."""
    tokenizer = AceStepAudioTokenizer.from_pretrained(checkpoint / "audio_tokenizer", dtype=torch.float32).eval()
    detokenizer = AceStepAudioTokenDetokenizer.from_pretrained(
        checkpoint / "audio_token_detokenizer", dtype=torch.float32
    ).eval()
    sounds = []
    for start in range(0, CODES, _AT_ONCE):
        codes = torch.arange(start, start + _AT_ONCE).view(-1, 1, 1)
        latents = detokenizer(tokenizer.quantizer.get_output_from_indices(codes))
        bands = latents[..., LINEAR:].unflatten(-1, (2, 5)).mean((1, 2))
        sounds.append(torch.cat([line_levels(latents)[:, 0], _BANDS_WEIGHT * bands], 1).numpy())
    return np.concatenate(sounds)


def _centres(points: np.ndarray, counts: np.ndarray, groups: int) -> np.ndarray:
    """The centres of k-means over `points`, each of which counts as often as `counts` says."""
    random = np.random.default_rng(0)
    centres = points[random.choice(len(points), groups, replace=False, p=counts / counts.sum())]
    for _ in range(ROUNDS):
        group = _nearest(points, centres)
        sums = np.zeros(centres.shape)
        np.add.at(sums, group, points * counts[:, None])
        members = np.bincount(group, counts, groups)[:, None]
        centres = np.where(members > 0, sums / np.maximum(members, 1), centres).astype(np.float32)
    return centres


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The index of each point's nearest one of the others."""
    squares = (others**2).sum(1)
    parts = np.array_split(points, max(1, len(points) // _AT_ONCE))
    return np.concatenate([(squares - 2 * part @ others.T).argmin(1) for part in parts])
