"""Packs exported pipelines as the package data that `source: embedded` unpacks: `python -m miniature.pack FOLDER`.

Weights are stored in bfloat16, those of the VAE in float16. Each weight file is compressed with LZMA as NAME.xz; all others are
copied. Turbo's files come first; in the folder `base` are base's manifest and the files in which it differs. A manifest lists the
unpacked files with their sizes and hashes. The same pipelines give the same bytes.
"""

import argparse
import hashlib
import lzma
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from serve_app.weights import manifest
from serve_app.weights.embedded import BASE, PACKED, SUFFIX
from serve_app.weights.layout import is_wanted

_LZMA: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]
"""Positions matter modulo two bytes, which a number has: it saves 6 % of the preset's size."""


def pack(turbo: Path, target: Path, base: Path | None = None) -> int:
    """Replaces `target` by the packed form of saved pipelines. Returns its size in bytes.

    Raises:
        FileNotFoundError: a pipeline's folder has no model_index.json.
    """
    shared = _contents(turbo)
    own = {} if base is None else _contents(base)
    shutil.rmtree(target, ignore_errors=True)
    _write_variant(target, shared, shared)
    if own:
        _write_variant(
            target / BASE, own, {name: content for name, content in own.items() if content != shared.get(name)}
        )
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs the variants in the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m miniature.pack", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="what `python -m miniature export` has written: turbo, and base if there"
    )
    parser.add_argument(
        "--target", type=Path, default=PACKED, help="where to write the packed files (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    base = chosen.folder / "base"
    try:
        size = pack(chosen.folder / "turbo", chosen.target, base if base.exists() else None)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(f"{chosen.target}: {size / 1e6:.1f} MB")


def _contents(source: Path) -> dict[str, bytes]:
    """The unpacked files of a saved pipeline by name."""
    if not (source / "model_index.json").is_file():
        raise FileNotFoundError(f"{source} has no model_index.json: name a folder that save_pretrained has written.")
    return {name: _content(source / name) for name in _names(source)}


def _write_variant(target: Path, unpacked: Mapping[str, bytes], written: Mapping[str, bytes]) -> None:
    """Writes files and the manifest of all files that the variant has when it is unpacked."""
    for name, content in written.items():
        _write(target, name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in unpacked.items()}
    sizes = {name: len(content) for name, content in unpacked.items()}
    commit = hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()[:12]
    manifest.write_listed(target, "embedded", commit, sizes, hashes)


def _names(source: Path) -> list[str]:
    found = (file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
    return sorted(name for name in found if is_wanted(name))


def _content(file: Path) -> bytes:
    """A file's content, with all tensors in two bytes a number if it is a weight file."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    import torch
    from safetensors.torch import load_file, save

    dtype = torch.float16 if file.parent.name == "vae" else torch.bfloat16
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def _write(target: Path, name: str, content: bytes) -> None:
    is_weights = name.endswith(".safetensors")
    file = target / (name + SUFFIX if is_weights else name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(content, filters=_LZMA) if is_weights else content)


if __name__ == "__main__":
    main()
