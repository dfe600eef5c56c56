"""The training data: clips' facts and latents in a folder. Their audio is rendered again from the seeds when needed.

A folder holds `plan.json` (what is to be in it), `facts.json`, `mix.npy` with every clip's latents, `stems.npy` with those
of all clips' tracks one after another, `rows.npy` with the row of each clip's track (-1: the clip lacks it), and
`done.json` with the number of finished clips. An interrupted build goes on from there.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from miniature.clips import CLIP_FRAMES, mix, render_clip, render_stems
from miniature.latents import analyse
from miniature.mixing import Latents, silence
from miniature.pieces import TRACKS, Facts, compose
from miniature.stage import Session, be_idle
from miniature.synthesizer import Audio
from miniature.tasks import HELD_OUT

NUMBERS = 64  # of a latent
SAVE_EVERY = 100  # clips
CHECKED = 20  # the clips that are composed again to see whether a data set is this version's
SEEDS_APART = 1_000_000  # clips' seeds from one data set's first to the next one's


@dataclass(frozen=True)
class Clip:
    """A clip: its facts, from whose seed its audio is rendered."""

    seed: int
    facts: Facts


class Stem:
    """One track's latents; index it with a clip and frames, as an array (clips, frames, 64): float16.

    A clip without the track has silence there.
    """

    def __init__(self, latents: np.ndarray, rows: np.ndarray) -> None:
        self._latents = latents
        self._rows = rows
        self._silence = silence(CLIP_FRAMES).astype(np.float16)
        self.shape = (len(rows), CLIP_FRAMES, NUMBERS)

    def __getitem__(self, place: tuple[int, slice] | int) -> np.ndarray:
        clip, frames = place if isinstance(place, tuple) else (place, slice(None))
        row = self._rows[clip]
        latents: np.ndarray = self._silence[frames] if row < 0 else self._latents[row, frames]
        return latents


@dataclass(frozen=True)
class Dataset:
    """A finished data set: float16 latents `mix` (clips, 256, 64), `stems` by track, and each clip's facts.

    The last HELD_OUT clips are for evaluation: no other clip is described as one of them is.
    """

    mix: np.ndarray
    stems: Mapping[str, Stem]
    facts: Sequence[Facts]

    def clip(self, index: int) -> Clip:
        """The clip at an index."""
        return Clip(self.facts[index].seed, self.facts[index])


def render(clip: Clip) -> Audio:
    """A clip's audio (2, samples)."""
    return render_clip(clip.facts)


def load(folder: Path) -> Dataset:
    """The data set of a folder, with its latents mapped into memory.

    Raises FileNotFoundError if the folder has none, or only a part of it; ValueError if its clips were composed otherwise.
    """
    plan = _read(folder / "plan.json")
    done = _done(folder)
    if plan is None or done < plan["clips"]:
        of = plan["clips"] if plan else "all"
        raise FileNotFoundError(
            f"{folder} has {done} of {of} clips: run `python -m miniature data` until it is finished"
        )
    latents = np.load(folder / "stems.npy", mmap_mode="r")
    rows = np.load(folder / "rows.npy")
    stems = {track: Stem(latents, rows[:, index]) for index, track in enumerate(TRACKS)}
    facts = _saved_facts(folder)
    return Dataset(np.load(folder / "mix.npy", mmap_mode="r"), stems, facts)


def build(folder: Path, *, clips: int, seed: int, processes: int, session: Session) -> bool:
    """Makes the data set, or goes on with it; returns whether it is finished.

    Raises ValueError if the folder has a data set of another size or seed, or composed otherwise, or if `clips` are only the
    held-out ones.
    """
    facts = _begin(folder, clips, seed)
    mixes = np.load(folder / "mix.npy", mmap_mode="r+")
    stems = np.load(folder / "stems.npy", mmap_mode="r+")
    rows = np.load(folder / "rows.npy")
    first = _done(folder)
    began = time.monotonic()
    # A fresh interpreter each: torch's threads do not survive a fork.
    # One thread for the linear algebra of each process: with more, 14 processes on 16 cores made 6 clips a second, not 25.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=be_idle, initargs=(1,)) as pool:
        for start in range(first, clips, SAVE_EVERY):
            if not session.running:
                return False
            batch = facts[start : start + SAVE_EVERY]
            for clip, latents in enumerate(pool.map(_analysed, batch, chunksize=5), start):
                mixes[clip] = latents["mix"]
                for index, track in enumerate(TRACKS):
                    if rows[clip, index] >= 0:
                        stems[rows[clip, index]] = latents[track]
            mixes.flush()
            stems.flush()
            done = start + len(batch)
            _write(folder / "done.json", done)
            speed = (done - first) / (time.monotonic() - began)
            print(
                f"{done} of {clips} clips  {speed:.1f} clips/s  {(clips - done) / speed / 60:.1f} min left", flush=True
            )
    return True


