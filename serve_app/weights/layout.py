"""The diffusers layout of an ACE-Step checkpoint: which components it has and which files they consist of."""

import json
import re
from pathlib import Path
from typing import Any, Final

from serve_app import errors

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

RANDOM_MARKER: Final = "RANDOM_WEIGHTS"
"""A checkpoint that has a file of this name has random weights."""

AGAIN: Final = "delete it and fetch or copy it again."

_CONVERT: Final = (
    "use a repository whose name ends in -diffusers, or convert it with scripts/convert_ace_step_to_diffusers.py of "
    "the diffusers repository"
)
# Only files directly in a component's folder. This also prevents a hub from writing to other paths.
_WANTED: Final = re.compile(rf"model_index\.json|({'|'.join(COMPONENTS)})/[\w.-]+\.(json|safetensors|txt|model|jinja)")


def is_wanted(name: str) -> bool:
    """Whether the pipeline reads the file `name`. Other files of a repository are not fetched."""
    return bool(_WANTED.fullmatch(name))


def wrong_layout(where: str, names: set[str]) -> errors.LoadError:
    """Returns the error for a checkpoint without model_index.json. The cause is inferred from `names`, its other files."""
    tops = {name.split("/")[0] for name in names}
    if {"transformer", "condition_encoder"} <= tops:
        return errors.MissingFile(f"{where} has no model_index.json. Fetch or copy the checkpoint again.")
    if tops & {"silence_latent.pt", "Qwen3-Embedding-0.6B"} or any(name.endswith(".safetensors") for name in tops):
        return errors.WrongLayout(f"{where} is in ACE-Step's original layout, which diffusers cannot load: {_CONVERT}.")
    return errors.WrongLayout(f"{where} has no model_index.json, so it is not a diffusers checkpoint: {_CONVERT}.")


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
