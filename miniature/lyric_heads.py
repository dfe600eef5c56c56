"""Heads of the transformer's cross-attention that learn where the lyrics are sung, so that songs can be aligned with their words.

While a syllable is sung, these heads are to attend to its tokens. Nothing else in flow matching asks for that: without this
loss, no head follows the lyrics (docs/PARITY.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniature.batches import Texts, batch_of
from miniature.conditioning import LYRICS_TOKENS, Networks, Tokens
from miniature.flow import Inputs
from miniature.singing import LATENTS_A_SECOND, Span, lyrics_tokens, tokens_of
from miniature.tasks import Example
from serve_app.engine.ace_step.alignment import token_times
from serve_app.engine.ace_step.lyric_attention import AttentionSum, queries_and_keys

Heads = Mapping[int, Sequence[int]]
"""Numbers of heads by the number of their layer."""

HEADS: Heads = {2: (0, 1), 3: (0, 1)}
"""Those that learn. Each pair shares its keys. The layers before have to hear the syllables first."""
CLOSE_S = 0.15
"""The error that counts as finding a syllable: less than two patches."""
_NOTHING = -1e4
"""The logarithm of no attention; with minus infinity, the gradient of a patch that sings nothing would be no number."""


@contextmanager
def attention_read(transformer: nn.Module, heads: Heads) -> Iterator[list[Tensor]]:
    """Inside the block, each pass of the transformer appends each layer's logarithms of attention to the list it gives.

    They are (batch, heads, patches, conditions), and carry gradients.
    """
    read: list[Tensor] = []

    def reader(numbers: Sequence[int]) -> Any:
        def hook(attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named["hidden_states"]
            read.append(
                _logarithms(attention, hidden, named["encoder_hidden_states"], named["attention_mask"], numbers)
            )

        return hook

    layers: Any = transformer.layers
    hooks = [
        layers[layer].cross_attn.register_forward_pre_hook(reader(numbers), with_kwargs=True)
        for layer, numbers in heads.items()
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _logarithms(attention: Any, hidden: Tensor, conditions: Tensor, mask: Tensor, heads: Sequence[int]) -> Tensor:
    # Not by lists of indices: they would be copied to the device, which a CUDA graph cannot do.
    queries, keys = map(torch.stack, zip(*queries_and_keys(attention, hidden, conditions, heads), strict=True))
    scores = (queries.float() @ keys.float().transpose(-1, -2) * attention.scaling).transpose(0, 1)
    return torch.log_softmax(scores.masked_fill(~mask, _NOTHING), dim=-1)


def alignment_loss(read: Sequence[Tensor], sung: Tensor) -> Tensor:
    """The negative logarithm of the attention that a patch pays to the syllable that it sings, averaged over heads and patches.

    `read` is what `attention_read` gives, and `sung` (batch, frames, tokens) tells which tokens each frame sings. Tokens of
    lyrics come first among the conditions. Patches that sing nothing do not count.
    """
    logarithms = torch.cat(list(read), dim=1)
    patch = sung.shape[1] // logarithms.shape[2]
    told = sung[:, None, ::patch]
    paid = logarithms[..., : sung.shape[2]].masked_fill(~told, _NOTHING).logsumexp(-1)
    counts = told.any(-1).expand_as(paid)
    return -torch.where(counts, paid, 0.0).sum() / counts.sum().clamp(min=1)


def syllable_errors(example: Example, offsets: Sequence[Span], attention: Tensor) -> np.ndarray:
    """How far each syllable of a clip is found from where it is sung: (syllables,) in seconds.

    `offsets` has the places of the tokens in the lyrics' text. `attention` is (heads, patches, conditions).
    """
    lyrics = lyrics_tokens(example.lyrics, offsets)
    total = AttentionSum()
    for weights in attention:
        total.add(weights[:, lyrics].T)
    patch_s = len(example.target) / attention.shape[1] / LATENTS_A_SECOND
    times = token_times(total.maps(), patch_s)
    first = [tokens_of(syllable, offsets)[0] - lyrics.start for syllable in example.syllables]
    errors: np.ndarray = np.abs(times[first, 0] - [syllable.start_s for syllable in example.syllables])
    return errors


@dataclass(frozen=True)
class Timing:
    """How well heads find the syllables of held-out clips.

    `median_s`: how far half of the syllables are off at most, in seconds. `close`: the share of those that are at most CLOSE_S
    off. `attention`: the share of its attention that a patch pays to the syllable that it sings.
    """

    median_s: float
    close: float
    attention: float

    def __str__(self) -> str:
        return f"{self.median_s:.2f} s off in the median, {self.close:.2f} within {CLOSE_S:g} s, attention {self.attention:.2f}"


class TimingCheck:
    """Finds the syllables of sung clips, as Sophia does in finished songs: always with the same noise."""

    def __init__(self, examples: Sequence[Example], networks: Networks, texts: Texts) -> None:
        self._examples = examples
        self._batch = batch_of(examples, networks.silence.numpy(), networks.heard_frames, texts)
        lyrics = [example.lyrics for example in examples]
        self._offsets = Tokens(texts.tokenizer, lyrics, LYRICS_TOKENS, texts.multiple).offsets

    @torch.no_grad()
    def timing(self, networks: Networks, level: float, heads: Heads) -> Timing:
        """How well `heads` find the syllables at a noise level."""
        inputs = self._inputs(level, networks.silence.device)
        with attention_read(networks.transformer, heads) as read:
            networks.velocity(inputs.noisy, inputs.times, inputs.conditions(networks), inputs.context)
        attention = torch.cat(read, dim=1).exp()
        clips = zip(self._examples, self._offsets, attention, strict=True)
        errors = np.concatenate([syllable_errors(*clip) for clip in clips])
        return Timing(
            median_s=float(np.median(errors)),
            close=float((errors <= CLOSE_S).mean()),
            attention=float(torch.exp(-alignment_loss(read, inputs.sung))),
        )

    def _inputs(self, level: float, device: torch.device) -> Inputs:
        batch = self._batch.to(device)
        noise = torch.randn(batch.music.shape, generator=torch.Generator().manual_seed(0)).to(device)
        times = torch.full((len(batch.music),), level, device=device)
        return Inputs.of(batch, noise=noise, times=times, dropped=torch.zeros_like(times, dtype=torch.bool))
