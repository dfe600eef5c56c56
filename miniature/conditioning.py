"""The networks that train together, called as diffusers' AceStepPipeline calls them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Model

PROMPT_TOKENS = 256
LYRICS_TOKENS = 2048
REFERENCE_FRAMES = 750  # 30 s: what the pipeline gives the timbre encoder


class Networks(nn.Module):
    """Text encoder, condition encoder and diffusion transformer of one checkpoint, in float32."""

    def __init__(self, text_encoder: Any, condition_encoder: Any, transformer: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.condition_encoder = condition_encoder
        self.condition_encoder.timbre_encoder.unpack_timbre_embeddings = _one_reference_each
        self.transformer = transformer

    @classmethod
    def load(cls, checkpoint: Path) -> "Networks":
        """Reads the networks from a saved pipeline's folder."""
        return cls(
            Qwen3Model.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32),
            AceStepConditionEncoder.from_pretrained(checkpoint / "condition_encoder", dtype=torch.float32),
            AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer", dtype=torch.float32),
        )

    @classmethod
    def untrained(cls, checkpoint: Path) -> "Networks":
        """New networks of the same shapes as those in a saved pipeline's folder; the silence latent is copied."""
        trained = cls.load(checkpoint)
        networks = cls(
            Qwen3Model(trained.text_encoder.config),
            AceStepConditionEncoder.from_config(trained.condition_encoder.config),
            AceStepTransformer1DModel.from_config(trained.transformer.config),
        )
        networks.condition_encoder.silence_latent.copy_(trained.condition_encoder.silence_latent)
        # A velocity of zero is the best guess of a transformer that knows nothing.
        nn.init.zeros_(networks.transformer.proj_out_conv.weight)
        nn.init.zeros_(networks.transformer.proj_out_conv.bias)
        return networks

    @property
    def silence(self) -> Tensor:
        """The latent of silence: (64,)."""
        silence: Tensor = self.condition_encoder.silence_latent[0, 0]
        return silence

    @property
    def heard_frames(self) -> int:
        """How many frames of a reference reach the timbre encoder's only output, its first position.

        One layer with a window hears no further than the window, so training need not compute the rest.
        """
        config = self.condition_encoder.config
        if config.num_timbre_encoder_hidden_layers == 1:
            return min(REFERENCE_FRAMES, int(config.sliding_window) + 1)
        return REFERENCE_FRAMES

    def conditions(
        self, prompts: Tensor, prompts_mask: Tensor, lyrics: Tensor, lyrics_mask: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The packed conditions (batch, tokens, width) and the mask of those that are not padding.

        `prompts`, `lyrics`: token ids (batch, tokens). `references`: (batch, frames, 64), the latents of silence for an
        example without a reference.
        """
        states, mask = self.condition_encoder(
            text_hidden_states=self.text_encoder(input_ids=prompts).last_hidden_state,
            text_attention_mask=prompts_mask,
            lyric_hidden_states=self.text_encoder.get_input_embeddings()(lyrics),
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=references,
            refer_audio_order_mask=None,
        )
        return states, mask

    def null_conditions(self, batch: int) -> tuple[Tensor, Tensor]:
        """The conditions of guidance's unguided side.

        The pipeline repeats the embedding for each token; attention to equal tokens gives the same as to one.
        """
        embedding = self.condition_encoder.null_condition_emb.expand(batch, 1, -1)
        return embedding, torch.ones(batch, 1, dtype=torch.bool, device=embedding.device)

    def velocity(self, noisy: Tensor, times: Tensor, conditions: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        """The velocity (batch, frames, 64) from music to noise at `times`, in float32."""
        states, mask = conditions
        with _cross_attention_mask(self.transformer, mask):
            sample: Tensor = self.transformer(noisy, times, times, states, context).sample
        return sample.float()


def _one_reference_each(embeddings: Tensor, _order: None) -> tuple[Tensor, Tensor]:
    """What the timbre encoder's own method gives where each example has one reference.

    That one asks for values on the host, which stops the device, and a CUDA graph cannot hold it.
    """
    return embeddings[:, None], torch.ones(len(embeddings), 1, dtype=torch.long, device=embeddings.device)


class Tokens:
    """A batch of texts: `ids` (batch, tokens), `mask` of the same shape, False for padding to a multiple of `multiple`.

    `offsets` has, for each text, the first character of each token and the one after its last; both are 0 for padding.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], limit: int, multiple: int = 1) -> None:
        encoded = tokenizer(
            list(texts),
            padding="longest",
            pad_to_multiple_of=multiple,
            truncation=True,
            max_length=limit,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        self.ids: Tensor = encoded.input_ids
        self.mask: Tensor = encoded.attention_mask.bool()
        self.offsets: list[list[tuple[int, int]]] = [
            [(start, end) for start, end in places] for places in encoded.offset_mapping.tolist()
        ]


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of a saved pipeline's folder."""
    return AutoTokenizer.from_pretrained(checkpoint / "tokenizer")


@contextmanager
def _cross_attention_mask(transformer: nn.Module, mask: Tensor) -> Iterator[None]:
    """Keeps the layers' cross-attention from reading padding.

    Diffusers passes no mask there: its pipeline pads only where songs with unequal texts share a batch, as they do here.
    """

    def masked(_layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return arguments, {**named, "encoder_attention_mask": mask[:, None, None, :]}

    layers: Any = transformer.layers
    hooks = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
