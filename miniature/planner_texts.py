"""What the planner reads and writes of a song, in the prompts of Sophia's planner.

An answer's metadata are the song's facts. The caption in it is in the words that the toy model knows best, whatever the request
says, and leaves key and tempo to their own fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from miniature.captions import ADJECTIVES, FLATS, INSTRUMENTAL_LYRICS, SUNG, TIME_SIGNATURE, UNNAMED_INSTRUMENTS
from miniature.pieces import Facts, compose_song
from serve_app.engine.planner import prompts
from serve_app.engine.planner.protocol import Wishes

TOLD_SHARE = 0.7  # of the requests that name the tempo; the same for the key
SLOWEST_TOLD = 40
FASTEST_TOLD = 220
"""Tempos, in beats a minute, of songs that nobody has played."""
LONGEST_TOLD_S = 180
FIRST_UNPLAYED = 10_000_000
"""Of the seeds of songs that nobody has played."""
_SENTENCE_SHARE = 0.3
_OTHER_WORDS_SHARE = 0.3
_UNCONDITIONAL_SHARE = 0.1
_DECIDED_SHARE = 0.4
_DECIDED = ("bpm", "duration", "keyscale", "timesignature")
_OTHER_WORDS = (
    "lofi", "ambient", "rock", "jazz", "folk", "pop", "classical", "cinematic", "electronic", "blues", "country", "dance",
    "dreamy", "dark", "happy", "sad", "energetic", "relaxing", "romantic", "epic", "rain", "summer", "night", "background music",
    "chill", "a song about the sea", "for a game", "for studying", "with a catchy melody", "nostalgic", "festive", "simple",
)  # fmt: skip
_TEMPO_WORDS = ("{} bpm", "{} bpm", "{} BPM", "{}bpm", "tempo {}", "at {} bpm", "bpm: {}", "{} beats per minute")
_KEY_WORDS = ("{}", "{}", "in {}", "key of {}", "in the key of {}", "key: {}")


@dataclass(frozen=True)
class Example:
    """A prompt, and the answer that is to be learnt."""

    prompt: prompts.Prompt
    answer: prompts.Prompt


@dataclass(frozen=True)
class Told:
    """A song as somebody asks for it: the words, its lyrics, and the name of its key as the words spell it."""

    caption: str
    lyrics: str
    keyscale: str


def told(facts: Facts, random: np.random.Generator, keyscale: str | None = None) -> Told:
    """A request for a song, each time in other words; its key is `keyscale` or, without it, the song's.

    Some requests name neither tempo nor key nor instrument.
    """
    keyscale = keyscale or _keyscale(facts, random)
    parts = [_head(facts, random)]
    if random.random() < 0.7:
        parts.append(facts.mood)
    if random.random() < _OTHER_WORDS_SHARE:
        parts.append(_one(_OTHER_WORDS, random))
    if random.random() < TOLD_SHARE:
        parts.append(_one(_TEMPO_WORDS, random).format(facts.bpm))
    if random.random() < TOLD_SHARE:
        parts.append(_one(_KEY_WORDS, random).format(keyscale))
    if random.random() < 0.5:
        random.shuffle(parts)
    caption = " ".join(parts) if random.random() < _SENTENCE_SHARE else ", ".join(parts)
    lyrics = facts.lyrics if facts.voice else INSTRUMENTAL_LYRICS[random.integers(len(INSTRUMENTAL_LYRICS))][0]
    return Told(caption, lyrics, keyscale)


def planned(
    facts: Facts, codes: Sequence[int], random: np.random.Generator, keyscale: str | None = None, *, ended: bool = True
) -> Example:
    """A request and its whole plan: metadata, then codes, if there are any. `ended` says whether they are the song's last.

    Both phases are learnt from one sequence, since the prompt of the second begins with the answer of the first. Some requests
    decide tempo, key, time signature and length themselves: then there is no first phase, and the codes follow these alone.
    """
    request = told(facts, random, keyscale)
    wishes = Wishes(caption=request.caption, lyrics=request.lyrics)
    metadata = metadata_of(facts, request.keyscale)
    if codes and random.random() < _UNCONDITIONAL_SHARE:
        return Example(prompts.codes_prompt_without(wishes), _answered(codes, ended))
    if codes and random.random() < _DECIDED_SHARE:
        decided = {name: metadata[name] for name in _DECIDED}
        return Example(prompts.codes_prompt(wishes, decided), _answered(codes, ended))
    without_words = random.random() < _UNCONDITIONAL_SHARE
    prompt = prompts.metadata_prompt_without(wishes) if without_words else prompts.metadata_prompt(wishes)
    thoughts = prompts.thoughts(metadata)
    if not codes:
        return Example(prompt, thoughts)
    whole = prompts.codes_prompt(wishes, metadata)
    between = whole[len(prompts.metadata_prompt(wishes)) + len(thoughts) :]
    return Example(prompt, (*thoughts, *between, *_answered(codes, ended)))


def formatted(facts: Facts, random: np.random.Generator) -> Example:
    """A caption and lyrics, and the answer with a better caption, the metadata, and the same lyrics."""
    request = told(facts, random)
    wishes = Wishes(caption=request.caption, lyrics=request.lyrics)
    return Example(prompts.format_prompt(wishes), _described(facts, request.keyscale))


def sampled(facts: Facts, random: np.random.Generator) -> Example:
    """A song in plain words, and the answer with a caption, metadata and lyrics."""
    request = told(facts, random)
    return Example(prompts.sample_prompt(request.caption, not facts.voice), _described(facts, request.keyscale))


def understood(facts: Facts, codes: Sequence[int]) -> Example:
    """A song's codes, and the answer with its caption, metadata and lyrics."""
    return Example(prompts.understand_prompt(tuple(codes)), _described(facts, f"{facts.key} {facts.mode}"))


