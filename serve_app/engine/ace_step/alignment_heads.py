"""Which heads of a transformer's cross-attention follow the lyrics."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve_app import errors
from serve_app.music import MusicRequest
from serve_app.weights.layout import LYRIC_HEADS

Heads = Mapping[int, Sequence[int]]
"""Numbers of attention heads, by the number of their layer; both count from 0."""

_KNOWN: Final[Mapping[tuple[int, int], Heads]] = {
    (24, 16): {2: [6], 3: [10, 11], 4: [3], 5: [8, 9], 6: [8]},
    (32, 32): {3: [18, 27], 4: [22], 5: [5, 6, 7], 6: [2, 12, 13], 7: [20, 21]},
}
"""Those of ACE-Step 1.5's 2B and XL models, by their numbers of layers and heads: checkpoints in diffusers' layout lack the entry.

The original has the first in lyric_alignment_common.py, and the second in XL's config.json."""

_NO_HEADS: Final = "cannot be used with this model, which cannot tell when its words are sung"


def alignment_heads(transformer: Any) -> Heads | None:
    """Returns the heads that the model's config.json names, or those known for its size; None if there are none.

    An entry in config.json that names no heads, or heads that the model lacks, counts as none: times by other heads are wrong.
    """
    size = (transformer.config.num_hidden_layers, transformer.config.num_attention_heads)
    named = getattr(transformer.config, LYRIC_HEADS, None)
    return _KNOWN.get(size) if named is None else _checked(named, *size)


def _checked(named: Any, layers: int, heads: int) -> Heads | None:
    try:
        found = {int(layer): tuple(map(int, numbers)) for layer, numbers in named.items()}
    except (AttributeError, TypeError, ValueError):
        return None
    numbers = [number for group in found.values() for number in group]
    exist = all(0 <= layer < layers for layer in found) and all(0 <= number < heads for number in numbers)
    return found if numbers and exist else None


def require_alignment(transformer: Any, request: MusicRequest) -> None:
    """Raises InvalidRequest if the request needs to know how songs follow their lyrics, and the model cannot tell."""
    if request.needs_alignment and alignment_heads(transformer) is None:
        field = "lyrics_timing" if request.lyrics_timing else "best_of"
        raise errors.InvalidRequest(f"{field}: {_NO_HEADS}")
