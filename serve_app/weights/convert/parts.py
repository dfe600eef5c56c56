"""Finds the parts of a checkpoint among the files of a source, by their names alone.

The layouts are described in docs/CHECKPOINTS.md.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from serve_app import errors
from serve_app.weights.layout import DIFFUSERS_CLASSES, INDEX

Layout = Literal["diffusers", "original", "comfyui"]

TITLES: Final[dict[Layout, str]] = {
    "diffusers": "diffusers' layout, incomplete",
    "original": "ACE-Step's original layout",
    "comfyui": "ComfyUI's layout",
}

_SUFFIX: Final = ".safetensors"
_DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
_MODEL_STEM: Final = "model"
_DIFFUSERS_FOLDERS: Final = ("transformer", "condition_encoder")
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TEXT_FOLDER: Final = re.compile(r"text_encoder|qwen3-embedding-0\.6b", re.IGNORECASE)
_TOKENIZER_FOLDER: Final = re.compile(r"tokenizer|text_encoder|qwen3-embedding-0\.6b", re.IGNORECASE)
_NOT_A_DIT: Final = re.compile(r"qwen|5hz-lm|text_encoder", re.IGNORECASE)
_COMFYUI_DIT: Final = re.compile(r".*ace[-_.]?step.*1[-_.]?5.*\.safetensors", re.IGNORECASE)
# Other models' parts must not match: a VAE or a Qwen3 0.6B of theirs may have the same shapes.
_COMFYUI_VAE: Final = re.compile(r"(.*[^a-z])?ace([^a-z]|step).*vae.*\.safetensors", re.IGNORECASE)
_COMFYUI_TEXT: Final = re.compile(r".*qwen.*(0\.6b.*[^a-z]ace|embedding.*0\.6b).*\.safetensors", re.IGNORECASE)
_SHARD: Final = re.compile(r"-(\d+)-of-(\d+)(?:\.\w+)?\.safetensors$")
_ADAPTER: Final = re.compile(r"lora|lokr|lycoris", re.IGNORECASE)


@dataclass(frozen=True)
class WeightSet:
    """The safetensors files of one component, and its configuration file, None if it has none."""

    files: tuple[str, ...]
    config: str | None


@dataclass(frozen=True)
class Dit:
    """The diffusion model: which layout it is in, and the folder or file that names it in the setting `dit`."""

    layout: Layout
    name: str
    """In diffusers' layout the folder that contains `transformer`, empty for the root."""
    weights: WeightSet
    """In diffusers' layout those of the transformer."""


def find_dits(names: Iterable[str]) -> list[Dit]:
    """Returns every diffusion model among the files `names`."""
    known = set(names)
    folders = sorted({_folder(name) for name in known})
    diffusers = [dit for folder in folders if (dit := _diffusers_dit(known, folder))]
    original = [dit for folder in folders if (dit := _original_dit(known, folder))]
    taken = {file for dit in [*diffusers, *original] for file in dit.weights.files}
    files = sorted(name for name in known - taken if _matches(_COMFYUI_DIT, name) and not _ADAPTER.search(name))
    return [*diffusers, *original, *(_file_dit(name) for name in files)]


def choose_dit(title: str, setting: str, names: Iterable[str], choice: str | None) -> Dit | None:
    """Returns the diffusion model `choice`, or the only one; None if there is none at all.

    `title` names the source in errors, `setting` is the full name of the setting with the choice.

    Raises:
        WrongLayout: there are several and none is chosen, or the chosen one does not exist.
    """
    known = set(names)
    found = find_dits(known)
    listed = ", ".join(dit.name or "." for dit in found)
    if choice is None:
        if len(found) > 1:
            raise errors.WrongLayout(
                f"{title} has {len(found)} diffusion models: {listed}. Set {setting} to one of them."
            )
        return found[0] if found else None
    for dit in found:
        if (dit.name or ".") == choice.rstrip("/"):
            return dit
    if choice in known and choice.endswith(_SUFFIX):
        return _file_dit(choice)
    raise errors.WrongLayout(
        f"{setting}: {title} has no diffusion model {choice!r}. It has {listed or 'none'}; a file must end in {_SUFFIX}."
    )


def find_component(names: Iterable[str], dit: Dit, component: str) -> WeightSet | None:
    """Returns the weights of a component that stands beside the transformer in diffusers' layout, None if there are none."""
    return _weights(set(names), _join(dit.name, component), _DIFFUSERS_STEM)


def find_vae(names: Iterable[str]) -> WeightSet | None:
    """Returns the weights of the VAE, None if there are none."""
    known = set(names)
    folders = [folder for folder in _by_depth(_folder(name) for name in known) if _base(folder) == "vae"]
    return _first(known, folders, _DIFFUSERS_STEM) or _file(known, _COMFYUI_VAE)


