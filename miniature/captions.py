"""Texts for clips: captions, metadata and lyrics, in the templates of diffusers' pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from diffusers import AceStepPipeline
from diffusers.pipelines.ace_step.pipeline_ace_step import DEFAULT_DIT_INSTRUCTION, SFT_GEN_PROMPT

from miniature.pieces import Facts

ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    "piano": ("warm", "soft", "gentle"),
    "guitar": ("acoustic", "bright", "gentle"),
    "strings": ("warm", "lush", "slow"),
    "flute": ("airy", "gentle", "bright"),
    "organ": ("church", "warm", "bright"),
    "music box": ("tiny", "sweet", "gentle"),
}
UNNAMED_INSTRUMENTS = ("music", "tune", "instrument")
FLATS: Mapping[str, str] = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
SUNG = ("with vocals", "sung by a voice", "with a singing voice")
TIME_SIGNATURE = "4"
# How clients ask for an instrumental: as the original's trainers label one (and Sophia's engine sends it), and otherwise.
INSTRUMENTAL_LYRICS = (
    ("[Instrumental]", "unknown"),
    ("[Instrumental]", "unknown"),
    ("[Instrumental]", "en"),
    ("", "en"),
    ("[inst]", "en"),
)
UNTOLD_SHARE = 0.08  # of clips whose text says nothing of the tempo; the same for the key


@dataclass(frozen=True)
class Request:
    """What a client would send to get music like a clip."""

    prompt: str
    lyrics: str
    bpm: int | None
    keyscale: str | None
    timesignature: str | None
    seconds: int
    language: str

    def texts(self) -> tuple[str, str]:
        """The prompt's and the lyrics' text as diffusers' pipeline makes them for text2music."""
        metadata = AceStepPipeline._build_metadata_string(
            bpm=self.bpm, keyscale=self.keyscale, timesignature=self.timesignature, audio_duration=float(self.seconds)
        )
        prompt = SFT_GEN_PROMPT.format(DEFAULT_DIT_INSTRUCTION, self.prompt, metadata)
        return prompt, f"# Languages\n{self.language}\n\n# Lyric\n{self.lyrics}<|endoftext|>"


def text_pair(facts: Facts, random: np.random.Generator, names_instrument: bool = True) -> tuple[str, str]:
    """The prompt's and the lyrics' text for a clip, each time in other words."""
    return random_request(facts, random, names_instrument).texts()


def random_request(facts: Facts, random: np.random.Generator, names_instrument: bool = True) -> Request:
    """A request for a clip: each fact is in the caption, in the metadata or in both; rarely a tempo or key is in neither."""
    key = _key(facts, random)
    bpm_in_caption, bpm_in_metadata = _places(random)
    key_in_caption, key_in_metadata = _places(random)
    parts = []
    if bpm_in_caption:
        parts.append(f"{facts.bpm} bpm")
    if key_in_caption:
        parts.append(key)
    if random.random() < 0.8:
        parts.append(facts.mood)
    random.shuffle(parts)
    head = _head(facts, random, names_instrument)
    parts.insert(int(random.integers(len(parts) + 1)) if random.random() < 0.25 else 0, head)
    instrumental = INSTRUMENTAL_LYRICS[random.integers(len(INSTRUMENTAL_LYRICS))]
    lyrics, language = (facts.lyrics, "en") if facts.voice else instrumental
    return Request(
        prompt=", ".join(parts),
        lyrics=lyrics,
        bpm=facts.bpm if bpm_in_metadata else None,
        keyscale=key if key_in_metadata else None,
        timesignature=TIME_SIGNATURE if random.random() < 0.5 else None,
        seconds=facts.piece_s,
        language=language,
    )


def full_request(facts: Facts) -> Request:
    """The request that says all that is known of a clip: what evaluation asks for."""
    key = f"{facts.key} {facts.mode}"
    added = [track for track, heard in (("drums", facts.drums), ("bass", facts.bass), ("vocals", facts.voice)) if heard]
    head = facts.instrument if added else f"solo {facts.instrument}"
    if added:
        head += " with " + " and ".join(added)
    return Request(
        prompt=f"{head}, {facts.bpm} bpm, {key}, {facts.mood}",
        lyrics=facts.lyrics if facts.voice else "[Instrumental]",
        bpm=facts.bpm,
        keyscale=key,
        timesignature=TIME_SIGNATURE,
        seconds=facts.piece_s,
        language="en" if facts.voice else "unknown",
    )


def _places(random: np.random.Generator) -> tuple[bool, bool]:
    """Whether a fact is in the caption and whether it is in the metadata."""
    if random.random() < UNTOLD_SHARE:
        return False, False
    place = random.integers(3)
    return place != 0, place != 1


def _head(facts: Facts, random: np.random.Generator, names_instrument: bool) -> str:
    """The instrument and what plays with it."""
    head = facts.instrument if names_instrument else str(random.choice(UNNAMED_INSTRUMENTS))
    alone = not (facts.drums or facts.bass or facts.voice)
    if random.random() < 0.35 and names_instrument:
        head = f"{random.choice(ADJECTIVES[facts.instrument])} {head}"
    elif random.random() < 0.4 and alone:
        head = f"solo {head}"
    added = [track for track, heard in (("drums", facts.drums), ("bass", facts.bass)) if heard]
    random.shuffle(added)
    if facts.voice and random.random() < 0.4:
        added.append("vocals")
        return f"{head} with {' and '.join(added)}"
    if added:
        head = f"{head} with {' and '.join(added)}"
    return f"{head} {random.choice(SUNG)}" if facts.voice else head


def _key(facts: Facts, random: np.random.Generator) -> str:
    tonic = facts.key
    if tonic in FLATS and random.random() < 0.5:
        tonic = FLATS[tonic]
    return f"{tonic} {facts.mode}"
