"""What an adapter changes in one layer, computed beside the layer. The layer's own weight is never written to.

So a song without the adapter is bit for bit what it was before, and in bfloat16 a change counts that is too small to survive an
addition to the weight. This file imports torch: import it only after `loading.import_packages`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): the weight's change is scale * up @ down."""

    down: Tensor
    """Of shape (rank, inputs)."""
    up: Tensor
    """Of shape (outputs, rank)."""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The (outputs, inputs) of the layers that it fits."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down, self.up

    def weight(self) -> Tensor:
        """The weight's change as float32 of shape (outputs, inputs)."""
        return self.scale * (self.up.float() @ self.down.float())

    def __call__(self, inputs: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, self.down), self.up) * self.scale

    def to(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True)
class Kronecker:
    """LoKr (Yeh et al. 2023, LyCORIS): the weight's change is scale * kron(outer, inner)."""

    outer: Tensor
    inner: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The (outputs, inputs) of the layers that it fits."""
        return self.outer.shape[0] * self.inner.shape[0], self.outer.shape[1] * self.inner.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.outer, self.inner

    def weight(self) -> Tensor:
        """The weight's change as float32 of shape (outputs, inputs)."""
        return self.scale * torch.kron(self.outer.float().contiguous(), self.inner.float().contiguous())

    def __call__(self, inputs: Tensor) -> Tensor:
        blocks = inputs.reshape(*inputs.shape[:-1], self.outer.shape[1], self.inner.shape[1])
        return (self.outer @ functional.linear(blocks, self.inner)).flatten(-2) * self.scale

    def to(self, device: torch.device, dtype: torch.dtype) -> "Kronecker":
        return replace(self, outer=self.outer.to(device, dtype), inner=self.inner.to(device, dtype))


@dataclass(frozen=True)
class Patches:
    """Any change of the weight of the convolution that makes patches: it has so few numbers that it is kept as it is."""

    difference: Tensor
    """Of shape (outputs, inputs, patch size)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The (outputs, inputs, patch size) of the layers that it fits."""
        return tuple(self.difference.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.difference,)

    def weight(self) -> Tensor:
        """The weight's change as float32."""
        return self.difference.float()

    def __call__(self, inputs: Tensor) -> Tensor:
        return functional.conv1d(inputs, self.difference, stride=self.difference.shape[2])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Patches":
        return Patches(self.difference.to(device, dtype))


Change = LowRank | Kronecker | Patches


@dataclass(frozen=True)
class Rescaling:
    """DoRA (Liu et al. 2024): each row of the changed weight, or each column, is rescaled to a trained norm.

    `excess` is that norm divided by the changed weight's, minus 1: of shape (outputs,) for rows, (inputs,) for columns.
    """

    excess: Tensor
    is_of_columns: bool

    @classmethod
    def of(cls, magnitude: Tensor, changed: Tensor) -> "Rescaling":
        """`magnitude` has the trained norms: (1, inputs, ...) for columns, (outputs, ...) for rows.

        `changed` is the weight with its change, as float32.
        """
        is_of_columns = magnitude.shape[:2] == (1, changed.shape[1])
        norms = (changed.transpose(0, 1) if is_of_columns else changed).flatten(1).norm(dim=1)
        return cls(magnitude.to(norms.device).float().flatten() / norms - 1, is_of_columns)


@dataclass(frozen=True)
class Update:
    """What an adapter changes in one layer."""

    change: Change
    rescaling: Rescaling | None = None

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        rescaled = () if self.rescaling is None else (self.rescaling.excess,)
        return sum(tensor.nbytes for tensor in (*self.change.tensors, *rescaled))

    def added(self, layer: Any, inputs: Tensor, output: Tensor) -> Tensor:
        """What the update adds to the `output` of `layer` for `inputs`."""
        if self.rescaling is None:
            return self.change(inputs)
        excess = self.rescaling.excess
        if self.rescaling.is_of_columns:
            return functional.linear(inputs * excess, layer.weight) + self.change(inputs * (1 + excess))
        changed = self.change(inputs)
        product = output if layer.bias is None else output - layer.bias
        return changed + excess * (product + changed)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Update":
        rescaling = self.rescaling
        if rescaling is not None:
            rescaling = replace(rescaling, excess=rescaling.excess.to(device, dtype))
        return Update(self.change.to(device, dtype), rescaling)


def rescaled(change: Change, weight: Tensor, magnitude: Tensor) -> Update:
    """Returns DoRA's update of a layer: `change`, and the rescaling to `magnitude`, see `Rescaling.of`.

    `weight` is the layer's, as float32. `change` is on the same device.
    """
    changed = weight + change.weight()
    rescaling = Rescaling.of(magnitude, changed)
    if isinstance(change, Patches):
        excess = rescaling.excess[None, :, None] if rescaling.is_of_columns else rescaling.excess[:, None, None]
        return Update(Patches(change.weight() + excess * changed))
    return Update(change, rescaling)
