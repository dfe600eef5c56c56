"""Numbers with their nouns in messages."""


def counted(number: int, noun: str) -> str:
    """The number and its noun, as in `1 job` or `2 jobs`. The noun must form its plural with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
