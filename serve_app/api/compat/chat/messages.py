"""What the messages of a chat ask for: a description of a song, its lyrics, and recordings."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from serve_app.api.field_errors import shortened, wrong_field
from serve_app.music.song_fields import MAX_LYRICS, MAX_PROMPT

_FIELD: Final = "messages"
_MAX_TEXT: Final = MAX_PROMPT + MAX_LYRICS
_SECTION: Final = re.compile(r"\[[^\[\]]{1,200}\]")
_LYRICS_HEADING: Final = re.compile(r"lyrics\s*:", re.IGNORECASE)
_FEWEST_LINES: Final = 4
_SHORT_LINE: Final = 80
"""A text of at least so many lines, none of which is longer, is taken for lyrics."""

ONLY_LYRICS: Final = "song with vocals"
"""The description of a song for which there are lyrics only."""


class Message(NamedTuple):
    """What a user has said last."""

    text: str
    recordings: tuple[str, ...]
    """Files as base64."""


class Words(NamedTuple):
    """The description of a song, and its lyrics; None if the text has none."""

    caption: str
    lyrics: str | None


def last_message(messages: object) -> Message:
    """The last message of the user. Raises InvalidRequest."""
    if not isinstance(messages, list) or not messages:
        raise wrong_field(_FIELD, "", "must be a list of messages, each with `role` and `content`")
    asked = [entry for entry in messages if isinstance(entry, dict) and entry.get("role") == "user"]
    if not asked:
        raise wrong_field(_FIELD, "", "must have a message whose role is 'user'")
    parts = list(_parts(asked[-1].get("content")))
    text = "\n".join(_text(part) for part in parts if part.get("type") == "text").strip()
    if len(text) > _MAX_TEXT:
        raise wrong_field(_FIELD, shortened(text), f"must have at most {_MAX_TEXT} characters in the last message")
    return Message(text, tuple(_recording(part) for part in parts if part.get("type") == "input_audio"))


def _parts(content: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_audio"):
            raise wrong_field(_FIELD, "", "must have text, or parts of the types 'text' and 'input_audio'")
        yield part


def _text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise wrong_field(_FIELD, "", "must have text in the `text` of a part")
    return text


def _recording(part: Mapping[str, Any]) -> str:
    audio = part.get("input_audio")
    data = audio.get("data") if isinstance(audio, dict) else None
    if not isinstance(data, str):
        raise wrong_field(_FIELD, "", "must have `input_audio` with a file as base64 in `data`")
    return data


def words_of(text: str, *, is_caption: bool) -> Words:
    """What a text says. Tags decide; without them, all of it describes the song if `is_caption`.

    Else lyrics begin at a line `Lyrics:` or at the first section tag, and a text of short lines consists of lyrics alone.
    """
    prompt = _tagged(text, "prompt")
    lyrics = _tagged(text, "lyrics")
    if prompt is not None or lyrics is not None:
        return Words(prompt or ONLY_LYRICS, lyrics)
    if is_caption:
        return Words(text, None)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if heading := _LYRICS_HEADING.match(line.strip()):
            return _split(lines[:number], [line.strip()[heading.end() :], *lines[number + 1 :]])
        if _SECTION.fullmatch(line.strip()):
            return _split(lines[:number], lines[number:])
    said = [line for line in lines if line.strip()]
    is_song = len(said) >= _FEWEST_LINES and all(len(line) <= _SHORT_LINE for line in said)
    return Words(ONLY_LYRICS, text) if is_song else Words(text, None)


def _split(caption: Sequence[str], lyrics: Sequence[str]) -> Words:
    return Words("\n".join(caption).strip() or ONLY_LYRICS, "\n".join(lyrics).strip())


def _tagged(text: str, tag: str) -> str | None:
    """What stands between a tag and its end, or the end of the text; None without the tag."""
    _, begin, rest = text.partition(f"<{tag}>")
    return rest.partition(f"</{tag}>")[0].strip() if begin else None
