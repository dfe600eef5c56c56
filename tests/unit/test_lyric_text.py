"""The words of lyrics, and the file of their times."""

import pytest

from serve_app.music.lyric_text import has_words, lines
from serve_app.music.lyric_times import LineTime, WordTime, from_file, to_file, to_lrc


def test_words_are_found_without_tags() -> None:
    """Lines of tags and punctuation have none; a tag beside words does not belong to them, even if it is not closed."""
    lyrics = "[verse]\nDon't go, (oh)\n\n - \n[chorus: loud] la la [x2]\n[bridge never closed\nEnd."

    found = list(lines(lyrics))

    assert [line.text for line in found] == ["Don't go, (oh)", "la la", "End."]
    assert [[lyrics[start:end] for start, end in line.words] for line in found] == [
        ["Don't", "go,", "(oh)"],
        ["la", "la"],
        ["End."],
    ]


def test_each_character_is_a_word_where_there_are_no_spaces() -> None:
    """In Chinese and Japanese; words in Latin letters between them stay whole."""
    lyrics = "月亮，Moon 代表\nさくら"

    words = [[lyrics[start:end] for start, end in line.words] for line in lines(lyrics)]

    assert words == [["月", "亮", "，Moon", "代", "表"], ["さ", "く", "ら"]]


@pytest.mark.parametrize("lyrics", ["", "[Instrumental]", "[inst]", "[verse]\n[chorus]\n...", " \n"])
def test_an_instrumental_has_no_words(lyrics: str) -> None:
    """Neither tags nor punctuation are sung."""
    assert not has_words(lyrics)


def test_times_survive_their_file() -> None:
    """In every script."""
    timed = (LineTime("Señor 月", 1.0, 2.5, (WordTime("Señor", 1.0, 2.0), WordTime("月", 2.04, 2.5))),)
    assert from_file(to_file(timed)) == timed


def test_lrc_has_minutes_seconds_and_hundredths() -> None:
    """They are rounded as a whole, so that no line starts at 60 seconds."""
    timed = [LineTime(text, start, start + 1, ()) for text, start in [("one", 0.0), ("two", 59.996), ("three", 599.5)]]
    assert to_lrc(timed) == "[00:00.00]one\n[01:00.00]two\n[09:59.50]three\n"
