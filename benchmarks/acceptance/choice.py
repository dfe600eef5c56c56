"""Which model an acceptance is of: what stands behind the MODEL of `make acceptance`."""

import re
from pathlib import Path
from typing import Final

from serve_app.config import AppArgs, ModelArgs
from serve_app.config.sources import BUILT_IN, SIMULATED
from serve_app.weights import DEFAULT_REPOSITORY, auto

_REPOSITORY: Final = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_BUCKETS: Final = ("s3://", "gs://", "az://")


class WrongModel(Exception):
    """MODEL names no model. The message is one sentence for the user."""


def chosen_model(text: str, args: AppArgs, dit: str | None = None) -> ModelArgs:
    """Returns the settings of the model that `text` names.

    `text` is the name of a model in the configuration `args`, a built-in checkpoint, a hub repository (with `@revision`, if
    wanted), an object store's address, or a local folder or file. `dit` chooses a diffusion model of a source with several.
    """
    model = args.models.get(text) or _from_source(text, args)
    if dit is not None:
        model = model.model_copy(update={"dit": dit})
    settled, _ = auto.settled(text, model, auto.hardware_of_this_machine)
    if settled.source == SIMULATED:
        raise WrongModel(f"MODEL is {text!r}, a model that makes no music; {_allowed(args)}")
    return settled


def _from_source(text: str, args: AppArgs) -> ModelArgs:
    place = Path(text).expanduser()
    if text in BUILT_IN or text.startswith(_BUCKETS):
        return ModelArgs(source=text)
    if text and (place.exists() or text.startswith(("/", "./", "../", "~"))):
        return ModelArgs(source=str(place.resolve()))
    if found := _REPOSITORY.fullmatch(text):
        return ModelArgs(source=found[1], revision=found[2])
    raise WrongModel(f"MODEL is {text!r}, which names no model; {_allowed(args)}")


def _allowed(args: AppArgs) -> str:
    names = ", ".join(args.models)
    return (
        f"give a model of serve_config.yaml ({names}), one that comes with Sophia ({', '.join(BUILT_IN)}), a hub repository such "
        f"as {DEFAULT_REPOSITORY}, or a folder"
    )
