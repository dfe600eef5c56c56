"""What a planner may write, token by token.

A grammar is a generator. It yields what comes next: tokens that are certain, or the question which token of a set follows, and is
sent the answer. The lines of metadata are tries over the tokens of every allowed line, so that each has the tokens that the
tokenizer gives its text; free text has masks over the vocabulary, computed once.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, get_args

import yaml

from serve_app.engine.planner.prompts import FIELDS, Marker
from serve_app.engine.planner.vocabulary import Vocabulary
from serve_app.music.song_fields import FASTEST_BPM, MAX_LYRICS, MAX_PROMPT, SLOWEST_BPM
from serve_app.music.vocabulary import Language
from serve_app.weights.planner_tokens import THINK, THOUGHT

CAPTION_TOKENS: Final = 512
"""The most tokens of a caption, as in the original."""
SHORTEST: Final = 10
LONGEST: Final = 600
"""The lengths in seconds that a planner may choose, as in the original. A user may ask for less."""

_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "bpm": [str(bpm) for bpm in range(SLOWEST_BPM, FASTEST_BPM + 1)],
    "keyscale": [
        f"{note}{sign} {mode}" for note in "ABCDEFG" for sign in ("", "#", "b", "♯", "♭") for mode in ("major", "minor")
    ],
    "language": get_args(Language),
    "timesignature": ["2", "3", "4", "6"],
}


class Text(IntEnum):
    """What free text may continue with."""

    CAPTION_START = 0
    """The first token of a caption: a space and something visible."""
    CAPTION = 1
    """Anything but a control character; a line break only at the token's end."""
    CAPTION_LINE = 2
    """After a line break: more of the caption, indented, or the next line of metadata."""
    CAPTION_INDENT = 3
    """After nothing but an indentation: something visible."""
    LYRICS = 4
    """Anything but control characters other than line breaks, or the end."""


@dataclass(frozen=True, slots=True)
class Certain:
    """Tokens that follow whatever the model thinks."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of few tokens follows."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """An audio code follows; the answer is its token."""


Question = Choice | Text | Code
Grammar = Generator[Certain | Question, int, Any]

Trie = dict[int, "Trie"]
"""Which tokens may follow, and what may follow those. Empty at a line's end."""


class Tables:
    """What the grammars of one vocabulary consist of."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tries = {name: self._trie(name, values) for name, values in _CHOICES.items()}
        self._durations = lru_cache(maxsize=64)(self._duration_trie)
        self._texts = vocabulary.texts()
        self._next_line = vocabulary.encode(("duration: 60\n",))[0]
        """The token with which the line after the caption begins."""
        self.text_size: int = max(*self._texts, vocabulary.end) + 1
        """One more than the largest token of free text."""
        self.newline_ends: frozenset[int] = frozenset(
            token for token, text in self._texts.items() if text.endswith("\n")
        )
        """The tokens that end a line."""
        self.indents: frozenset[int] = frozenset(token for token, text in self._texts.items() if not text.strip(" "))
        """The tokens that are nothing but spaces."""

    def allowed(self, state: Text) -> list[int]:
        """The tokens that may follow in a state of free text."""
        tokens = [token for token, text in self._texts.items() if _suits(state, text)]
        return tokens + {Text.CAPTION_LINE: [self._next_line], Text.LYRICS: [self._vocabulary.end]}.get(state, [])

    def line(self, name: str, value: str | None, longest: float = LONGEST) -> Trie:
        """The lines of metadata that a field may have: one if it has a value already."""
        if value is not None:
            return self._trie(name, [value])
        return self._durations(min(int(longest), LONGEST)) if name == "duration" else self._tries[name]

    def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text."""
        return tuple(self._vocabulary.encode((text,)))

    def marker(self, token: str) -> int:
        """The id of a marker."""
        return self._vocabulary.encode((Marker(token),))[0]

    @property
    def end(self) -> int:
        """The marker that ends an answer."""
        return self._vocabulary.end

    @property
    def next_line(self) -> int:
        """The token with which the line after a caption begins."""
        return self._next_line

    def _duration_trie(self, longest: int) -> Trie:
        return self._trie("duration", [str(seconds) for seconds in range(min(SHORTEST, longest), longest + 1)])

    def _trie(self, name: str, values: Sequence[str]) -> Trie:
        root: Trie = {}
        for value in values:
            node = root
            for token in self._vocabulary.encode((f"{name}: {value}\n",)):
                node = node.setdefault(token, {})
        return root


def metadata(tables: Tables, known: Mapping[str, str], longest: float) -> Grammar:
    """The block of metadata. `known` are the lines that are certain, `longest` the most seconds that may be chosen."""
    yield Certain((tables.marker(THINK), *tables.tokens("\n")))
    begun = None
    for name in FIELDS:
        if name == "caption":
            begun = yield from _caption(tables)
        else:
            yield from _line(tables.line(name, known.get(name), longest), begun)
            begun = None
    yield Certain((tables.marker(THOUGHT),))


