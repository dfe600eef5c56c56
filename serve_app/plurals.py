"""Numbers with their nouns, and lists of names, in messages."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """The number and its noun, as in `1 job` or `2 jobs`. The noun must form its plural with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def alternatives(names: Iterable[str]) -> str:
    """The names, of which there must be one at least, as in `'a', 'b' or 'c'`."""
    *first, last = (repr(name) for name in names)
    return f"{', '.join(first)} or {last}" if first else last
