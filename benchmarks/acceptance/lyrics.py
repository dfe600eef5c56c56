"""Songs with lyrics: when the words are sung, and the best of several songs."""

from itertools import pairwise
from typing import Any, Final

from benchmarks.acceptance.recorder import Recorder
from benchmarks.acceptance.words import LYRICS, SONG
from benchmarks.markdown import table

_CANDIDATES: Final = 4


def lyrics(recorder: Recorder) -> str:
    """The best of four sung songs. Returns a table of its lines with their times, to be compared with what is heard."""
    fields = {**SONG, "lyrics": LYRICS, "vocal_language": "en", "best_of": _CANDIDATES, "lyrics_timing": True}
    made = recorder.play("text2music, best of four by its lyrics", **fields)
    file = made.job["audio"][0]
    lines = recorder.player.lyrics(made)
    scores = [candidate["lyric_score"] for candidate in file["candidates"]]
    times = [0.0, *(time for line in lines for word in line["words"] for time in (word["start"], word["end"]))]
    found = f"{len(lines)} lines from {times[1]:.2f} to {times[-1]:.2f} s"
    ordered = all(later >= earlier for earlier, later in pairwise(times)) and times[-1] <= file["seconds"]
    recorder.check("lyrics: words are in order and within the song", ordered, found)
    recorder.check("lyrics: the song with the best score is delivered", file["lyric_score"] == max(scores), scores)
    return table(["line", "begins", "ends"], [_row(line) for line in lines])


def _row(line: dict[str, Any]) -> list[str]:
    return [line["text"], f"{line['start']:.2f} s", f"{line['end']:.2f} s"]
