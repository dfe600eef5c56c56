"""Batches of training examples as tensors. A step's number decides its batch, so several processes can prepare them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniature.conditioning import LYRICS_TOKENS, PROMPT_TOKENS, Networks, Tokens
from miniature.singing import sung_frames
from miniature.tasks import Example, Examples

CLIP_FRAMES = 256
CROP_FRAMES = 160

Coder = Callable[[Tensor], Tensor]
"""Sends latents (songs, frames, 64) through the audio codes and back, as a cover's source goes."""


class Batch(NamedTuple):
    """A batch of examples: latents are (batch, frames, 64), the repaint mask (batch, frames), texts as Tokens has them.

    `covers`: the numbers of the examples whose source is still to go through the audio codes. `sung`: which tokens of the lyrics
    each frame sings, (batch, frames, tokens) of bool; (batch, 0, 0) if no example is to be aligned.
    """

    music: Tensor
    source: Tensor
    mask: Tensor
    covers: Tensor
    references: Tensor
    prompts: Tensor
    prompts_mask: Tensor
    lyrics: Tensor
    lyrics_mask: Tensor
    sung: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def with_covers_coded(self, code: Coder | None) -> "Batch":
        if code is None or not len(self.covers):
            return self
        coded = code(self.source.index_select(0, self.covers))
        return self._replace(source=self.source.index_copy(0, self.covers, coded))

    @property
    def context(self) -> Tensor:
        """The transformer's context: source and mask, (batch, frames, 128)."""
        return torch.cat([self.source, self.mask[..., None].expand(-1, -1, self.source.shape[-1])], -1)


@dataclass(frozen=True)
class Texts:
    """How texts become tokens: padded to the longest of a batch, and to a multiple of `multiple` tokens."""

    tokenizer: Any
    multiple: int = 1


def batch_of(examples: Sequence[Example], silence: np.ndarray, reference_frames: int, texts: Texts) -> Batch:
    """The examples as a batch. `silence`: the latent (64,) that stands for an example's missing reference."""
    silent = np.broadcast_to(silence, (reference_frames, len(silence)))
    references = [silent if example.reference is None else example.reference for example in examples]
    prompts = Tokens(texts.tokenizer, [example.prompt for example in examples], PROMPT_TOKENS, texts.multiple)
    lyrics = Tokens(texts.tokenizer, [example.lyrics for example in examples], LYRICS_TOKENS, texts.multiple)
    return Batch(
        music=torch.from_numpy(np.stack([example.target for example in examples])),
        source=torch.from_numpy(np.stack([example.source for example in examples])),
        mask=torch.from_numpy(np.stack([example.mask for example in examples])),
        covers=torch.tensor([number for number, example in enumerate(examples) if example.cover], dtype=torch.long),
        references=torch.from_numpy(np.stack(references)),
        prompts=prompts.ids,
        prompts_mask=prompts.mask,
        lyrics=lyrics.ids,
        lyrics_mask=lyrics.mask,
        sung=_sung(examples, lyrics),
    )


def _sung(examples: Sequence[Example], lyrics: Tokens) -> Tensor:
    if not any(example.syllables for example in examples):
        return torch.zeros(len(examples), 0, 0, dtype=torch.bool)
    frames = [
        sung_frames(example.syllables, offsets, len(example.target))
        for example, offsets in zip(examples, lyrics.offsets, strict=True)
    ]
    return torch.from_numpy(np.stack(frames))


class Batches(Dataset[Batch]):
    """A training's batches by step: the same for the same step, so that the step is all that resuming needs.

    Half of the batches are whole clips, from which structure is learnt; the others are `size` crops. Both have about the same
    number of frames.
    """

    def __init__(self, examples: Examples, networks: Networks, texts: Texts, size: int) -> None:
        self._examples = examples
        self._silence = networks.silence.numpy().copy()
        self._reference_frames = networks.heard_frames
        self._texts = texts
        self._size = size

    def __getitem__(self, step: int) -> Batch:
        return batch_of(self.examples(step), self._silence, self._reference_frames, self._texts)

    def examples(self, step: int) -> list[Example]:
        """The examples of a step."""
        random = np.random.default_rng([7, step])
        count = max(1, self._size * CROP_FRAMES // CLIP_FRAMES)
        if random.random() < 0.5:
            return [self._examples.draw(random, CLIP_FRAMES) for _ in range(count)]
        return [self._examples.draw(random, CROP_FRAMES) for _ in range(self._size)]

    def endless(self, first: int, processes: int, device: torch.device) -> Iterator[Batch]:
        """The batches from step `first` on, prepared by `processes` other processes, or by this one if that is 0."""
        steps: Any = range(first, 2**31)
        loader = DataLoader(
            self, batch_size=None, sampler=steps, num_workers=processes, pin_memory=device.type == "cuda"
        )
        return iter(loader)
