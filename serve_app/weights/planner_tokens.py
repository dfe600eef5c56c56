"""The tokens of a planner's tokenizer that have a meaning of their own, as the released checkpoints spell them."""

from typing import Final

TURN: Final = "<|im_start|>"
"""Begins a turn of the chat."""
END: Final = "<|im_end|>"
"""Ends a turn; a planner ends its audio codes and its lyrics with it."""
THINK: Final = "<think>"
"""Begins the block of metadata."""
THOUGHT: Final = "</think>"
"""Ends the block of metadata."""

MARKERS: Final = (TURN, END, THINK, THOUGHT)


def code_token(code: int) -> str:
    """The token of an audio code."""
    return f"<|audio_code_{code}|>"
