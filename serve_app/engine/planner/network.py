"""The forward pass of a Qwen3 language model over a static key-value cache, for many sequences at once.

Each sequence has a row of the cache. A pass takes the same number of tokens for a run of neighbouring rows, writes their keys and
values, and returns the hidden state of each row's last token. Formulas: the Qwen3 technical report (2025), as transformers'
`Qwen3Model` computes them, which a test compares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from safetensors import safe_open
from torch.nn import functional

from serve_app.engine.planner.graphs import Graphs
from serve_app.weights.planner_files import PlannerFiles, Shape

_KEYS_STEPS: Final = {"cuda": 256, "cpu": 64}
"""The keys that a pass attends to are a multiple of this, so that there are few shapes. On the CPU, keys beyond the sequence cost
as much as others."""

ROW_STEPS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""How many rows a pass of one token may have. Others are filled up, so that there are few shapes."""


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: torch.Tensor
    qkv: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """What all layers of one pass share."""

    rows: slice
    row_numbers: torch.Tensor
    """[rows, 1]"""
    places: torch.Tensor
    """[rows, length]"""
    limit: int
    visible: torch.Tensor
    """Which places each token attends to: [rows, 1, groups x length, limit]."""
    cosine: torch.Tensor
    sine: torch.Tensor


_Read = Callable[[str], torch.Tensor]


