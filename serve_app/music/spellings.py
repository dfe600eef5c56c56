"""Alternative spellings of a request's values, and the names that other services use for its fields.

A function that reads a value returns it in Sophia's spelling. It returns an unknown value unchanged, which the field's type then
refuses, unless its docstring names an error. The field names come from ACE-Step's own server and web page, and from hosted music
services.
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
    "src_audio": "source",
    "src_audio_path": "source",
    "source_audio": "source",
    "reference_audio": "reference",
    "reference_audio_path": "reference",
    "ref_audio": "reference",
    "flow_edit_source_caption": "source_prompt",
    "flow_edit_source_lyrics": "source_lyrics",
    "flow_edit_n_min": "edit_start",
    "flow_edit_n_max": "edit_end",
    "flow_edit_n_avg": "edit_draws",
    "repainting_start": "repaint_start",
    "repainting_end": "repaint_end",
    "audio_cover_strength": "cover_strength",
    "track_name": "track",
    "track_names": "tracks",
    "complete_track_classes": "tracks",
    "audio_code_string": "audio_codes",
    "sampler_mode": "sampler",
    "infer_method": "sampler",
    "guidance_variant": "guidance_mode",
    "dcw_enabled": "dcw",
    "dcw_scaler": "dcw_strength",
    "dcw_high_scaler": "dcw_high_strength",
    "fade_in_duration": "fade_in",
    "fade_out_duration": "fade_out",
    "loras": "lora",
    "lora_name": "lora",
    "adapter": "lora",
    "adapters": "lora",
    "user_metadata": "metadata",
    "seeds": "seed",
    "manual_seed": "seed",
    "manual_seeds": "seed",
    "lm_temperature": "plan_temperature",
    "lm_cfg_scale": "plan_guidance",
    "lm_top_k": "plan_top_k",
    "lm_top_p": "plan_top_p",
    "lm_negative_prompt": "plan_negative_prompt",
    "lm_seed": "plan_seed",
    "use_cot_caption": "plan_caption",
    "use_cot_language": "plan_language",
    "composition_plan": "plan",
    "callback_url": "webhook_url",
    "webhook": "webhook_url",
}
"""Sophia's field by the name that another service uses, in snake case. `our_name` also accepts other cases."""

KEYSCALE: Final = r"^[A-Ga-g] ?([#♯b♭]|[Ss]harp|[Ff]lat)? ?([Mm]ajor|[Mm]inor|[Mm]aj|[Mm]in|m|M)?$"
"""The accepted spellings of a key, with single spaces; `keyscale` accepts any number of spaces."""

_LONGEST_KEY: Final = 40
"""Maximum number of characters in a key. Without it, matching a very long text could take hours."""

_KEYSCALE: Final = re.compile(r"([A-G]) ?(#|♯|b|♭|sharp|flat)? ?(major|minor|maj|min|m)?", re.IGNORECASE)
_ACCIDENTALS: Final = {"#": "#", "♯": "#", "sharp": "#", "b": "b", "♭": "b", "flat": "b"}
_BEATS: Final = {"2": "2", "3": "3", "4": "4", "6": "6", "2/4": "2", "3/4": "3", "4/4": "4", "6/8": "6"}
TIMESIGNATURES: Final = (*_BEATS, 2, 3, 4, 6)
"""The accepted spellings of a time signature."""

LARGEST_CODE: Final = 65_535
_CODE: Final = re.compile(r"\s*<\|audio_code_([0-9]{1,5})\|>")
_MAX_PIECE: Final = 30
"""The most characters that an error quotes of a text that is no audio code."""

SWITCH: Final = {"true": True, "false": False}
"""The accepted spellings of yes and no besides JSON's own."""

_INSIDE_CAMEL_CASE: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]{1,12}(\.[0-9]{1,12})?\s*")

UNSET: Final = ("", "N/A")
"""The values that ACE-Step's web page and files use, in any case, for a field that is not set."""


def our_name(foreign: str) -> str | None:
    """Sophia's name for another service's field, in snake case, camel case or kebab case. None if it is unknown."""
    return FOREIGN_NAMES.get(snake_case(foreign))


def snake_case(name: str) -> str:
    """A field's name, which may be in camel case or kebab case, in snake case."""
    return _INSIDE_CAMEL_CASE.sub("_", name).lower().replace("-", "_")


