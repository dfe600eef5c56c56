"""Songs from a song: repaints, extensions, covers, edits and references."""

from typing import Any, Final, get_args

import numpy as np

from benchmarks.acceptance.recorder import NOTHING, Recorder
from benchmarks.acceptance.words import KEY, SONG, key_share
from benchmarks.markdown import table
from benchmarks.player import Made, Samples
from benchmarks.sound import decibels, melody_likeness, onset_likeness, pitch_class_likeness, power, timbre_distance_db
from serve_app.music import SAMPLE_RATE, RepaintMode

_OTHER_SOUND: Final = "strings, slow"
_SEED: Final = 7
COVERS: Final[tuple[dict[str, Any], ...]] = (
    {"task_type": "cover", "cover_strength": 1.0},
    {"task_type": "cover", "cover_strength": 0.5},
    {"task_type": "cover", "cover_strength": 0.0},
    {"task_type": "cover", "cover_noise_strength": 0.5},
    {"task_type": "cover-nofsq"},
)

_EDITS: Final[tuple[dict[str, Any], ...]] = ({}, {"edit_start": 0.3}, {"edit_end": 0.6})


def repaints(recorder: Recorder, first: Made) -> str:
    """The middle of a song anew in each mode, and the song with more before and after it. Returns a table of the new parts."""
    rows = []
    third = recorder.seconds / 3
    for mode in get_args(RepaintMode):
        part = {"repaint_start": round(third, 2), "repaint_end": round(2 * third, 2), "repaint_mode": mode}
        rows.append(_repaint(recorder, first, f"repaint, {mode}", part))
    more = round(recorder.seconds / 4, 2)
    rows.append(_repaint(recorder, first, "repaint, extend_after", {"extend_after": more}))
    rows.append(_repaint(recorder, first, "repaint, extend_before", {"extend_before": more}))
    return table(["request", "new part's level, against the old", f"its energy on the scale of {_key()}"], rows)


def _repaint(recorder: Recorder, first: Made, name: str, fields: dict[str, Any]) -> list[str]:
    request = {**SONG, "seed": _SEED, "task_type": "repaint", "source": first.name, **fields}
    song = recorder.play(name, **request).song
    kept, new, offset = _parts(first.song, song, fields)
    apart = np.abs(song[:, kept] - first.song[:, kept - offset]).max()
    recorder.check(f"{name}: the kept samples are the source's", apart == 0, f"largest difference {apart:g}")
    level = decibels(power(song[:, new]) / power(first.song))
    return [name, f"{level:+.1f} dB", f"{key_share(song[:, new]):.2f}" if np.any(song[:, new]) else NOTHING]


def _parts(source: Samples, song: Samples, fields: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """The numbers of a repaint's kept and new samples, and at which sample of it the source starts."""
    if "repaint_start" in fields:
        start = round(fields["repaint_start"] * SAMPLE_RATE)
        stop = round(fields["repaint_end"] * SAMPLE_RATE)
    elif "extend_after" in fields:
        start = source.shape[1]
        stop = song.shape[1]
    else:
        start = 0
        stop = song.shape[1] - source.shape[1]
    moments = np.arange(song.shape[1])
    new = (moments >= start) & (moments < stop)
    offset = stop if "extend_before" in fields else 0
    return moments[~new], moments[new], offset


def covers(recorder: Recorder, first: Made) -> str:
    """The song in another sound. Returns a table of how much of its music each kind of cover keeps."""
    rows = []
    for fields in COVERS:
        words = ", ".join(f"{name} {value}" for name, value in fields.items()).replace("task_type ", "")
        song = recorder.play(words, prompt=_OTHER_SOUND, seed=_SEED, source=first.name, **fields).song
        rows.append([words, *_likenesses(song, first)])
    codes = recorder.player.codes(first)
    by_codes = recorder.play("text2music, audio_codes of the song", prompt=_OTHER_SOUND, seed=_SEED, audio_codes=codes)
    rows.append(["audio_codes of the song", *_likenesses(by_codes.song, first)])
    return table(["request", "pitch classes", "pitch classes over time", "onsets"], rows)


def edits(recorder: Recorder, first: Made) -> str:
    """The song edited to another sound. Returns a table of how much of its music each edit keeps."""
    request = {**SONG, "task_type": "edit", "source": first.name, "source_prompt": SONG["prompt"]}
    rows = []
    for fields in _EDITS:
        words = ", ".join(["edit", *(f"{name} {value}" for name, value in fields.items())])
        song = recorder.play(words, **{**request, "prompt": _OTHER_SOUND, "seed": _SEED, **fields}).song
        rows.append([words, *_likenesses(song, first)])
    return table(["request", "pitch classes", "pitch classes over time", "onsets"], rows)


def _likenesses(song: Samples, first: Made) -> list[str]:
    """How alike a song and the first are in pitch classes, in pitch classes over time, and in onsets."""
    measures = (pitch_class_likeness, melody_likeness, onset_likeness)
    return [f"{measure(song, first.song):.2f}" if np.any(song) else NOTHING for measure in measures]


def references(recorder: Recorder) -> str:
    """A song with and without a reference of another sound. Returns a table of how far each is from the reference's sound."""
    reference = recorder.play("a song as the reference", **{**SONG, "prompt": _OTHER_SOUND, "seed": _SEED})
    fields = {**SONG, "prompt": "music", "seed": _SEED + 1}
    rows = []
    for name, more in (("without a reference", {}), ("with the reference", {"reference": reference.name})):
        song = recorder.play(name, **fields, **more).song
        rows.append([name, f"{timbre_distance_db(song, reference.song):.1f} dB"])
    return table(["song", "distance of its spectrum from the reference's"], rows)


def _key() -> str:
    return f"{KEY.tonic} {KEY.mode}"
