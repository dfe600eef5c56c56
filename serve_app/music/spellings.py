"""What else a request may say: other spellings that mean one thing only, and the names that other services give our fields.

A value comes back in our spelling, or as it was when it has no other meaning; the field's own type then refuses it. The names
come from ACE-Step's own server and page, and from hosted music services.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, Final

FOREIGN_NAMES: Final = {
    "caption": "prompt",
    "tags": "prompt",
    "description": "prompt",
    "style": "prompt",
    "text": "prompt",
    "desc": "prompt",
    "song_description": "prompt",
    "global_caption": "prompt",
    "lyric": "lyrics",
    "audio_duration": "duration",
    "target_duration": "duration",
    "length": "duration",
    "seconds": "duration",
    "duration_s": "duration",
    "duration_seconds": "duration",
    "audio_length": "duration",
    "infer_step": "steps",
    "infer_steps": "steps",
    "inference_steps": "steps",
    "num_inference_steps": "steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "batch_size": "variations",
    "num_songs": "variations",
    "sample_count": "variations",
    "n": "variations",
    "key": "keyscale",
    "key_scale": "keyscale",
    "time_signature": "timesignature",
    "tempo": "bpm",
    "language": "vocal_language",
    "audio_format": "format",
    "response_format": "format",
    "output_format": "format",
    "model_name": "model",
    "model_id": "model",
    "dit_model": "model",
    "task": "task_type",
    "user_metadata": "metadata",
    "seeds": "seed",
    "manual_seed": "seed",
    "manual_seeds": "seed",
    "callback_url": "webhook_url",
    "webhook": "webhook_url",
}
"""What a field is called elsewhere, in snake case, and here. `our_name` reads other cases."""

KEYSCALE: Final = r"^[A-Ga-g] ?([#♯b♭]|[Ss]harp|[Ff]lat)? ?([Mm]ajor|[Mm]inor|[Mm]aj|[Mm]in|m|M)?$"
"""Every spelling of a key that is read; further spaces do not matter."""

_LONGEST_KEY: Final = 40
"""Characters of a key. A text without a bound could keep a regular expression busy for hours."""

_KEYSCALE: Final = re.compile(r"([A-G]) ?(#|♯|b|♭|sharp|flat)? ?(major|minor|maj|min|m)?", re.IGNORECASE)
_ACCIDENTALS: Final = {"#": "#", "♯": "#", "sharp": "#", "b": "b", "♭": "b", "flat": "b"}
_BEATS: Final = {"2": "2", "3": "3", "4": "4", "6": "6", "2/4": "2", "3/4": "3", "4/4": "4", "6/8": "6"}
TIMESIGNATURES: Final = (*_BEATS, 2, 3, 4, 6)
"""Every spelling of a time signature that is read."""

_INSIDE_CAMEL_CASE: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]{1,12}(\.[0-9]{1,12})?\s*")

NOT_SAID: Final = ("", "N/A")
"""What ACE-Step's own page and files have, in any case, where tempo, key or time signature are left open."""


def our_name(foreign: str) -> str | None:
    """The field of ours that another service calls `foreign`, in any case: `audio_duration`, `audioDuration`. None: not known."""
    snake = _INSIDE_CAMEL_CASE.sub("_", foreign).lower().replace("-", "_")
    return FOREIGN_NAMES.get(snake)


def number(value: Any) -> Any:
    """A number that came as text ("120"), and a whole number that came as 120.0: JSON Schema calls that an integer."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def number_pattern(least: float, most: float, is_whole: bool) -> str:
    """A regular expression of texts that `number` reads and that lie between the bounds, with no more than they need to be written.

    `most` is whole; so is `least`, or it is a number of tenths below 1.
    """
    if is_whole:
        signed = ["-1"] if least < 0 else []
        return _either([*signed, *_whole(max(int(least), 0), int(most))])
    parts = [rf"({text})(\.[0-9]{{1,12}})?" for text in _whole(math.ceil(least), int(most) - 1)]
    if 0 < least < 1:
        parts.append(rf"0\.[{round(least * 10)}-9][0-9]{{0,11}}")
    return _either([*parts, str(int(most))])


def word_pattern(words: Iterable[str]) -> str:
    """A regular expression of the spellings that `word` reads as one of `words`."""
    return _either(
        "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in word) for word in words
    )


def _either(parts: Iterable[str]) -> str:
    return f"^({'|'.join(parts)})$"


def _whole(least: int, most: int) -> list[str]:
    """Regular expressions of the whole numbers from `least` to `most`, each for numbers of one length."""
    lengths = range(len(str(least)), len(str(most)) + 1)
    firsts = [max(least, 10 ** (length - 1)) if length > 1 else least for length in lengths]
    return [
        _same_length(str(first), str(min(most, 10**length - 1))) for first, length in zip(firsts, lengths, strict=True)
    ]


def _same_length(least: str, most: str) -> str:
    if least == most:
        return least
    if least[0] == most[0]:
        return least[0] + _same_length(least[1:], most[1:])
    rest = len(least) - 1
    first = int(least[0])
    last = int(most[0])
    parts = []
    if int(least[1:] or 0) > 0:
        parts.append(least[0] + _same_length(least[1:], "9" * rest))
        first += 1
    if rest and most[1:] != "9" * rest:
        parts.append(most[0] + _same_length("0" * rest, most[1:]))
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return f"({'|'.join(parts)})"


def is_said(value: Any) -> bool:
    """Whether a tempo, key or time signature is given at all."""
    return not isinstance(value, str) or value.strip().upper() not in NOT_SAID


def keyscale(value: Any) -> Any:
    """A key as `A minor` or `F# major`: "Am", "c Major", "B♭ min" and a bare "C", which is C major, mean one thing only.

    Raises ValueError for text that is no key.
    """
    if not isinstance(value, str):
        return value
    found = _KEYSCALE.fullmatch(" ".join(value.split())) if len(value) <= _LONGEST_KEY else None
    if found is None:
        raise ValueError("must be a key such as 'C major', 'F# minor', 'Bb major' or 'Am'")
    accidental = _ACCIDENTALS[found[2].lower()] if found[2] else ""
    mode = found[3] or "major"
    is_minor = mode == "m" or mode.lower().startswith("min")
    return f"{found[1].upper()}{accidental} {'minor' if is_minor else 'major'}"


def timesignature(value: Any) -> Any:
    """Beats in a bar as `4`: 4, 4.0, "4" and "4/4" are the same. Raises ValueError for every other value."""
    value = number(value)
    beats = _BEATS.get(str(value).replace(" ", ""))
    if beats is None:
        raise ValueError("must be 2, 3, 4 or 6 beats in a bar, also written '2/4', '3/4', '4/4' or '6/8'")
    return beats


def word(value: Any) -> Any:
    """A name out of a list, whatever its case: "MP3" is mp3."""
    return value.strip().lower() if isinstance(value, str) else value


def text(value: Any) -> Any:
    """Lines that end in LF, as the model was trained on: the same words with CRLF would be another song."""
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value
