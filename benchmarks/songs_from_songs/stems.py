"""Stems of the synthesizer's mixes, beside the tracks of which they were mixed."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.markdown import table
from benchmarks.player import Player, Samples
from benchmarks.sound import PITCHED_HZ, below, correlation, decibels, fidelity_db, power
from miniature.captions import full_request
from miniature.clips import mix, render_stems
from miniature.dataset import held_out_clips
from miniature.listening import Sounds, listen
from miniature.pieces import INSTRUMENT_TRACKS, Facts

_SUNG: Final = 4
_INSTRUMENTAL: Final = 6
_SPECTRUM: Final = 2048

PROBES: Final[Mapping[str, Callable[[Sounds, Facts], bool]]] = {
    "drums": lambda sounds, facts: sounds.drums,
    "bass": lambda sounds, facts: sounds.bass,
    "vocals": lambda sounds, facts: sounds.voice,
}
"""Whether the probe of a track hears it. For an instrument's track, the probe must name the instrument."""


def stems(player: Player) -> str:
    """Two tables: by track, what is heard in its stems, and by mix, what the stems add up to."""
    by_track: dict[str, list[dict[str, float]]] = {}
    sums = []
    for number, facts in enumerate(_mixed_clips()):
        tracks = render_stems(facts)
        song = mix(tracks)
        task = {"task_type": "stems", "source": player.upload(song), "tracks": list(tracks)}
        made = player.make(prompt=full_request(facts).prompt, seed=number, **task)
        found = dict(zip(tracks, made.songs, strict=True))
        for track, stem in found.items():
            by_track.setdefault(_kind(track), []).append(_judged(track, stem, tracks, facts))
        sums.append(_sum_row(", ".join(tracks), mix(found), song))
    rows = [[kind, len(judged), *_means(judged)] for kind, judged in by_track.items()]
    heads = ["track", "stems", "probe right", "probe right, true stem", "nearest to its true stem", "level"]
    return f"{table(heads, rows)}\n\n{table(_SUM_HEADS, sums)}"


def _mixed_clips() -> list[Facts]:
    """Held-out clips with an instrument and at least two more tracks; in some, one of them is a voice."""
    mixed = [clip for clip in held_out_clips() if clip.drums + clip.bass + clip.voice >= 2]
    sung = [clip for clip in mixed if clip.voice][:_SUNG]
    return sung + [clip for clip in mixed if not clip.voice][:_INSTRUMENTAL]


def _kind(track: str) -> str:
    return track if track in PROBES else "instrument"


def _judged(track: str, stem: Samples, tracks: Mapping[str, Samples], facts: Facts) -> dict[str, float]:
    likeness = {name: correlation(_spectrogram(stem), _spectrogram(true)) for name, true in tracks.items()}
    return {
        "probe": float(_probe_right(track, stem, facts)),
        "probe of true": float(_probe_right(track, tracks[track], facts)),
        "nearest": float(max(likeness, key=lambda name: likeness[name]) == track),
        "level": decibels(power(stem) / power(tracks[track])),
    }


def _probe_right(track: str, stem: Samples, facts: Facts) -> bool:
    """Whether the track is heard in its stem; an instrument's stem must be without drums and voice, too."""
    if not np.any(stem):
        return False
    sounds = listen(stem).sounds
    if track in PROBES:
        return PROBES[track](sounds, facts)
    return INSTRUMENT_TRACKS[sounds.instrument] == track and not sounds.drums and not sounds.voice


def _means(judged: list[dict[str, float]]) -> list[str]:
    columns: dict[str, Any] = {name: np.mean([row[name] for row in judged]) for name in judged[0]}
    level = columns.pop("level")
    return [*(f"{mean:.2f}" for mean in columns.values()), f"{level:+.1f} dB"]


_SUM_HEADS: Final = ["mix", "error of the stems' sum", f"the same below {PITCHED_HZ / 1000:g} kHz"]


def _sum_row(name: str, summed: Samples, song: Samples) -> list[str]:
    low = fidelity_db(below(summed, PITCHED_HZ), below(song, PITCHED_HZ))
    return [name, f"{-fidelity_db(summed, song):+.1f} dB", f"{-low:+.1f} dB"]


def _spectrogram(song: Samples) -> npt.NDArray[np.float64]:
    """The logarithms of magnitudes: (times, lines)."""
    windows = np.lib.stride_tricks.sliding_window_view(song.mean(0), _SPECTRUM)[:: _SPECTRUM // 2]
    magnitudes = np.abs(np.fft.rfft(windows * np.hanning(_SPECTRUM)))
    logarithms: npt.NDArray[np.float64] = np.log1p(100 * magnitudes)
    return logarithms
