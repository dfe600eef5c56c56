"""What a planner may write."""

import random

import pytest

from serve_app.engine.planner import grammar
from serve_app.engine.planner.grammar import Choice, Code, Cursor, Tables, Text
from serve_app.engine.planner.prompts import FIELDS
from serve_app.engine.planner.vocabulary import Vocabulary
from tests.support.planners import tokenizer_folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A small vocabulary."""
    return Vocabulary(tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def tables(vocabulary: Vocabulary) -> Tables:
    """The tables of that vocabulary."""
    return Tables(vocabulary)


def _written(cursor: Cursor, vocabulary: Vocabulary, tables: Tables, seed: int) -> str:
    """What a model writes that answers every question at random."""
    chance = random.Random(seed)
    allowed = {state: tables.allowed(state) for state in Text}
    cursor.start()
    while cursor.question is not None:
        asked = cursor.question
        assert not isinstance(asked, Code)
        cursor.answer(chance.choice(asked.tokens if isinstance(asked, Choice) else allowed[asked]))
    return vocabulary.decode(cursor.written)


@pytest.mark.parametrize("seed", range(20))
def test_metadata_parse_and_are_in_range(seed: int, vocabulary: Vocabulary, tables: Tables) -> None:
    """Whatever a model chooses, all six fields come in order, with values in range."""
    fields = grammar.parsed(_written(Cursor(grammar.metadata(tables, {}, 600)), vocabulary, tables, seed))

    assert list(fields) == list(FIELDS)
    assert 30 <= int(fields["bpm"]) <= 300
    assert 10 <= int(fields["duration"]) <= 600
    assert fields["caption"].isprintable()


def test_what_is_known_is_written_as_it_is(vocabulary: Vocabulary, tables: Tables) -> None:
    """Values that the user has given are certain, and the length stays below its bound."""
    known = {"bpm": "91", "keyscale": "F♯ minor", "language": "yue", "timesignature": "6"}
    durations = set()
    for seed in range(30):
        fields = grammar.parsed(_written(Cursor(grammar.metadata(tables, known, 12)), vocabulary, tables, seed))
        assert {name: fields[name] for name in known} == known
        durations.add(fields["duration"])

    assert durations == {"10", "11", "12"}


def test_certain_tokens_are_not_asked_for(vocabulary: Vocabulary, tables: Tables) -> None:
    """With all lines known, only the caption is asked for."""
    known = {"bpm": "91", "duration": "5", "keyscale": "C major", "language": "en", "timesignature": "4"}
    cursor = Cursor(grammar.metadata(tables, known, 600))

    start = cursor.start()
    assert vocabulary.decode(start).endswith("\nbpm: 91\ncaption:")
    assert cursor.question is Text.CAPTION_START
    cursor.answer(vocabulary.encode((" a",))[0])
    cursor.answer(tables.tokens("\n")[0])
    rest = cursor.answer(tables.next_line)

    assert vocabulary.decode(rest).startswith("duration: 5\nkeyscale: C major\nlanguage: en\ntimesignature: 4\n")
    assert cursor.question is None


def test_lyrics_follow_the_metadata(vocabulary: Vocabulary, tables: Tables) -> None:
    """The lyrics of a song end where the model ends them, and lyrics that are known are certain."""
    written = _written(Cursor(grammar.song(tables, {}, 600, None, 50)), vocabulary, tables, 1)
    certain = _written(Cursor(grammar.song(tables, {}, 600, "[Instrumental]", 50)), vocabulary, tables, 1)

    assert "\n\n# Lyric\n" in written
    assert certain.endswith("\n\n# Lyric\n[Instrumental]")


def test_a_caption_of_several_lines_is_one_line() -> None:
    """Folded and quoted captions come back as the text that YAML means."""
    rest = "\nduration: 10\nkeyscale: C major\nlanguage: en\ntimesignature: 4\n"

    folded = grammar.parsed(f"\nbpm: 90\ncaption: slow\n  jazz: soft{rest}")
    quoted = grammar.parsed(f"\nbpm: 90\ncaption: 'it''s: slow\n  jazz'{rest}")

    assert folded["caption"] == "slow jazz: soft"
    assert quoted["caption"] == "it's: slow jazz"
    with pytest.raises(ValueError, match="'nothing' is no line of metadata"):
        grammar.parsed("nothing")


def test_codes_are_as_many_as_asked_for() -> None:
    """A song has exactly its number of codes."""
    cursor = Cursor(grammar.codes(3))

    cursor.start()
    while cursor.question is not None:
        cursor.answer(7)

    assert cursor.written == [7, 7, 7]


def test_masks_hold_no_control_characters(vocabulary: Vocabulary, tables: Tables) -> None:
    """No state of free text allows a character that a database or a terminal could not bear."""
    texts = vocabulary.texts()
    allowed = {token for state in Text for token in tables.allowed(state) if token in texts}

    assert not {char for token in allowed for char in texts[token] if not char.isprintable()} - {"\n"}
