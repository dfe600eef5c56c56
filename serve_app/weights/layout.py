"""The diffusers layout of an ACE-Step checkpoint: which components it has and which files they consist of."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from serve_app import errors

INDEX: Final = "model_index.json"
"""The file that names the components. A folder in another layout has none."""

DIFFUSERS_CLASSES: Final = {
    "vae": "AutoencoderOobleck",
    "transformer": "AceStepTransformer1DModel",
    "condition_encoder": "AceStepConditionEncoder",
    "audio_tokenizer": "AceStepAudioTokenizer",
    "audio_token_detokenizer": "AceStepAudioTokenDetokenizer",
}
"""Component -> its class in model_index.json, for components that diffusers itself defines."""

OPTIONAL: Final = ("audio_tokenizer", "audio_token_detokenizer")
COMPONENTS: Final = (*DIFFUSERS_CLASSES, "text_encoder", "tokenizer", "scheduler")

ENCODER_FILE: Final = "vae/encoder.safetensors"
"""The VAE's encoder, if it is not in the VAE's own file, as in the embedded checkpoint (see narrow_encoder.py)."""

LYRIC_HEADS: Final = "lyric_alignment_layers_config"
"""The entry of a transformer's config.json that names the attention heads that follow the lyrics, as in the original."""

RANDOM_MARKER: Final = "RANDOM_WEIGHTS"
"""A checkpoint that has a file of this name has random weights."""

AGAIN: Final = "delete it and fetch or copy it again."

# Only files directly in a component's folder. This also prevents a hub from writing to other paths.
_WANTED: Final = re.compile(rf"model_index\.json|({'|'.join(COMPONENTS)})/[\w.-]+\.(json|safetensors|txt|model|jinja)")


def is_wanted(name: str) -> bool:
    """Whether the pipeline reads the file `name`. Other files of a repository are not fetched."""
    return bool(_WANTED.fullmatch(name))


def is_complete(names: Collection[str]) -> bool:
    """Whether a checkpoint with the files `names` has all that a pipeline needs, going by names."""
    known = set(names)
    models = [(part, "diffusion_pytorch_model") for part in DIFFUSERS_CLASSES if part not in OPTIONAL]
    weights = [f"{part}/{stem}.safetensors" for part, stem in [*models, ("text_encoder", "model")]]
    configs = [f"{part}/config.json" for part, _ in [*models, ("text_encoder", "model")]]
    has_weights = all({name, f"{name}.index.json"} & known for name in weights)
    has_tokenizer = "tokenizer/tokenizer.json" in known or {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= known
    return has_weights and has_tokenizer and known.issuperset([INDEX, *configs, "scheduler/scheduler_config.json"])


def wrong_layout(where: str, names: set[str]) -> errors.LoadError:
    """Returns the error for a source with the files `names`, among which no diffusion model was found."""
    tops = {name.split("/")[0] for name in names}
    if {"transformer", "condition_encoder"} <= tops:
        return errors.MissingFile(
            f"{where} is an incomplete diffusers checkpoint: it lacks {INDEX}, or weights of transformer or condition_encoder. "
            "Fetch or copy the checkpoint again."
        )
    pickled = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pth")))
    if pickled:
        return errors.WrongLayout(
            f"{where} has weights in {pickled[0]}, a format whose reading can run code. Use a checkpoint with safetensors files."
        )
    return errors.WrongLayout(
        f"{where} is not an ACE-Step 1.5 checkpoint: it has neither {INDEX} nor safetensors files in the layouts of ACE-Step or "
        "ComfyUI. docs/CHECKPOINTS.md lists the layouts that Sophia reads."
    )


def names_components(index: Path) -> bool:
    """Whether a model_index.json names all components, or is too damaged to tell. `check.verify` reports what is wrong with it."""
    try:
        entries = read_json(index)
    except errors.CorruptFile:
        return True
    return all(name in entries for name in COMPONENTS if name not in OPTIONAL)


def need(file: Path) -> Path:
    """Returns `file`. Raises MissingFile if it does not exist."""
    if not file.exists():
        raise errors.MissingFile(
            f"{file} is missing. Fetch or copy the checkpoint again; files that already exist are kept."
        )
    return file


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in `file`. Raises MissingFile or CorruptFile."""
    try:
        content = json.loads(need(file).read_bytes())
    except ValueError as error:
        raise errors.CorruptFile(f"{file} is not JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise errors.CorruptFile(f"{file} is not a JSON object: {AGAIN}")
    return content