def number(value: Any) -> Any:
    """Convert text such as "120" to a number, and 120.0 to an integer, which it is in JSON Schema."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def number_pattern(least: float, most: float, is_whole: bool) -> str:
    """A regular expression that matches the numbers from `least` to `most`, in their shortest spelling, as texts for `number`.

    `most` must be a whole number; `least` must be a whole number or a multiple of 0.1 below 1.
    """
    if is_whole:
        signed = ["-1"] if least < 0 else []
        return _either([*signed, *_whole(max(int(least), 0), int(most))])
    parts = [rf"({text})(\.[0-9]{{1,12}})?" for text in _whole(math.ceil(least), int(most) - 1)]
    if 0 < least < 1:
        parts.append(rf"0\.[{round(least * 10)}-9][0-9]{{0,11}}")
    return _either([*parts, str(int(most))])


def choice_pattern(words: Iterable[str]) -> str:
    """A regular expression that matches the texts that `choice` converts to one of `words`."""
    return _either(
        "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in word) for word in words
    )


def audio_codes_pattern() -> str:
    """A regular expression that matches ACE-Step's text for audio codes, in its shortest spelling."""
    number = "|".join(_whole(0, LARGEST_CODE))
    return rf"^(<\|audio_code_({number})\|>)+$"


def _either(parts: Iterable[str]) -> str:
    return f"^({'|'.join(parts)})$"


def _whole(least: int, most: int) -> list[str]:
    """Regular expressions for the whole numbers from `least` to `most`, one for each number of digits."""
    if least > most:
        return []
    lengths = range(len(str(least)), len(str(most)) + 1)
    firsts = [max(least, 10 ** (length - 1)) if length > 1 else least for length in lengths]
    return [
        _same_length(str(first), str(min(most, 10**length - 1))) for first, length in zip(firsts, lengths, strict=True)
    ]


def _same_length(least: str, most: str) -> str:
    """A regular expression for the whole numbers from `least` to `most`, which have the same number of digits."""
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


def is_unset(value: Any) -> bool:
    """Whether the value of a field for which ACE-Step's clients may send one of UNSET means that it is not set."""
    return isinstance(value, str) and value.strip().upper() in UNSET


def keyscale(value: Any) -> Any:
    """Convert a key such as "Am", "c Major", "B♭ min" or "C" (C major) to the form `A minor` or `F# major`.

    Raises ValueError for text that is not a key.
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
    """Convert a time signature such as 4, 4.0, "4" or "4/4" to the text "4". Raises ValueError for every other value."""
    value = number(value)
    beats = _BEATS.get(str(value).replace(" ", ""))
    if beats is None:
        raise ValueError("must be 2, 3, 4 or 6 beats per bar, also written '2/4', '3/4', '4/4' or '6/8'")
    return beats


def choice(value: Any) -> Any:
    """Convert one of a list of names, such as "MP3", to lower case."""
    return value.strip().lower() if isinstance(value, str) else value


def audio_codes(value: Any) -> Any:
    """Convert ACE-Step's text for audio codes, such as "<|audio_code_12|><|audio_code_7|>", to a list of numbers.

    In a list, 7.0 means 7: JSON does not tell them apart. Raises ValueError for any other text.
    """
    if isinstance(value, str):
        return _codes_in(value)
    if isinstance(value, list):
        return [int(code) if isinstance(code, float) and code.is_integer() else code for code in value]
    return value


def _codes_in(text: str) -> list[int]:
    text = text.rstrip()
    codes: list[int] = []
    end = 0
    while end < len(text):
        found = _CODE.match(text, end)
        if found is None or int(found[1]) > LARGEST_CODE:
            raise ValueError(_wrong_code(text, end))
        codes.append(int(found[1]))
        end = found.end()
    return codes


def _wrong_code(text: str, start: int) -> str:
    """What is wrong with the text after `start`, where a code should follow."""
    rest = text[start:].lstrip()
    piece = rest[:_MAX_PIECE].split()[0]
    return (
        f"must be a list of numbers from 0 to {LARGEST_CODE}, or text such as '<|audio_code_12|><|audio_code_7|>'; "
        f"{piece!r} at character {len(text) - len(rest) + 1} is no such code"
    )


def audio_codes_text(codes: Iterable[int]) -> str:
    """ACE-Step's text for audio codes, which `audio_codes` reads."""
    return "".join(f"<|audio_code_{code}|>" for code in codes)


def switch(value: Any) -> Any:
    """Convert the texts "true" and "false", which forms send, in any case."""
    return SWITCH.get(value.strip().lower(), value) if isinstance(value, str) else value


THINKING: Final = {"true": "codes", "false": "none"}
"""ACE-Step's values for whether a song is planned, by JSON's names for them."""


def thinking(value: Any) -> Any:
    """Convert ACE-Step's true and false, also as text, to `codes` and `none`."""
    word = choice(str(value) if isinstance(value, bool) else value)
    return THINKING.get(word, word) if isinstance(word, str) else word


def adapters(value: Any) -> Any:
    """Convert one adapter to a list of it, and an adapter's name alone to an object with this name."""
    entries = value if isinstance(value, list) else [value]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


def text(value: Any) -> Any:
    """Convert line ends to LF, which the model was trained on. With CRLF, the same lyrics would give another song."""
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value
