"""What a request's adapters must be: adapters of its model, which an operator may add and remove while the service runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.api.context import Context
from serve_app.config import AdapterArgs
from serve_app.errors import WrongField
from serve_app.music import LoraUse, spellings
from serve_app.music.adapter_fields import MAX_ADAPTERS
from serve_app.plurals import alternatives


async def known_adapters(context: Context, model: object) -> dict[str, AdapterArgs] | None:
    """The adapters of a model by name; None if there is no such model. A `model` of None stands for the default model."""
    name = context.args.default_model if model is None else model
    if not isinstance(name, str) or name not in context.args.models:
        return None
    return await context.threads.run(context.store.adapters.known, name, context.args.models[name].adapters)


def wrong_adapters(lora: Any, known: Mapping[str, AdapterArgs] | None) -> Iterator[WrongField]:
    """The names in a request's `lora` of which the model has no adapter. `MusicRequest` checks everything else about them.

    `known` is what `known_adapters` has returned. A request for a model that does not exist has no wrong adapters.
    """
    if known is None:
        return
    allowed = "must be left out, because the model has no adapters"
    if known:
        allowed = f"must be one of the model's adapters: {alternatives(known)}"
    entries = spellings.adapters(lora)
    for i, entry in enumerate(entries[:MAX_ADAPTERS] if isinstance(entries, list) else []):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name not in known:
            yield WrongField(f"lora.{i}.name", name, allowed)


def with_scales(lora: list[LoraUse], known: Mapping[str, AdapterArgs]) -> list[LoraUse]:
    """`lora` with the adapters' own scales where it has none, so that every attempt generates the same song."""
    return [use if use.scale is not None else LoraUse(name=use.name, scale=known[use.name].scale) for use in lora]
