"""Tracks of a song, with base models: extract, lego, complete and stems."""

from typing import Final

import numpy as np

from benchmarks.acceptance.recorder import Recorder
from benchmarks.acceptance.words import SONG
from benchmarks.markdown import table
from benchmarks.player import Made
from benchmarks.sound import decibels, fidelity_db, power
from serve_app.music import Track

_STEMS: Final[tuple[Track, ...]] = ("drums", "bass", "keyboard")
_SEED: Final = 7


def tracks(recorder: Recorder, first: Made) -> str:
    """Tracks taken out of a song and added to one. Returns a table of the stems and of what they add up to."""
    recorder.play("extract, drums", **_task("extract", first, track="drums"))
    recorder.play("lego, drums", **_task("lego", first, track="drums"))
    recorder.play("complete, drums and bass", **_task("complete", first, tracks=["drums", "bass"]))
    stems = recorder.play("stems", **_task("stems", first, tracks=list(_STEMS))).songs
    lengths = {stem.shape for stem in stems}
    recorder.check("stems are as long as their source, to the sample", lengths == {first.song.shape}, lengths)
    rows = [
        [name, f"{decibels(power(stem) / power(first.song)):+.1f} dB"] for name, stem in zip(_STEMS, stems, strict=True)
    ]
    error = -fidelity_db(np.sum(stems, axis=0), first.song)
    rows.append(["error of their sum", f"{error:+.1f} dB"])
    return table(["stem", "level, against the song"], rows)


def _task(name: str, first: Made, **fields: object) -> dict[str, object]:
    return {**SONG, "seed": _SEED, "task_type": name, "source": first.name, **fields}
