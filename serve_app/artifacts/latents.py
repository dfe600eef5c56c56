"""The file of a song's latents and audio codes: safetensors, with the checkpoint whose autoencoder and tokenizer they belong to.

It also has the gain of the song: its samples are those that the latents decode to, times the gain, as songs are normalised.

The latents are in bfloat16. Half of float32's size loses nothing that can be heard: the models themselves compute in bfloat16. A
minute of song takes 192 kB, and its codes, as 32-bit integers, 1.2 kB.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors

_NAME: Final = "latents"
_CODES: Final = "codes"
_CHECKPOINT: Final = "checkpoint"
_GAIN: Final = "gain"
_LENGTH: Final = struct.Struct("<Q")


class KeptLatents(NamedTuple):
    """A song's latents, of shape (latent frames, channels), and its gain."""

    values: npt.NDArray[np.float32]
    gain: float


def to_file(
    latents: npt.NDArray[np.float32], checkpoint: str, codes: Sequence[int] | None = None, gain: float = 1.0
) -> bytes:
    """The file of latents of shape (latent frames, channels), and of the song's audio codes if the model has any.

    `checkpoint` identifies the model that made them. `gain` is the song's.
    """
    bits = _to_bfloat16(latents)
    numbers = np.asarray(codes or (), "<i4")
    tensors = {_NAME: _spec("bfloat16", latents.shape, bits)}
    if codes is not None:
        tensors[_CODES] = _spec("int32", numbers.shape, numbers)
    return bytes(safetensors.serialize(tensors, {_CHECKPOINT: checkpoint, _GAIN: repr(gain)}))


def from_file(file: bytes, checkpoint: str) -> KeptLatents | None:
    """The latents in a file; None if it is damaged, or was made by another checkpoint, whose autoencoder may differ."""
    try:
        (length,) = _LENGTH.unpack_from(file)
        metadata = json.loads(file[_LENGTH.size : _LENGTH.size + length]).get("__metadata__", {})
        tensor = _tensors(file)[_NAME]
        gain = float(metadata[_GAIN])
        if metadata[_CHECKPOINT] != checkpoint or tensor["dtype"] != "BF16":
            return None
    except (safetensors.SafetensorError, struct.error, ValueError, KeyError):
        return None
    bits = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
    return KeptLatents(bits.view(np.float32).reshape(tensor["shape"]), gain)


def codes_from_file(file: bytes) -> list[int] | None:
    """The audio codes in a file of latents; None if it has none, or is damaged."""
    try:
        tensor = _tensors(file)[_CODES]
        numbers: list[int] = np.frombuffer(tensor["data"], "<i4").tolist()
    except (safetensors.SafetensorError, ValueError, KeyError):
        return None
    return numbers


def _spec(dtype: str, shape: tuple[int, ...], values: npt.NDArray[Any]) -> safetensors.TensorSpec:
    """How `safetensors` is told of a tensor. The caller must keep `values` until they are written."""
    return safetensors.TensorSpec(dtype=dtype, shape=shape, data_ptr=values.ctypes.data, data_len=values.nbytes)


def _tensors(file: bytes) -> dict[str, Any]:
    return dict(safetensors.deserialize(file))  # type: ignore[no-untyped-call]  # its stub has no types


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32, rounded to the nearest and ties to even. All values must be finite."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return rounded