def find_text_encoder(names: Iterable[str]) -> WeightSet | None:
    """Returns the weights of the text encoder, None if there are none."""
    known = set(names)
    folders = [folder for folder in _by_depth(_folder(name) for name in known) if _TEXT_FOLDER.fullmatch(_base(folder))]
    return _first(known, folders, _MODEL_STEM) or _file(known, _COMFYUI_TEXT)


def find_tokenizer(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the files of the text tokenizer, none if the source does not have it."""
    known = set(names)
    folders = _by_depth(_folder(name) for name in known)
    for folder in sorted(folders, key=lambda folder: _base(folder) != "tokenizer"):
        files = [_join(folder, name) for name in _TOKENIZER_FILES if _join(folder, name) in known]
        bases = {_base(file) for file in files}
        if _TOKENIZER_FOLDER.fullmatch(_base(folder)) and (
            "tokenizer.json" in bases or {"vocab.json", "merges.txt"} <= bases
        ):
            return tuple(files)
    return ()


def find_silence(names: Iterable[str], dit: Dit | None) -> str | None:
    """Returns the file with the latents of silence, the one beside `dit` if there are several."""
    found = _by_depth(name for name in names if _base(name) == "silence_latent.pt")
    beside = [name for name in found if dit is not None and _folder(name) == dit.name]
    return next(iter([*beside, *found]), None)


def check_shards(weights: WeightSet) -> None:
    """Raises MissingFile if the names of shards show that there are more of them."""
    found = [match for name in weights.files if (match := _SHARD.search(name))]
    total = int(found[0][2]) if found else 0
    missing = sorted(set(range(1, total + 1)) - {int(match[1]) for match in found})
    if missing:
        listed = ", ".join(str(number) for number in missing)
        raise errors.MissingFile(
            f"The shards {listed} of {total} are missing beside {weights.files[0]}. Fetch or copy the checkpoint again."
        )


def relevant(names: Iterable[str], dit: Dit) -> set[str]:
    """Returns the files that a conversion of `dit` may read. A folder of ComfyUI's may have thousands of others."""
    known = set(names)
    beside = [find_component(known, dit, part) for part in DIFFUSERS_CLASSES] if dit.layout == "diffusers" else []
    sets = [found for found in (dit.weights, find_vae(known), find_text_encoder(known), *beside) if found]
    files = {file for found in sets for file in found.files}
    configs = {found.config for found in sets if found.config}
    silence = find_silence(known, dit)
    return {*files, *configs, *find_tokenizer(known), *([silence] if silence else []), *({INDEX} & known)}


def _diffusers_dit(names: set[str], folder: str) -> Dit | None:
    """The diffusion model whose transformer is in `folder`."""
    if _base(folder) != "transformer":
        return None
    parent = _folder(folder)
    sets = [_weights(names, _join(parent, part), _DIFFUSERS_STEM) for part in _DIFFUSERS_FOLDERS]
    return Dit("diffusers", parent, sets[0]) if sets[0] and sets[1] else None


def _original_dit(names: set[str], folder: str) -> Dit | None:
    """The diffusion model in `folder`, which has a configuration but, unlike a language model, no tokenizer."""
    words = [_join(folder, name) for name in ("tokenizer.json", "vocab.json")]
    found = _weights(names, folder, _MODEL_STEM)
    if not found or not found.config or names.intersection(words):
        return None
    return None if _NOT_A_DIT.search(_base(folder)) else Dit("original", folder, found)


def _file_dit(name: str) -> Dit:
    return Dit("comfyui", name, WeightSet((name,), None))


def _weights(names: set[str], folder: str, stem: str) -> WeightSet | None:
    """The weight set `stem` in a folder: one file, shards, or a file with another dtype in its name (`STEM.fp16.safetensors`)."""
    config = _join(folder, "config.json")
    kept = config if config in names else None
    whole = _join(folder, stem + _SUFFIX)
    if whole in names:
        return WeightSet((whole,), kept)
    inside = sorted(name for name in names if _folder(name) == folder)
    shards = [name for name in inside if _base(name).startswith(stem) and _SHARD.search(name)]
    if shards:
        return WeightSet(tuple(shards), kept)
    others = [name for name in inside if re.fullmatch(rf"{stem}\.\w+\.safetensors", _base(name))]
    return WeightSet((others[0],), kept) if others else None


def _first(names: set[str], folders: list[str], stem: str) -> WeightSet | None:
    return next((found for folder in folders if (found := _weights(names, folder, stem))), None)


def _file(names: set[str], pattern: re.Pattern[str]) -> WeightSet | None:
    files = _by_depth(name for name in names if _matches(pattern, name) and not _ADAPTER.search(name))
    return WeightSet((files[0],), None) if files else None


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    return bool(pattern.fullmatch(_base(name)))


def _by_depth(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (name.count("/"), name))


def _folder(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