def _begin(folder: Path, clips: int, seed: int) -> list[Facts]:
    """Chooses the clips and makes the files in which their latents will be, unless that was done."""
    plan = {"clips": clips, "seed": seed}
    saved = _read(folder / "plan.json")
    if saved is not None and saved != plan:
        raise ValueError(
            f"{folder} has a data set of {saved}, not of {plan}: choose another folder, or delete this one"
        )
    if saved is None:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = list(chosen_clips(clips, seed))
        rows = _rows(chosen)
        np.save(folder / "rows.npy", rows)
        (folder / "facts.json").write_text(json.dumps([asdict(facts) for facts in chosen]))
        _empty(folder / "mix.npy", clips)
        _empty(folder / "stems.npy", int(rows.max()) + 1)
        _write(folder / "plan.json", plan)
    return _saved_facts(folder)


def chosen_clips(clips: int, seed: int) -> Iterator[Facts]:
    """The facts of a data set's clips. Raises ValueError if there would be held-out clips only."""
    if clips <= HELD_OUT:
        raise ValueError(f"clips is {clips}, and {HELD_OUT} of them are held out: more than {HELD_OUT} are needed")
    held_out = held_out_clips(seed)
    descriptions = {described(facts) for facts in held_out}
    number = seed * SEEDS_APART + HELD_OUT
    trained = 0
    while trained < clips - HELD_OUT:
        facts = compose(number).facts
        number += 1
        if described(facts) not in descriptions:
            trained += 1
            yield facts
    yield from held_out


def held_out_clips(seed: int = 0) -> list[Facts]:
    """The facts of a data set's held-out clips, whatever its size."""
    first = seed * SEEDS_APART
    return [compose(first + number).facts for number in range(HELD_OUT)]


def described(facts: Facts) -> tuple[object, ...]:
    """What a caption can say of a clip."""
    return (
        facts.instrument,
        facts.bpm,
        facts.key,
        facts.mode,
        facts.mood,
        facts.drums,
        facts.bass,
        facts.voice,
    )


def _rows(chosen: Sequence[Facts]) -> np.ndarray:
    """Each clip's row in `stems.npy` by track: (clips, tracks), -1 where a clip lacks the track."""
    rows = np.full((len(chosen), len(TRACKS)), -1, np.int32)
    row = 0
    for clip, facts in enumerate(chosen):
        for track in compose(facts.seed).tracks:
            rows[clip, TRACKS.index(track)] = row
            row += 1
    return rows


def _analysed(facts: Facts) -> dict[str, Latents]:
    """The latents of a clip's tracks, and of their mix under the name "mix"."""
    stems = render_stems(facts)
    return {"mix": analyse(mix(stems)), **{track: analyse(stem) for track, stem in stems.items()}}


def _empty(file: Path, count: int) -> None:
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(count, CLIP_FRAMES, NUMBERS)).flush()


def _saved_facts(folder: Path) -> list[Facts]:
    """The clips' facts. Raises ValueError if their seeds give other pieces now: latents and audio would not match."""
    facts = [_facts(saved) for saved in json.loads((folder / "facts.json").read_text())]
    for known in facts[-CHECKED:]:
        if compose(known.seed).facts != known:
            raise ValueError(
                f"{folder} was made by another version: seed {known.seed} gives another piece now. Delete it"
            )
    return facts


def _facts(saved: dict[str, Any]) -> Facts:
    syllables = tuple((text, onset_s) for text, onset_s in saved["syllables"])
    return Facts(**{**saved, "syllables": syllables})


def _done(folder: Path) -> int:
    done = _read(folder / "done.json")
    return 0 if done is None else int(done)


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def _write(file: Path, value: object) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value))
    unfinished.replace(file)
