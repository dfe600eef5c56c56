"""The embedded checkpoint: a toy ACE-Step that plays synthetic music, packed into this package.

`miniature.pack` writes the packed files: weights as NAME.xz, the rest as it is, and a manifest of the unpacked files. They are
unpacked into the weights' cache as a download is, so the same lock, checks and manifest make that copy a whole one.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from serve_app.weights import cache, manifest
from serve_app.weights.layout import read_json

PACKED: Final = Path(__file__).with_name("miniature")
"""The packed files."""
SUFFIX: Final = ".xz"
"""What the name of a compressed file ends in."""

_BLOCK_BYTES: Final = 1 << 20


def planned(home: Path) -> cache.Plan:
    """The folder below `home` where the checkpoint is or will be unpacked. Its name is a hash of the unpacked files.

    Raises:
        MissingFile, CorruptFile: the installed package lacks the packed files' manifest.
    """
    listed = read_json(PACKED / manifest.NAME)
    commit = listed["commit"]
    files = {name: cache.RemoteFile(said["size"], said["sha256"]) for name, said in listed["files"].items()}
    packed = cache.Remote("the embedded checkpoint", commit, files, _read, verb="unpacking")
    return cache.plan(home, "package", commit, lambda: packed)


def _read(name: str, start: int) -> Iterator[bytes]:
    """The unpacked file of this name from byte `start` on."""
    packed = PACKED / (name + SUFFIX)
    with lzma.open(packed) if packed.exists() else (PACKED / name).open("rb") as stream:
        stream.seek(start)
        while block := stream.read(_BLOCK_BYTES):
            yield block
