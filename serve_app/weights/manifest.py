"""The list of a checkpoint's files with their sizes and hashes, kept beside them: what makes a copy a whole one."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve_app import errors
from serve_app.weights.layout import AGAIN, need, read_json
from serve_app.weights.progress import Progress, Report

NAME: Final = "sophia.manifest.json"
_BLOCK_BYTES: Final = 1 << 20


def write(folder: Path, source: str, commit: str, hashes: Mapping[str, str]) -> None:
    """Vouches for the files in `folder` whose SHA-256 (hex) `hashes` has. Written last, so that it means: all is here."""
    write_listed(folder, source, commit, {name: (folder / name).stat().st_size for name in hashes}, hashes)


def write_listed(folder: Path, source: str, commit: str, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> None:
    """A manifest in `folder` of files that may lie elsewhere: their sizes in bytes and SHA-256 (hex) by name."""
    files = {name: {"size": sizes[name], "sha256": sha256} for name, sha256 in sorted(hashes.items())}
    write_whole(folder / NAME, json.dumps({"source": source, "commit": commit, "files": files}, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether the manifest is here and every file of it has its size: milliseconds, as nothing is read."""
    if not (folder / NAME).exists():
        return False
    return all(has(folder / name, said["size"]) for name, said in _files(read_json(folder / NAME)).items())


def known_hashes(content: bytes) -> dict[str, str]:
    """File -> SHA-256 (hex) of a manifest that lies somewhere else; nothing when it is not a manifest."""
    try:
        return {name: str(said["sha256"]) for name, said in _files(json.loads(content)).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def check_hashes(folder: Path, report: Report) -> int:
    """Reads every file of the checkpoint and compares its hash, told to `report` as phase "verify". The bytes read.

    Raises:
        MissingFile: there is no manifest, or a file of it is gone.
        CorruptFile: naming the file, the hash that it should have and the one that it has.
    """
    if not (folder / NAME).exists():
        raise errors.MissingFile(
            f"{folder} has no {NAME}, so there are no hashes to compare with. 'sophia weights pull' writes one."
        )
    files = _files(read_json(folder / NAME))
    progress = Progress(report, "verify", "checking", 0, sum(said["size"] for said in files.values()))
    for name, said in files.items():
        found = digest(need(folder / name), progress).hexdigest()
        if found != said["sha256"]:
            raise errors.CorruptFile(
                f"{folder / name} has sha256 {found} where its manifest says {said['sha256']}: {AGAIN}"
            )
    return progress.total


def digest(file: Path, progress: Progress | None = None) -> "hashlib._Hash":
    """The SHA-256 of a file so far, to which more may be added; of nothing when there is no file."""
    found = hashlib.sha256()
    if file.exists():
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                found.update(block)
                if progress:
                    progress.add(len(block))
    return found


def has(file: Path, size: int) -> bool:
    """Whether there is a file of `size` bytes."""
    return file.is_file() and file.stat().st_size == size


def write_whole(file: Path, text: str) -> None:
    """A small file, there whole or not at all, even if others write it at the same time, from other containers, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _files(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(content["files"])