def song(tables: Tables, known: Mapping[str, str], longest: float, lyrics: str | None, most: int) -> Grammar:
    """Metadata, then lyrics of at most `most` tokens. Lyrics that are given are certain."""
    yield from metadata(tables, known, longest)
    yield Certain(tables.tokens("\n\n# Lyric\n" if lyrics is None else f"\n\n# Lyric\n{lyrics}"))
    if lyrics is None:
        yield from _lyrics(tables, most)


def codes(count: int) -> Grammar:
    """Exactly `count` audio codes. The end is certain after them, so it need not be written."""
    for _ in range(count):
        yield Code()


def _line(trie: Trie, begun: int | None) -> Grammar:
    """A line of metadata. `begun` is its first token if that has been chosen already."""
    node = trie if begun is None else trie[begun]
    while node:
        certain: list[int] = []
        while len(node) == 1:
            token, node = next(iter(node.items()))
            certain.append(token)
        if certain:
            yield Certain(tuple(certain))
        if node:
            token = yield Choice(tuple(node))
            node = node[token]


def _caption(tables: Tables) -> Grammar:
    """A caption of one or more lines. Returns the token of the next line, if that has been chosen already."""
    yield Certain(tables.tokens("caption:"))
    state = Text.CAPTION_START
    for _ in range(CAPTION_TOKENS):
        token = yield state
        if state is Text.CAPTION_LINE and token == tables.next_line:
            return token
        if token in tables.newline_ends:
            state = Text.CAPTION_LINE
        elif state is Text.CAPTION_LINE and token in tables.indents:
            state = Text.CAPTION_INDENT
        else:
            state = Text.CAPTION
    if state is not Text.CAPTION_LINE:
        yield Certain(tables.tokens("\n"))
    return None


def _lyrics(tables: Tables, most: int) -> Grammar:
    for _ in range(most):
        token = yield Text.LYRICS
        if token == tables.end:
            return


def _suits(state: Text, text: str) -> bool:
    """Whether a token with this text may follow in a state. Tokens with a part of a character have U+FFFD in their text."""
    if not text or any(not char.isprintable() and char != "\n" for char in text):
        return False
    if state is Text.LYRICS:
        return True
    if state is Text.CAPTION:
        return "\n" not in text[:-1]
    if "\n" in text:
        return False
    visible = bool(text.strip())
    if state is Text.CAPTION_START:
        return visible and text.startswith(" ")
    return visible if state is Text.CAPTION_INDENT else text.startswith(" ")


class Cursor:
    """Follows one grammar: asks, takes the answers, and keeps what has been written."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self.written: list[int] = []
        self.question: Question | None = None
        """What the model is to choose next; None at the end."""

    def start(self) -> list[int]:
        """Returns the tokens that are certain at the beginning."""
        return self._until_question(next(self._grammar, None))

    def answer(self, token: int) -> list[int]:
        """Takes the answer to `question`. Returns it and the tokens that are certain after it."""
        self.written.append(token)
        try:
            following = self._grammar.send(token)
        except StopIteration:
            following = None
        return [token, *self._until_question(following)]

    def _until_question(self, step: Certain | Question | None) -> list[int]:
        certain: list[int] = []
        while isinstance(step, Certain):
            certain.extend(step.tokens)
            step = next(self._grammar, None)
        self.written.extend(certain)
        self.question = step
        return certain


def parsed(text: str) -> dict[str, str]:
    """Returns the fields of a block of metadata by name. A caption of several lines becomes one line.

    Raises ValueError if the text is not such a block.
    """
    fields: dict[str, str] = {}
    for line in text.strip("\n").split("\n"):
        name, colon, value = line.partition(":")
        if colon and name in FIELDS and name not in fields:
            fields[name] = value.strip()
        elif line.startswith(" ") and fields:
            last = next(reversed(fields))
            fields[last] = f"{fields[last]} {line.strip()}".strip()
        else:
            raise ValueError(f"{line!r} is no line of metadata")
    if set(fields) != set(FIELDS):
        raise ValueError(f"the metadata lack {set(FIELDS) - set(fields)}")
    return {**fields, "caption": printable(_unquoted(fields["caption"]))[:MAX_PROMPT]}


def parsed_lyrics(text: str) -> str:
    """Returns the lyrics of an answer, which follow the metadata, without their heading."""
    return printable(text.strip().removeprefix("# Lyric").strip())[:MAX_LYRICS]


def printable(text: str) -> str:
    """Returns a text without control characters other than line breaks: several tokens can make one."""
    return "".join(char for char in text if char.isprintable() or char == "\n").strip()


def _unquoted(caption: str) -> str:
    """Returns a caption that YAML has put into quotes without them."""
    if not (len(caption) > 1 and caption[0] == caption[-1] and caption[0] in "'\""):
        return caption
    try:
        value = yaml.safe_load(caption)
    except yaml.YAMLError:
        value = None
    return value if isinstance(value, str) else caption[1:-1]


def known_values(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the metadata that are known, as the planner writes them: whole seconds, everything else unchanged."""
    for name, value in names.items():
        if value is not None:
            yield name, str(int(value)) if name == "duration" else str(value)
