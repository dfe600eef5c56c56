"""A planner with random weights: a Qwen3 language model of any size, with a small tokenizer that has the planner's tokens.

Its plans mean nothing. Tests of grammar, scheduling and speed use it.
"""

from typing import Any, Final

from serve_app.weights.planner_tokens import MARKERS, code_token

_WORDS: Final = (
    "system user assistant Instruction Generate audio semantic tokens based on the given conditions Caption Lyric "
    "bpm caption duration keyscale language timesignature major minor unknown instrumental true false"
)


def tokenizer(codes: int, vocabulary: int = 512) -> Any:
    """Returns a byte-level BPE tokenizer (tokenizers.Tokenizer) with `codes` audio codes and the markers of a chat.

    `vocabulary` is the number of its tokens of text. Any text in any language can be read, since each byte is a token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # sorted: the bindings' order changes
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([_WORDS, _WORDS.replace(" ", "\n")], trainer)
    bpe.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    bpe.add_tokens([AddedToken(code_token(code), normalized=False) for code in range(codes)])
    return bpe
