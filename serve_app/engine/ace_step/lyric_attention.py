"""Cross-attention to the lyrics, read in one more pass of the transformer over a finished song.

This file imports torch: import it only after `loading.import_packages`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import torch

from serve_app.engine.ace_step.alignment import AttentionMaps
from serve_app.engine.ace_step.alignment_heads import Heads
from serve_app.engine.ace_step.sampling import Slot

_SUPPRESSION: Final = 2.0
"""How many times its median is taken off each row and column (`violence_level` in the original)."""


class Part(NamedTuple):
    """A part of the attention: some of a song's conditions, and the first of the transformer's frames."""

    tokens: slice
    frames: int


def attention_maps(transformer: Any, heads: Heads, slot: Slot, seed: int, part: Part) -> AttentionMaps:
    """Returns how strongly the finished song in `slot` attends to its conditions.

    As in the original, the song gets the noise of `seed` up to the level at which the last of its steps would start, had they
    all the same length.
    """
    music = slot.result
    random = torch.Generator(music.device).manual_seed(seed)
    noise = torch.randn(music.shape, generator=random, device=music.device, dtype=music.dtype)
    level = 1.0 / len(slot.levels)
    total = AttentionSum()
    with _read_into(total, transformer, heads, part), _adapted(transformer, slot):
        times = torch.tensor([level], dtype=music.dtype, device=music.device)
        transformer(
            hidden_states=level * noise + (1.0 - level) * music,
            timestep=times,
            timestep_r=times,
            encoder_hidden_states=slot.told.conditions,
            context_latents=slot.told.context,
            return_dict=False,
        )
    return total.maps()


def _adapted(transformer: Any, slot: Slot) -> Any:
    return nullcontext() if slot.adapters is None else slot.adapters.applied(transformer)


@contextmanager
def _read_into(total: "AttentionSum", transformer: Any, heads: Heads, part: Part) -> Iterator[None]:
    """Inside the block, adds the attention of `heads` to `total` in each pass of the transformer."""

    def reader(numbers: Sequence[int]) -> Any:
        def read(attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named["hidden_states"]
            conditions = named["encoder_hidden_states"]
            for weights in head_weights(attention, hidden[:, : part.frames], conditions, numbers):
                total.add(weights[part.tokens])

        return read

    hooks = [
        transformer.layers[layer].cross_attn.register_forward_pre_hook(reader(numbers), with_kwargs=True)
        for layer, numbers in heads.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class AttentionSum:
    """The attention of several heads, of which one at a time is in memory: a long song's takes 60 MB."""

    def __init__(self) -> None:
        self._weights: torch.Tensor | None = None
        self._agreement: torch.Tensor | None = None
        self._heads = 0

    def add(self, weights: torch.Tensor) -> None:
        """Adds a head's attention to the lyrics, of shape (tokens, frames)."""
        agreement = _agreement(weights)
        self._weights = weights if self._weights is None else self._weights + weights
        self._agreement = agreement if self._agreement is None else self._agreement + agreement
        self._heads += 1

    def maps(self) -> AttentionMaps:
        """Returns the means over all heads. Raises ValueError if there are none."""
        if self._weights is None or self._agreement is None:
            raise ValueError("no attention was read")
        return AttentionMaps(
            (self._weights / self._heads).double().cpu().numpy(),
            (self._agreement / self._heads).double().cpu().numpy(),
        )


def head_weights(
    attention: Any, hidden: torch.Tensor, conditions: torch.Tensor, heads: Sequence[int]
) -> Iterator[torch.Tensor]:
    """Yields the attention of each of `heads`, of shape (tokens, frames): each frame's adds up to 1.

    `attention` is a cross-attention layer, `hidden` (1, frames, width) and `conditions` (1, tokens, width) are its inputs. The
    fused kernels that compute a song return no weights.
    """
    for query, key in queries_and_keys(attention, hidden, conditions, heads):
        yield torch.softmax(key[0].float() @ query[0].float().T * attention.scaling, dim=0)


def queries_and_keys(
    attention: Any, hidden: torch.Tensor, conditions: torch.Tensor, heads: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the queries of each of `heads`, of shape (batch, frames, head width), and its keys (batch, tokens, head width)."""
    queries = attention.norm_q(attention.to_q(hidden).unflatten(-1, (attention.heads, attention.head_dim)))
    keys = attention.norm_k(attention.to_k(conditions).unflatten(-1, (attention.kv_heads, attention.head_dim)))
    sharing = attention.heads // attention.kv_heads
    for head in heads:
        yield queries[:, :, head], keys[:, :, head // sharing]


def _agreement(weights: torch.Tensor) -> torch.Tensor:
    """Returns where tokens and frames choose each other, from the attention of one head, of shape (tokens, frames).

    `torch.quantile` takes at most 16.7 million numbers; the longest lyrics of the longest song are 15.3 million.

    What a token has in most frames, or a frame in most tokens, is taken off. The original also divides by the standard deviation
    of all heads, which changes no path.
    """
    chosen = torch.softmax(weights, dim=1) * torch.softmax(weights, dim=0)
    chosen = torch.relu(chosen - _SUPPRESSION * torch.quantile(chosen, 0.5, dim=1, keepdim=True))
    chosen = torch.relu(chosen - _SUPPRESSION * torch.quantile(chosen, 0.5, dim=0, keepdim=True))
    return chosen**2
