"""The planner's tokenizer: byte pairs of its prompts' words, the markers of a chat, and the audio codes that it may write."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from serve_app.weights.planner_tokens import MARKERS, code_token

TEXT_TOKENS = 1200
_NUMBERS = tuple(str(number) for number in range(10, 301))
_TONICS = tuple(f"{note}{sign} major" for note in "ABCDEFG" for sign in ("", "#", "b"))
_TIMES = 50
"""How often numbers and tonics are shown to the trainer, so that each becomes a token."""
_KEY = "[A-G](?:#|b|♯|♭)?(?= (?:major|minor))"
_PIECES = rf"{_KEY}| ?(?!{_KEY})\p{{L}}+|\d{{1,3}}|\n|[^\S\n]+|[^\s\p{{L}}\d]"
"""What a token may not reach across: a key's tonic, a word with the space before it, a number, a line break, a sign.

Tonics and numbers have the same token wherever they stand, so that copying one is copying one token.
"""


def tokenizer(texts: Iterable[str], codes: Sequence[int]) -> Any:
    """A tokenizer trained on `texts`, with these audio codes. It reads any text: each byte is a token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(chain(texts, (*_NUMBERS, *_TONICS) * _TIMES), trainer)
    bpe.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    bpe.add_tokens([AddedToken(code_token(code), normalized=False) for code in codes])
    return bpe
