"""The embedded checkpoint: a toy ACE-Step, trained on synthetic music, that is part of this package.

`miniature.pack` writes the packed files: weights compressed as NAME.xz, all others unchanged, and a manifest of the unpacked
files. They are unpacked into the cache like a download, with the same lock, checks and manifest. The base variant has a folder
with its manifest and the files in which it differs from turbo: of weights, the difference. The planner has a folder of its own.
"""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from serve_app import errors
from serve_app.config.sources import EMBEDDED, EMBEDDED_BASE
from serve_app.weights import cache, manifest
from serve_app.weights.layout import read_json

PACKED: Final = Path(__file__).with_name("miniature")
"""The packed files."""
BASE: Final = "base"
"""The folder in PACKED of what only the base variant has."""
PLANNER: Final = "planner"
"""The folder in PACKED of the language model that plans songs, and its name for `planned` and `check`."""
SUFFIX: Final = ".xz"
"""What the name of a compressed file ends in."""
DIFFERENCE: Final = ".difference.xz"
"""What the name of a compressed difference ends in: of base's weights minus turbo's, as 16-bit integers that wrap around.

Base's transformer, from which turbo's was distilled, is 1.5 MB smaller this way.
"""

_BLOCK_BYTES: Final = 1 << 20


def planned(home: Path, source: str = EMBEDDED) -> cache.Plan:
    """Returns the plan to unpack a variant or the planner into a folder in `home`, named after a hash of the unpacked files.

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
    """Checks that this installation has the manifest of a variant or the planner and all files that it lists. Unpacks none.

    Raises:
        MissingFile, CorruptFile: the manifest or a packed file is missing, or the manifest is damaged.
    """
    folders = _folders(source)
    for name in read_json(_installed(folders[:1], manifest.NAME))["files"]:
        _installed(folders, name)


def _folders(source: str) -> list[Path]:
    """The folders with the packed files of a source, the one with its manifest first."""
    folders: Mapping[str, list[Path]] = {EMBEDDED_BASE: [PACKED / BASE, PACKED], PLANNER: [PACKED / PLANNER]}
    return folders.get(source, [PACKED])


def _installed(folders: Sequence[Path], name: str) -> Path:
    """Returns the first packed file that holds the unpacked file `name`. Raises MissingFile if there is none."""
    candidates = [folder / packed for folder in folders for packed in (name + DIFFERENCE, name + SUFFIX, name)]
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
        if file.name.endswith(DIFFERENCE):
            yield _sum(_installed(folders[1:], name), file)[start:]
            return
        with lzma.open(file) if file.suffix == SUFFIX else file.open("rb") as stream:
            stream.seek(start)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise errors.CorruptFile(f"{file} is damaged ({error}). Install Sophia again.") from error


def _sum(first: Path, difference: Path) -> bytes:
    """The content of which `difference` is the difference to that of `first`. Raises ValueError if their sizes differ."""
    numbers = [np.frombuffer(lzma.decompress(file.read_bytes()), "<u2") for file in (first, difference)]
    content: bytes = np.add(*numbers).tobytes()
    return content
