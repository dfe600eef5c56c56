"""A planner with random weights: a Qwen3 language model of any size, with a small tokenizer that has the planner's tokens.

Its plans mean nothing. Tests of grammar, scheduling and speed use it.
"""

import contextlib
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from serve_app.weights import manifest
from serve_app.weights.layout import RANDOM_MARKER
from serve_app.weights.planner_tokens import MARKERS, code_token
from serve_app.weights.progress import Report
from serve_app.weights.quiet import quiet_libraries

_WORDS: Final = (
    "system user assistant Instruction Generate audio semantic tokens based on the given conditions Caption Lyric "
    "bpm caption duration keyscale language timesignature major minor unknown instrumental true false"
)


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a random language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    codes: int
    """How many audio codes it has."""
    text_tokens: int
    """How many tokens of text it has."""
    rows: int
    """Rows of its table of embeddings, some of which may belong to no token."""


SMALL: Final = Size(
    hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=128, codes=1000, text_tokens=340, rows=1400
)
"""Plans in milliseconds."""
RELEASED_600M: Final = Size(
    hidden=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=3072,
    codes=64_000,
    text_tokens=151_643,
    rows=217_204,
)
"""The sizes of the smallest released model, Qwen3 0.6B with audio codes."""


def build(cache: Path, report: Report, size: Size = SMALL) -> Path:
    """Builds the random planner unless it exists, and returns its folder. Of several processes, the first to finish wins."""
    folder = cache / f"random-planner-{_recipe_hash(size)}"
    if not folder.exists():
        report("download", None, "building the random planner (random weights)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            _save(Path(scratch) / "planner", size)
            # Fails if another process was faster: a folder with files is not replaced. Its bytes are the same.
            with contextlib.suppress(OSError):
                (Path(scratch) / "planner").rename(folder)
    report("download", 1.0, "the random planner is here")
    return folder


def tokenizer(codes: int, vocabulary: int = SMALL.text_tokens) -> Any:
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
    bpe = _padded(bpe, vocabulary)
    bpe.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    bpe.add_tokens([AddedToken(code_token(code), normalized=False) for code in range(codes)])
    return bpe


def _padded(bpe: Any, vocabulary: int) -> Any:
    """Returns a tokenizer with as many tokens of text as `vocabulary` says. No text is read as one of those added here."""
    from tokenizers import Tokenizer

    content = json.loads(bpe.to_str())
    words = content["model"]["vocab"]
    words.update({f"filler{at}": at for at in range(len(words), vocabulary)})
    return Tokenizer.from_str(json.dumps(content))


def _recipe_hash(size: Size) -> str:
    """Returns a hash of what determines the planner: its sizes, and the versions of the libraries that build it."""
    libraries = [version(name) for name in ("torch", "tokenizers", "transformers")]
    return hashlib.sha256(json.dumps([_WORDS, asdict(size), libraries]).encode()).hexdigest()[:12]


def _save(folder: Path, size: Size) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = Qwen3Config(
        vocab_size=size.rows,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    # Modules are initialised from the global generator, so its state is restored afterwards.
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer(size.codes, size.text_tokens).save(str(folder / "tokenizer.json"))
    (folder / RANDOM_MARKER).write_text("These weights are random: this planner's plans mean nothing.\n")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    hashes = {name: manifest.digest(folder / name).hexdigest() for name in names}
    manifest.write(folder, "random", _recipe_hash(size), hashes)
