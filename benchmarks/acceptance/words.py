"""Songs from words: defaults, seeds, and the settings whose sound only released weights can show."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from benchmarks.acceptance.recorder import Recorder
from benchmarks.markdown import table
from benchmarks.player import Made, Samples
from benchmarks.sound import peak_db
from miniature.measures import Key, in_scale, pitch_classes
from serve_app.config import Variant
from serve_app.music import SAMPLE_RATE
from tests.support.listening import centroid_hz

KEY: Final = Key("D", "major")
SONG: Final[dict[str, Any]] = {
    "prompt": "piano with drums and bass",
    "keyscale": f"{KEY.tonic} {KEY.mode}",
    "bpm": 100,
    "seed": 1,
}
"""The song to which others are compared."""
LYRICS: Final = (
    "[verse]\nWe measure twice and cut it once\nWe listen close and play it loud\n[chorus]\nAnd play it loud"
)
_NORMALISED_DB: Final = -1.0


def songs_from_words(recorder: Recorder) -> Made:
    """The song with its defaults, once more, and with lyrics. Returns the first."""
    first = recorder.play("text2music, instrumental", **SONG)
    again = recorder.play("text2music, the same seed", **SONG)
    other = recorder.play("text2music, another seed", **{**SONG, "seed": 2})
    recorder.play("text2music, sung", **SONG, lyrics=LYRICS, vocal_language="en")
    _check_song(recorder, first.song)
    recorder.check("the same seed gives the same samples", np.array_equal(first.song, again.song), _apart(first, again))
    recorder.check("another seed gives another song", not np.array_equal(first.song, other.song), _apart(first, other))
    return first


def settings_of_sampling(recorder: Recorder) -> str:
    """The song with each setting that changes the way from noise to music. Returns a table of what they do to its key."""
    rows = []
    for name, fields in _settings(recorder.engine.facts.variant):
        song = recorder.play(name, **{**SONG, **fields}).song
        rows.append([name, f"{key_share(song):.2f}", f"{centroid_hz(song):.0f} Hz"])
    return table(["setting", f"energy on the scale of {KEY.tonic} {KEY.mode}", "centroid"], rows)


def _settings(variant: Variant) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting's name and its fields; guidance is for models that are not distilled."""
    for dcw in (True, False):
        yield f"dcw {'on' if dcw else 'off'}", {"dcw": dcw}
    for mask in ("auto", "explicit"):
        yield f"chunk_mask_mode {mask}", {"chunk_mask_mode": mask}
    for sampler in ("euler", "heun", "sde"):
        yield f"sampler {sampler}", {"sampler": sampler}
    yield "retake_variance 0.2", {"retake_variance": 0.2, "retake_seed": 9}
    if variant != "turbo":
        yield from ((f"guidance_mode {mode}", {"guidance_mode": mode}) for mode in ("cfg", "adg"))
        yield "guidance_scale 1", {"guidance_scale": 1}


def key_share(song: Samples) -> float:
    """The share of a song's energy on the notes of the scale that all requests ask for; chance is 0.58."""
    return in_scale(pitch_classes(song), KEY)


def _check_song(recorder: Recorder, song: Samples) -> None:
    frames = round(recorder.seconds * SAMPLE_RATE)
    peak = peak_db(song)
    recorder.check("the song has the requested length, to the sample", song.shape == (2, frames), song.shape[1])
    recorder.check("its peak is at -1 dBFS", abs(peak - _NORMALISED_DB) < 0.01, f"{peak:.2f} dBFS")


def _apart(one: Made, other: Made) -> str:
    return f"largest difference {np.abs(one.song - other.song).max():g}"
