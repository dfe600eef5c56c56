"""The planner's training data: whole songs of the synthesizer, and the audio codes that the tokenizer gives them.

A folder holds `songs.jsonl`: a line for each song with its seed, its length and its codes. Everything else that is known
of a song is composed again from these. An interrupted build goes on from there.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenizer

from miniature.clips import mix
from miniature.latents import SAMPLE_RATE, analyse
from miniature.pieces import Facts, compose_song
from miniature.stage import Session, be_idle
from miniature.synthesizer import LOUDNESS, Audio, render

LENGTHS_S = (10, 12, 15, 20, 25, 30, 40, 50, 60)
HELD_OUT_SONGS = 100
FIRST_SEED = 5_000_000
"""Of the songs: beyond the seeds of every data set of clips that has been trained on."""
_FILE = "songs.jsonl"
_AT_ONCE = 20
"""Songs that a process makes before they are written."""


@dataclass(frozen=True)
class Song:
    """A whole song: its facts, and its audio codes, five a second."""

    facts: Facts
    codes: tuple[int, ...]


def song_length_s(seed: int) -> int:
    """The length of a seed's song."""
    return int(np.random.default_rng([17, seed]).choice(LENGTHS_S))


def render_song(seed: int, seconds: int) -> Audio:
    """A song's audio (2, samples), as loud as clips are."""
    samples = seconds * SAMPLE_RATE
    audio = mix({track: render(notes, samples) for track, notes in compose_song(seed, seconds).tracks.items()})
    loudness = np.float32(np.sqrt((audio**2).mean()))
    loud: Audio = audio * (np.float32(LOUDNESS) / loudness)
    return loud


def build(folder: Path, checkpoint: Path, *, songs: int, processes: int, session: Session) -> bool:
    """Makes the songs, or goes on with them; returns whether there are as many as wanted.

    The first HELD_OUT_SONGS are for evaluation. The codes are those of the tokenizer in the pipeline's folder `checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _FILE
    done = len(_lines(file))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    made = partial(_coded, checkpoint)
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=be_idle, initargs=(1,)) as pool,
        file.open("a") as written,
    ):
        seeds = iter(range(FIRST_SEED + done, FIRST_SEED + songs))
        while chunk := list(islice(seeds, _AT_ONCE * processes)):
            if not session.running:
                return False
            for line in pool.map(made, chunk, chunksize=_AT_ONCE // 4):
                written.write(line + "\n")
            written.flush()
            print(f"{chunk[-1] + 1 - FIRST_SEED} of {songs} songs  {session.spent_s:.0f} s", flush=True)
    return True


def load(folder: Path) -> list[Song]:
    """The songs of a folder; the first HELD_OUT_SONGS are for evaluation. Raises FileNotFoundError if it has no others."""
    lines = _lines(folder / _FILE)
    if len(lines) <= HELD_OUT_SONGS:
        raise FileNotFoundError(
            f"{folder} has {len(lines)} songs, of which {HELD_OUT_SONGS} are held out: run `python -m miniature songs`"
        )
    return [Song(compose_song(line["seed"], line["seconds"]).facts, tuple(line["codes"])) for line in lines]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _coded(checkpoint: Path, seed: int) -> str:
    seconds = song_length_s(seed)
    latents = analyse(render_song(seed, seconds))
    return json.dumps({"seed": seed, "seconds": seconds, "codes": codes_of(_tokenizer(checkpoint), latents)})


@torch.inference_mode()
def codes_of(tokenizer: Any, latents: np.ndarray) -> list[int]:
    """The audio codes of latents (frames, 64), a multiple of five frames."""
    _, indices = tokenizer.tokenize(torch.from_numpy(latents)[None])
    codes: list[int] = indices.flatten().tolist()
    return codes


@cache
def _tokenizer(checkpoint: Path) -> Any:
    return AceStepAudioTokenizer.from_pretrained(checkpoint / "audio_tokenizer", dtype=torch.float32).eval()