def metadata_of(facts: Facts, keyscale: str) -> dict[str, Any]:
    """What the planner is to say of a song."""
    return {
        "bpm": facts.bpm,
        "caption": plain_caption(facts),
        "duration": facts.piece_s,
        "keyscale": keyscale,
        "language": "en" if facts.voice else "unknown",
        "timesignature": TIME_SIGNATURE,
    }


def plain_caption(facts: Facts) -> str:
    """A song's instruments and mood, always in the same words."""
    added = _added(facts)
    head = f"{facts.instrument} with {' and '.join(added)}" if added else f"solo {facts.instrument}"
    return f"{head}, {facts.mood}"


def any_song(random: np.random.Generator) -> tuple[Facts, str]:
    """A song that nobody has played, so that it may have any tempo and length, and its key, in any spelling."""
    seconds = round(float(np.exp(random.uniform(np.log(10), np.log(LONGEST_TOLD_S)))))
    facts = compose_song(int(random.integers(FIRST_UNPLAYED, 2**31)), seconds).facts
    if random.random() < 0.5:
        facts = replace(facts, bpm=int(random.integers(SLOWEST_TOLD, FASTEST_TOLD + 1)))
    keyscale = _keyscale(facts, random)
    if random.random() < 0.2:
        keyscale = f"{_one('ABCDEFG', random)}{_one(('', '#', 'b'), random)} {facts.mode}"
    return facts, keyscale


def _answered(codes: Sequence[int], ended: bool) -> prompts.Prompt:
    answer = prompts.codes_answer(tuple(codes))
    return answer if ended else answer[:-1]


def _described(facts: Facts, keyscale: str) -> prompts.Prompt:
    lyrics = facts.lyrics if facts.voice else prompts.INSTRUMENTAL
    return (*prompts.thoughts(metadata_of(facts, keyscale)), *prompts.lyrics_answer(lyrics))


def _added(facts: Facts) -> list[str]:
    return [name for name, heard in (("drums", facts.drums), ("bass", facts.bass), ("vocals", facts.voice)) if heard]


def _head(facts: Facts, random: np.random.Generator) -> str:
    """The instrument, if it is named, and what plays with it."""
    named = random.random() < 0.85
    head = facts.instrument if named else _one(UNNAMED_INSTRUMENTS, random)
    if named and random.random() < 0.35:
        head = f"{_one(ADJECTIVES[facts.instrument], random)} {head}"
    added = _added(facts)
    if not added:
        return f"solo {head}" if random.random() < 0.4 else head
    if facts.voice and random.random() < 0.6:
        added.remove("vocals")
        sung = _one((*SUNG, "", ""), random)
        return " ".join(filter(None, [head, f"with {' and '.join(added)}" if added else "", sung]))
    random.shuffle(added)
    return f"{head} with {' and '.join(added)}"


def _keyscale(facts: Facts, random: np.random.Generator) -> str:
    tonic = FLATS[facts.key] if facts.key in FLATS and random.random() < 0.5 else facts.key
    return f"{tonic} {facts.mode}"


def _one(words: Sequence[str], random: np.random.Generator) -> str:
    return words[int(random.integers(len(words)))]
