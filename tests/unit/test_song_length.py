"""`duration: "auto"`: the length of a song estimated from its lyrics."""

import pytest

from serve_app.music.song_length import INSTRUMENTAL_S, song_length_s, syllables

VERSE = "[verse]\n" + "Soft notes in the morning light\n" * 4

CHORUS = "[chorus]\n" + "Rain on the window sings tonight\n" * 4


@pytest.mark.parametrize(
    ("lyrics", "bars"),
    [
        ("la", 4 + 1 + 1 + 4),
        ("[intro]\n[verse]\nla\n[outro]", 4 + 1 + 1 + 4),
        ("[verse]\nla\n[guitar solo]\n[chorus]\nla", 4 + 2 + 8 + 2 + 4),
        ("[verse] la\r\nla\r\n", 4 + 1 + 2 + 4),
        ("[intro]\n[drop]\n[outro]", 4 + 8 + 4),
        # 8 syllables take 3.2 s, which is two bars of 2.4 s.
        (VERSE, 4 + 1 + 4 * 2 + 4),
        (VERSE + CHORUS, 4 + (1 + 4 * 2) * 2 + 4),
    ],
)
def test_length_is_counted_in_bars(lyrics: str, bars: int) -> None:
    """Lines, sections with and without lyrics, beginning and end each take whole bars, which last 2.4 s here."""
    assert song_length_s(lyrics) == round(bars * 2.4)


@pytest.mark.parametrize("lyrics", ["", "  \n", "[Instrumental]", "[inst]", "[]", "..."])
def test_without_words_and_sections_it_is_two_minutes(lyrics: str) -> None:
    """Lyrics without words and sections get the default length."""
    assert song_length_s(lyrics) == INSTRUMENTAL_S


def test_length_stays_in_its_bounds() -> None:
    """The longest and the shortest lyrics give lengths that a request may have."""
    assert song_length_s("la " * 6000, bpm=30) == 600
    assert song_length_s("la", bpm=300, beats=2) == 10


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Rain on the window", 5),
        ("Été à Paris", 5),
        ("мама мыла раму", 6),
        ("Καλημέρα", 4),
        ("雨が降る", 4),
        ("사랑해요", 4),
        ("بيت", 2),
        ("mm, 24", 3),
        ("(—)", 0),
    ],
)
def test_syllables_of_many_scripts(line: str, count: int) -> None:
    """Syllables are estimated for scripts with vowels, with one character per syllable, and without vowels."""
    assert syllables(line) == count
