"""The embedded checkpoint: a toy ACE-Step, trained on synthetic music, that is part of this package.

`miniature.pack` writes the packed files: weights compressed as NAME.xz, all others unchanged, and a manifest of the unpacked
files. They are unpacked into the cache like a download, with the same lock, checks and manifest. The base variant has a folder
with its manifest and the files in which it differs from turbo.
"""

import lzma
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.config.sources import EMBEDDED, EMBEDDED_BASE
from serve_app.weights import cache, manifest
from serve_app.weights.layout import read_json

PACKED: Final = Path(__file__).with_name("miniature")
"""The packed files."""
BASE: Final = "base"
"""The folder in PACKED of what only the base variant has."""
SUFFIX: Final = ".xz"
"""What the name of a compressed file ends in."""

_BLOCK_BYTES: Final = 1 << 20


def planned(home: Path, source: str = EMBEDDED) -> cache.Plan:
    """Returns the plan to unpack a variant into a folder in `home`, which is named after a hash of the unpacked files.

    Raises:
        MissingFile, CorruptFile: the manifest of the packed files is missing or damaged.
    """
    folders = _folders(source)
    listed = read_json(_installed(folders[:1], manifest.NAME))
    commit = listed["commit"]
    files = {name: cache.RemoteFile(entry["size"], entry["sha256"]) for name, entry in listed["files"].items()}
    packed = cache.Remote("the embedded checkpoint", commit, lambda: files, partial(_read, folders), verb="unpacking")
    return cache.plan(home, source, commit, lambda: packed)


def check(source: str) -> None:
    """Checks that this installation has a variant's manifest and all files that it lists, without unpacking any.

    Raises:
        MissingFile, CorruptFile: the manifest or a packed file is missing, or the manifest is damaged.
    """
    folders = _folders(source)
    for name in read_json(_installed(folders[:1], manifest.NAME))["files"]:
        _installed(folders, name)


def _folders(source: str) -> list[Path]:
    """The folders with a variant's packed files, the one with its manifest first."""
    return [PACKED / BASE, PACKED] if source == EMBEDDED_BASE else [PACKED]


def _installed(folders: Sequence[Path], name: str) -> Path:
    """Returns the first packed file that holds the unpacked file `name`. Raises MissingFile if there is none."""
    candidates = [folder / packed for folder in folders for packed in (name + SUFFIX, name)]
    for file in candidates:
        if file.exists():
            return file
    raise errors.MissingFile(
        f"{candidates[-1]} is missing from this installation of Sophia. Install Sophia again, or set another source."
    )


def _read(folders: Sequence[Path], name: str, start: int) -> Iterator[bytes]:
    """Yields the content of an unpacked file from byte `start`. Raises MissingFile or CorruptFile."""
    file = _installed(folders, name)
    try:
        with lzma.open(file) if file.suffix == SUFFIX else file.open("rb") as stream:
            stream.seek(start)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (lzma.LZMAError, EOFError) as error:
        raise errors.CorruptFile(f"{file} is damaged ({error}). Install Sophia again.") from error
