"""Covers and references: what songs keep of the music or of the sound of a recording."""

from typing import Any, Final

import numpy as np

from benchmarks.acceptance.sources import COVERS
from benchmarks.markdown import table
from benchmarks.player import Player, Samples
from benchmarks.sound import melody_likeness, onset_likeness, pitch_class_likeness
from miniature.clips import render_clip
from miniature.dataset import held_out_clips
from miniature.listening import sound_scores
from miniature.pieces import INSTRUMENTS, Facts

_SOURCES: Final = 10
_LIKENESSES: Final = (pitch_class_likeness, melody_likeness, onset_likeness)
_SEEDS: Final = (1, 2, 3)


def covers(player: Player) -> str:
    """A table by kind of cover: how much its notes and onsets are those of the synthesizer's clip that it covers.

    The request names an instrument, which is another than the clip's, and neither key nor tempo.
    """
    clips = [clip for clip in held_out_clips() if not clip.voice][:_SOURCES]
    audio = [render_clip(clip) for clip in clips]
    sources = [player.upload(samples) for samples in audio]
    rows = []
    for fields in COVERS:
        songs = [
            player.make(prompt=_other_instrument(clip), source=source, seed=number, **fields).song
            for number, (clip, source) in enumerate(zip(clips, sources, strict=True))
        ]
        means = [
            np.mean([likeness(song, samples) for song, samples in zip(songs, audio, strict=True)])
            for likeness in _LIKENESSES
        ]
        words = ", ".join(f"`{name}: {value}`" for name, value in fields.items())
        rows.append([words, *(f"{mean:.2f}" for mean in means)])
    return table(["request", "pitch classes", "pitch classes over time", "onsets"], rows)


def references(player: Player) -> str:
    """A table by instrument: its score in songs that hear it as their reference, beside the same songs without a reference."""
    rows = []
    up = 0
    for instrument in INSTRUMENTS:
        reference = player.upload(_solo(instrument))
        shifts = []
        for seed in _SEEDS:
            fields: dict[str, Any] = {"prompt": "music, calm", "duration": 8, "seed": seed}
            without = sound_scores(player.make(**fields).song)[instrument]
            imitating = sound_scores(player.make(**fields, reference=reference).song)[instrument]
            shifts.append((without, imitating))
        up += sum(after > before for before, after in shifts)
        before, after = np.mean(shifts, axis=0)
        rows.append([instrument, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"])
    songs = len(INSTRUMENTS) * len(_SEEDS)
    heads = ["instrument of the reference", "score without", "score with", "mean shift"]
    return f"{table(heads, rows)}\n\nThe score rises in {up} of {songs} songs."


def _other_instrument(clip: Facts) -> str:
    """The words for the clip's music on another instrument."""
    other = INSTRUMENTS[(INSTRUMENTS.index(clip.instrument) + 2) % len(INSTRUMENTS)]
    added = [name for name, heard in (("drums", clip.drums), ("bass", clip.bass)) if heard]
    return f"{other} with {' and '.join(added)}" if added else f"solo {other}"


def _solo(instrument: str) -> Samples:
    """A clip of the synthesizer in which the instrument plays alone."""
    found = next(
        clip
        for clip in held_out_clips(seed=1)
        if clip.instrument == instrument and not (clip.drums or clip.bass or clip.voice)
    )
    return render_clip(found)
