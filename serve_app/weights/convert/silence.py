"""Reads `silence_latent.pt`, the VAE's latents of ten minutes of silence, without running code that the file may contain."""

import io
import pickle
import zipfile
from typing import Final

from serve_app import errors
from serve_app.weights.cache import Remote
from serve_app.weights.convert.content import Stored
from serve_app.weights.convert.headers import Tensor

NAME: Final = "silence_latent"
"""Its name in the condition encoder."""

_MAX_BYTES: Final = 64 << 20
"""The released file has 3.8 MB. Also the limit of the unpacked content."""
_MAX_ENTRIES: Final = 64
_REFERENCE: Final = "Use the silence_latent.pt of ACE-Step/Ace-Step1.5."


def read_silence(source: Remote, file: str) -> Tensor:
    """Returns the tensor of shape [1, frames, 64]. The file has it as [1, 64, frames].

    Raises:
        CorruptFile: the file is not a zip archive as torch.save writes it, is larger than 64 MB, contains code, or holds
            anything but one tensor of that shape.
    """
    title = f"{file} of {source.title}"
    size = source.files[file].size
    if size > _MAX_BYTES:
        raise errors.CorruptFile(f"{title} has {size} bytes; at most {_MAX_BYTES} are read. {_REFERENCE}")
    content = Stored(source, file, 0, size).content()
    _check_archive(title, content)
    return _tensor(title, content)


def _check_archive(title: str, content: bytes) -> None:
    """Raises CorruptFile unless `content` is a zip archive that unpacks to few bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise errors.CorruptFile(
            f"{title} is not a zip archive as torch.save writes it since torch 1.6. Older files are not read, because reading "
            f"them can run code. {_REFERENCE}"
        ) from error
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > _MAX_ENTRIES or unpacked > _MAX_BYTES:
        raise errors.CorruptFile(
            f"{title} unpacks to {unpacked} bytes in {len(entries)} entries; at most {_MAX_BYTES} in {_MAX_ENTRIES} are read. "
            f"{_REFERENCE}"
        )


def _tensor(title: str, content: bytes) -> Tensor:
    import torch

    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    try:
        loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise errors.CorruptFile(f"{title} is not one tensor, or contains code ({reason}). {_REFERENCE}") from error
    if (
        not isinstance(loaded, torch.Tensor)
        or loaded.dtype not in names
        or loaded.ndim != 3
        or loaded.shape[:2] != (1, 64)
    ):
        found = f"{loaded.dtype} {list(loaded.shape)}" if isinstance(loaded, torch.Tensor) else type(loaded).__name__
        raise errors.CorruptFile(f"{title} holds {found}, not a float tensor of shape [1, 64, frames]. {_REFERENCE}")
    if loaded.numel() * loaded.itemsize > _MAX_BYTES:  # a view that repeats a few stored numbers
        raise errors.CorruptFile(f"{title} has the shape {list(loaded.shape)}, which is too large. {_REFERENCE}")
    latents = loaded.transpose(1, 2).contiguous()
    data = latents.view(torch.uint8).numpy().tobytes()
    return Tensor(names[loaded.dtype], tuple(latents.shape), data)
