"""What the planner is asked, in the words on which ACE-Step's language models were trained.

The wording follows `acestep/constants.py` and `acestep/llm_inference.py` of the original. A prompt is a tuple of parts, which
`Vocabulary.encode` turns into tokens: ordinary text, in which no token has a meaning of its own whatever a user has written,
markers of the chat, and audio codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from serve_app.engine.planner.protocol import Wishes
from serve_app.weights.planner_tokens import END, THINK, THOUGHT, TURN

FIELDS: Final = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
"""The metadata in the order in which the planner writes them."""

INSTRUMENTAL: Final = "[Instrumental]"
"""The lyrics of a song without a voice."""

_PLAN: Final = "Generate audio semantic tokens based on the given conditions:"
_UNDERSTAND: Final = "Understand the given musical conditions and describe the audio semantics accordingly:"
_SAMPLE: Final = "Expand the user's input into a more detailed and specific musical description:"
_FORMAT: Final = "Format the user's input into a more detailed and specific musical description:"

_NO_INPUT: Final = "NO USER INPUT"
"""What the original asks if a query is empty, and its name for a negative prompt that was not given."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A token of the chat, such as `<|im_end|>`."""

    token: str


@dataclass(frozen=True, slots=True)
class Codes:
    """Audio codes of a song."""

    numbers: tuple[int, ...]


Part = str | Marker | Codes
Prompt = tuple[Part, ...]


def metadata_prompt(wishes: Wishes) -> Prompt:
    """Asks for the metadata of a song. The answer is a block of `thoughts`."""
    return _chat(_PLAN, (_song(wishes.caption, lyrics_of(wishes)),))


def metadata_prompt_without(wishes: Wishes) -> Prompt:
    """The unconditional side of `metadata_prompt`: no caption, or the negative prompt in its place."""
    negative = _negative(wishes)
    lyrics = lyrics_of(wishes)
    return _chat(_PLAN, (_song(negative, lyrics) if negative else f"# Lyric\n{lyrics}\n",))


def codes_prompt(wishes: Wishes, metadata: Mapping[str, Any]) -> Prompt:
    """Asks for the audio codes of a song with this metadata (see `thoughts`). The answer is codes, then `<|im_end|>`."""
    return (*_chat(_PLAN, (_song(wishes.caption, lyrics_of(wishes)),)), *thoughts(metadata), "\n\n", Marker(END), "\n")


def codes_prompt_without(wishes: Wishes) -> Prompt:
    """The unconditional side of `codes_prompt`: no metadata, and the negative prompt, if there is one, as the caption."""
    song = _song(_negative(wishes) or wishes.caption, lyrics_of(wishes))
    return (*_chat(_PLAN, (song,)), *thoughts({}), "\n\n", Marker(END), "\n")


def understand_prompt(codes: tuple[int, ...]) -> Prompt:
    """Asks for the metadata and the lyrics of a song. The answer is as for `format_prompt`."""
    return _chat(_UNDERSTAND, (Codes(codes) if codes else _NO_INPUT,))


def sample_prompt(query: str, instrumental: bool) -> Prompt:
    """Asks for a song that suits a description in plain words. The answer is as for `format_prompt`."""
    return _chat(_SAMPLE, (f"{query.strip() or _NO_INPUT}\n\ninstrumental: {str(instrumental).lower()}",))


def format_prompt(wishes: Wishes) -> Prompt:
    """Asks for a better caption, better lyrics, and metadata. The answer is `thoughts`, then `lyrics_answer`."""
    return _chat(_FORMAT, (f"# Caption\n{wishes.caption}\n\n# Lyric\n{lyrics_of(wishes)}",))


def thoughts(metadata: Mapping[str, Any]) -> Prompt:
    """The block of metadata: YAML, sorted by name, without the fields that are None. Empty metadata give an empty block."""
    known = {name: _yaml_value(name, metadata[name]) for name in FIELDS if metadata.get(name) is not None}
    text = yaml.safe_dump(known, allow_unicode=True, sort_keys=True).strip() if known else ""
    return (Marker(THINK), f"\n{text}\n", Marker(THOUGHT))


def lyrics_answer(lyrics: str) -> Prompt:
    """What follows the metadata in an answer to `format_prompt`, `sample_prompt` and `understand_prompt`."""
    return (f"\n\n# Lyric\n{lyrics}", Marker(END))


def codes_answer(codes: tuple[int, ...]) -> Prompt:
    """The answer to `codes_prompt`."""
    return (Codes(codes), Marker(END))


def lyrics_of(wishes: Wishes) -> str:
    """The lyrics as the planner reads them."""
    return INSTRUMENTAL if wishes.instrumental else wishes.lyrics


def _chat(instruction: str, user: Prompt) -> Prompt:
    """Qwen's chat format: the instruction, the user's turn, and the start of the answer."""
    system = (Marker(TURN), f"system\n# Instruction\n{instruction}\n\n", Marker(END), "\n")
    return (*system, Marker(TURN), "user\n", *user, Marker(END), "\n", Marker(TURN), "assistant\n")


def _song(caption: str, lyrics: str) -> str:
    return f"# Caption\n{caption}\n\n# Lyric\n{lyrics}\n"


def _negative(wishes: Wishes) -> str:
    """The negative prompt, empty if there is none that means anything."""
    negative = (wishes.sampling.negative_prompt or "").strip()
    return "" if negative == _NO_INPUT else negative


def _yaml_value(name: str, value: Any) -> Any:
    """A value of the metadata as the original writes it: whole numbers without quotes, seconds without a fraction."""
    if name == "duration":
        return int(value)
    return int(value) if isinstance(value, str) and value.isdigit() else value
