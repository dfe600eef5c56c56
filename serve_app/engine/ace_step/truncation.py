"""Warnings about prompts and lyrics that are longer than what the model reads.

This file imports torch: import it only after `loading.import_packages`.
"""

from collections.abc import Iterator
from typing import Any

from serve_app.engine.ace_step.generating import lyrics_and_language
from serve_app.engine.ace_step.tasks import instruction
from serve_app.music import MAX_LYRICS_TOKENS, MAX_PROMPT_TOKENS, MusicRequest


def truncation_warnings(pipe: Any, request: MusicRequest) -> Iterator[str]:
    """Yields a warning for the prompt and for the lyrics, if they have more tokens than the model reads."""
    given_lyrics, language = lyrics_and_language(request)
    text, lyrics = pipe._format_prompt(
        request.prompt,
        given_lyrics,
        language,
        request.duration,
        instruction(request),
        request.bpm,
        request.keyscale,
        request.timesignature,
    )
    note = ", some of which belong to the instruction before the prompt; tempo and key come after the prompt"
    yield from _warning(pipe.tokenizer, "prompt", text, MAX_PROMPT_TOKENS, note)
    yield from _warning(pipe.tokenizer, "lyrics", lyrics, MAX_LYRICS_TOKENS, "")


def _warning(tokenizer: Any, field: str, text: str, limit: int, note: str) -> Iterator[str]:
    starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    if len(starts) > limit:
        lost = " ".join(text[starts[limit] :].removesuffix("<|endoftext|>").split())[:40]
        yield (
            f"{field} was cut: the model reads {limit} of its {len(starts)} tokens{note}. "
            f"It ignores the text from here on: {lost!r}."
        )