class Network:
    """A language model on its device, with a cache of `rows` sequences of `context` tokens."""

    def __init__(
        self,
        files: PlannerFiles,
        device: torch.device,
        dtype: torch.dtype,
        *,
        rows: int,
        context: int,
        graphs: bool = False,
    ) -> None:
        """Reads the weights. With `graphs`, passes of one token on a CUDA device are recorded and replayed.

        Raises torch's error if the device's memory is too small.
        """
        self.shape: Shape = files.shape
        self.device = device
        self.dtype = dtype
        self.rows = rows
        self.context = context
        read = _reader(files, device, dtype)
        self.embedding = read("embed_tokens.weight")
        self.head = self.embedding if self.shape.tied else read("lm_head.weight")
        """The rows of the head, each of which gives the logit of one token."""
        self._norm = read("norm.weight")
        self._layers = [_layer(read, f"layers.{at}") for at in range(self.shape.layers)]
        # One place more than the context, which rows that take no part in a pass write to. Zeros: masked places must be finite.
        size = (self.shape.layers, rows, self.shape.kv_heads, context + 1, self.shape.head_dim)
        self._keys = torch.zeros(size, device=device, dtype=dtype)
        self._values = torch.zeros(size, device=device, dtype=dtype)
        self._cosine, self._sine = _rotations(self.shape, context + 1, device, dtype)
        self._places = torch.arange(context + 1, device=device)
        self._graphs = Graphs(self._forward) if graphs and device.type == "cuda" else None

    @property
    def cache_bytes(self) -> int:
        """Size of the key-value cache."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def read(self, row: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Reads consecutive tokens of one sequence, from place `start`, and returns the hidden state of the last: [hidden]."""
        places = torch.arange(start, start + len(tokens), device=self.device)
        batch = torch.tensor([tokens], device=self.device)
        return self._forward(batch, places[None], row, self._limit(start + len(tokens)))[0]

    def step(self, tokens: Sequence[int | None], places: Sequence[int]) -> torch.Tensor:
        """Reads one token of each row at its place, and returns the hidden states: [rows, hidden].

        A row whose token is None takes no part: its sequence stays as it is, and its hidden state means nothing.
        """
        rows = min(next(size for size in ROW_STEPS if size >= len(tokens)), self.rows)
        idle = [None] * (rows - len(tokens))
        used = [place for token, place in zip(tokens, places, strict=True) if token is not None]
        known = [0 if token is None else token for token in [*tokens, *idle]]
        at = [self.context if token is None else place for token, place in zip(tokens, places, strict=True)]
        batch = torch.tensor(known, device=self.device)[:, None]
        where = torch.tensor(at + [self.context] * len(idle), device=self.device)[:, None]
        limit = self._limit(max(used) + 1)
        states = self._graphs(batch, where, limit) if self._graphs else self._forward(batch, where, 0, limit)
        return states[: len(tokens)]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of the sequence in row `source` to row `target`."""
        for cache in (self._keys, self._values):
            cache[:, target, :, :length] = cache[:, source, :, :length]

    def _limit(self, length: int) -> int:
        """How many places of the cache a pass attends to."""
        step = _KEYS_STEPS[self.device.type]
        return min(-(-length // step) * step, self.context)

    def _forward(self, tokens: torch.Tensor, places: torch.Tensor, first: int, limit: int) -> torch.Tensor:
        """Reads `tokens` [rows, length] at `places` [rows, length] into the cache's rows from `first`. Returns [rows, hidden].

        Attends to the cache's first `limit` places, as far as they are not later than the token itself.
        """
        work = _Pass(
            rows=slice(first, first + len(tokens)),
            row_numbers=torch.arange(first, first + len(tokens), device=self.device)[:, None],
            places=places,
            limit=limit,
            visible=(self._places[:limit] <= places[..., None])[:, None].repeat(1, 1, self._groups, 1),
            cosine=self._cosine[places][:, :, None],
            sine=self._sine[places][:, :, None],
        )
        states = functional.embedding(tokens, self.embedding)
        for number, layer in enumerate(self._layers):
            states = states + self._attention(number, layer, states, work)
            gate, up = functional.linear(self._normalised(states, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            states = states + functional.linear(functional.silu(gate) * up, layer.down)
        return self._normalised(states[:, -1], self._norm)

    def _attention(self, number: int, layer: _Layer, states: torch.Tensor, work: _Pass) -> torch.Tensor:
        """Grouped-query attention of one layer over the cache."""
        shape = self.shape
        count, length = states.shape[:2]
        mixed = functional.linear(self._normalised(states, layer.norm), layer.qkv)
        heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        query, key, value = torch.split(mixed.view(count, length, sum(heads), shape.head_dim), heads, dim=2)
        query = _rotated(self._normalised(query, layer.query_norm), work)
        self._keys[number][work.row_numbers, :, work.places] = _rotated(self._normalised(key, layer.key_norm), work)
        self._values[number][work.row_numbers, :, work.places] = value
        # The heads that share keys are treated as further queries, so that keys and values are not repeated.
        grouped = query.view(count, length, shape.kv_heads, self._groups, shape.head_dim).permute(0, 2, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            grouped.reshape(count, shape.kv_heads, self._groups * length, shape.head_dim),
            self._keys[number, work.rows, :, : work.limit],
            self._values[number, work.rows, :, : work.limit],
            attn_mask=work.visible,
        )
        attended = attended.view(count, shape.heads, length, shape.head_dim).transpose(1, 2)
        return functional.linear(attended.reshape(count, length, -1), layer.out)

    @property
    def _groups(self) -> int:
        """How many query heads share the keys of one head."""
        return self.shape.heads // self.shape.kv_heads

    def _normalised(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square normalisation, in float32 as in Qwen3."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.shape.eps)
        return weight * wide.to(states.dtype)


def _rotated(states: torch.Tensor, work: _Pass) -> torch.Tensor:
    """Rotary position embedding of [rows, length, heads, head_dim] (Su et al. 2021, in the layout of two halves)."""
    first, second = states.chunk(2, dim=-1)
    return states * work.cosine + torch.cat((-second, first), dim=-1) * work.sine


def _rotations(
    shape: Shape, places: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines of all places: [places, head_dim] each."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.arange(places, dtype=torch.float32)[:, None] / shape.rope_theta**exponents
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(device, dtype), both.sin().to(device, dtype)


def _reader(files: PlannerFiles, device: torch.device, dtype: torch.dtype) -> _Read:
    """Returns a function that reads a tensor of the checkpoint to the device."""
    opened = {
        file: safe_open(file, framework="pt", device=str(device))
        for file in {file for file, _ in files.places.values()}
    }

    def read(name: str) -> torch.Tensor:
        file, stored = files.places[name]
        return cast(torch.Tensor, opened[file].get_tensor(stored)).to(dtype)  # type: ignore[no-untyped-call]

    return read


def _layer(read: _Read, prefix: str) -> _Layer:
    """Returns a layer's weights. Those that are applied to the same input are joined, which saves passes over it."""

    def joined(*names: str) -> torch.Tensor:
        return torch.cat([read(f"{prefix}.{name}.weight") for name in names])

    return _Layer(
        norm=joined("input_layernorm"),
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        query_norm=joined("self_attn.q_norm"),
        key_norm=joined("self_attn.k_norm"),
        out=joined("self_attn.o_proj"),
        mlp_norm=joined("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
    )
