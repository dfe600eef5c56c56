"""The embedded checkpoint: a toy ACE-Step, trained on synthetic music, that is part of this package.

`miniature.pack` writes the packed files: weights compressed as NAME.xz, all others unchanged, and a manifest of the unpacked
files. They are unpacked into the cache like a download, with the same lock, checks and manifest.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.weights import cache, manifest
from serve_app.weights.layout import read_json

PACKED: Final = Path(__file__).with_name("miniature")
"""The packed files."""
SUFFIX: Final = ".xz"
"""What the name of a compressed file ends in."""

_BLOCK_BYTES: Final = 1 << 20


def planned(home: Path) -> cache.Plan:
    """Returns the plan to unpack the checkpoint into a folder in `home`, which is named after a hash of the unpacked files.

    Raises:
        MissingFile, CorruptFile: the manifest of the packed files is missing or damaged.
    """
    listed = read_json(PACKED / manifest.NAME)
    commit = listed["commit"]
    files = {name: cache.RemoteFile(entry["size"], entry["sha256"]) for name, entry in listed["files"].items()}
    packed = cache.Remote("the embedded checkpoint", commit, files, _read, verb="unpacking")
    return cache.plan(home, "package", commit, lambda: packed)


def _read(name: str, start: int) -> Iterator[bytes]:
    """Yields the content of an unpacked file from byte `start`. Raises CorruptFile if the packed file is damaged."""
    packed = PACKED / (name + SUFFIX)
    try:
        with lzma.open(packed) if packed.exists() else (PACKED / name).open("rb") as stream:
            stream.seek(start)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (lzma.LZMAError, EOFError) as error:
        raise errors.CorruptFile(f"{packed} is damaged ({error}). Install Sophia again.") from error
