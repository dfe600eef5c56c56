"""Plays songs of one model, measures each, keeps its file, and collects what must be so and what is."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from benchmarks.acceptance.levels import loudness_lufs, silent_share
from benchmarks.measured_engine import Clock, MeasuredEngine
from benchmarks.player import Made, NoSong, Player, Samples
from benchmarks.sound import peak_db
from miniature.measures import heard_bpm, heard_key, pitch_classes
from tests.support.peak_memory import peak_kilobytes

NOTHING: Final = "-"
"""What a table shows where there is nothing to measure."""


@dataclass(frozen=True)
class Play:
    """One song and its figures."""

    name: str
    request: dict[str, Any]
    """What was asked for beyond the fields that all requests share."""
    file: str
    step_s: float | None
    """Seconds of a denoising step, the median."""
    total_s: float
    peak_gb: float
    """The most memory of the device until the song's end; on a CPU, that of the process."""
    peak_db: float
    lufs: float
    silent: float
    """Share of the song that is silent."""
    key: str
    bpm: str


@dataclass(frozen=True)
class Check:
    """Something that must be so, whatever the weights are."""

    name: str
    found: str
    passed: bool


@dataclass
class Recorder:
    """Makes songs with `player` and measures them; their files go to `folder`."""

    player: Player
    engine: MeasuredEngine
    folder: Path
    seconds: float
    """Length of the songs that are made from words."""
    plays: list[Play] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def play(self, name: str, **fields: Any) -> Made:
        """Makes the songs of one request. Raises NoSong."""
        print(f"playing: {name}", file=sys.stderr, flush=True)
        _forget_peak()
        made = self.player.make(**{"prompt": "piano with drums and bass", "duration": self.seconds, **fields})
        for song, file, shown in zip(made.songs, made.files, made.job["audio"], strict=True):
            track = shown.get("track")
            of_track = f"{name}, {track}" if track else name
            place = self.folder / f"{len(self.plays) + 1:02d}-{_file_name(of_track)}.wav"
            place.write_bytes(file)
            self.plays.append(_measured(of_track, fields, place.name, song, self.engine.clock))
        return made

    def check(self, name: str, passed: bool, found: object) -> None:
        """Notes whether something is as it must be."""
        self.checks.append(Check(name, str(found), bool(passed)))
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {found}", file=sys.stderr, flush=True)

    def failed(self, part: str, error: NoSong) -> None:
        """Notes that a part of the acceptance came to no end."""
        self.check(f"{part}: every song is made", False, error)


def _measured(name: str, fields: dict[str, Any], file: str, song: Samples, clock: Clock) -> Play:
    silent = silent_share(song)
    heard = silent < 1
    key = heard_key(pitch_classes(song)) if heard else None
    return Play(
        name=name,
        request=fields,
        file=file,
        step_s=median(clock.steps_s) if clock.steps_s else None,
        total_s=sum(clock.seconds.values()),
        peak_gb=_peak_gb(),
        peak_db=peak_db(song),
        lufs=loudness_lufs(song),
        silent=silent,
        key=f"{key.tonic} {key.mode}" if key else NOTHING,
        bpm=f"{heard_bpm(song):g}" if heard else NOTHING,
    )


def _file_name(words: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in words.lower())
    return "-".join(part for part in kept.split("-") if part)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_kilobytes() / 1e6
