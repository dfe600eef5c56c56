"""Repaints and extensions: what stays of the source, and whether the new part fits it."""

from typing import Any, Final, get_args

import numpy as np

from benchmarks.markdown import table
from benchmarks.player import Player, Samples
from benchmarks.sound import decibels, power
from miniature.measures import Key, heard_key, in_scale, pitch_classes
from serve_app.music import SAMPLE_RATE, RepaintMode

_SONG: Final[dict[str, Any]] = {"prompt": "piano with drums and bass", "bpm": 120, "duration": 10}
_START_S: Final = 4
_END_S: Final = 6
_SEEDS: Final = (1, 2, 3, 4)
_LONGER_S: Final = 5
_KEYS: Final = ("C major", "D major", "F# major", "A# major", "A minor", "E minor", "G minor", "C# minor")


def repaints(player: Player) -> str:
    """A table by mode: the largest difference from the source outside and inside the part, over all seeds."""
    return table(
        [
            "mode",
            "source",
            "outside, largest difference",
            "inside, least of the largest differences",
            "new part's level",
        ],
        [_repaint(player, mode, route) for mode in get_args(RepaintMode) for route in ("job", "upload")],
    )


def _repaint(player: Player, mode: str, route: str) -> list[str]:
    outside: list[float] = []
    inside: list[float] = []
    levels: list[float] = []
    part = slice(_START_S * SAMPLE_RATE, _END_S * SAMPLE_RATE)
    for seed in _SEEDS:
        made = player.make(**_SONG, keyscale="C major", seed=seed)
        source = made.name if route == "job" else player.upload(made.song)
        task = {"task_type": "repaint", "repaint_start": _START_S, "repaint_end": _END_S, "repaint_mode": mode}
        song = player.make(**_SONG, keyscale="C major", seed=seed + 100, source=source, **task).song
        difference = np.abs(song - made.song)
        inside.append(float(difference[:, part].max()))
        difference[:, part] = 0
        outside.append(float(difference.max()))
        levels.append(decibels(power(song[:, part]) / power(made.song[:, part])))
    return [mode, route, f"{max(outside):g}", f"{min(inside):.3f}", f"{np.mean(levels):+.1f} dB"]


def extensions(player: Player) -> str:
    """A table by key: what an extension leaves of its source, and the key of what is new."""
    rows = []
    right = 0
    for seed, key in enumerate(_KEYS, 1):
        made = player.make(**_SONG, keyscale=key, seed=seed)
        task = {"task_type": "repaint", "source": made.name, "extend_after": _LONGER_S}
        fields = {name: value for name, value in _SONG.items() if name != "duration"}
        song = player.make(**fields, keyscale=key, seed=seed + 100, **task).song
        old = made.song.shape[1]
        found, fits = _key_of(song[:, old:], key)
        right += fits
        rows.append(
            [
                key,
                f"{np.abs(song[:, :old] - made.song).max():g}",
                f"{decibels(power(song[:, old:]) / power(made.song)):+.1f} dB",
                f"{in_scale(pitch_classes(song[:, old:]), _key(key)):.2f}",
                f"{found.tonic} {found.mode}",
            ]
        )
    heads = ["key", "old part, largest difference", "new part's level", "energy in scale", "key that is heard"]
    return f"{table(heads, rows)}\n\nThe new part is in the key or its relative in {right} of {len(_KEYS)} songs."


def _key_of(song: Samples, asked: str) -> tuple[Key, bool]:
    """The key that is heard, and whether it is the asked one or its relative."""
    found = heard_key(pitch_classes(song))
    return found, found in (_key(asked), _key(asked).relative)


def _key(text: str) -> Key:
    return Key(*text.split())
