"""The routes that load and unload adapters.

In ACE-Step they change the whole server. Here they say what the later tasks of the same API key play with, and only adapters that
the operator has listed can be named.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter

from serve_app.api.auth import Owner
from serve_app.api.compat.acestep.bodies import CallDep
from serve_app.api.compat.acestep.envelope import enveloped
from serve_app.api.compat.acestep.fields import Given, fields_of, is_blank
from serve_app.api.compat.acestep.names import FAMILY_NAME
from serve_app.api.compat.acestep.songs import Wish
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.errors import Conflict
from serve_app.music.adapter_fields import MAX_ADAPTERS
from serve_app.plurals import alternatives
from serve_app.store.client_settings import Settings

LORA: Final = "/v1/lora"
_ALIAS: Final = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_UNSET: Final[Settings] = {"adapters": {}, "active": None, "on": False}
"""`adapters` has, by the client's name for it, the name and the scale of each loaded adapter."""

router = APIRouter(prefix=LORA, include_in_schema=False)


@router.post("/load")
async def load(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Play later tasks with an adapter, whose name is that of the operator or ends a path."""
    fields = fields_of(call.body)
    path = fields.take("lora_path")
    name = await _known_adapter(context, path or Given("lora_path", ""))
    alias = fields.take("adapter_name")
    called = name if alias is None or is_blank(alias.value) else _alias(alias)
    return await _changed(context, call.owner, f"{name!r} is loaded", partial(_loaded, name, called))


@router.post("/unload")
async def unload(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Play later tasks without adapters."""
    return await _changed(context, call.owner, "No adapter is loaded", lambda _: _UNSET)


@router.post("/toggle")
async def toggle(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Switch the loaded adapter on or off."""
    is_on = fields_of(call.body).switch("use_lora")
    message = f"The adapter is {'on' if is_on else 'off'}"
    return await _changed(context, call.owner, message, lambda settings: {**settings, "on": is_on})


@router.post("/scale")
async def scale(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Set how strongly an adapter counts, from 0 to 1: the one that is named, or the active one."""
    fields = fields_of(call.body)
    given = fields.number("scale")
    if given is None or not 0 <= given.value <= 1:
        raise wrong_field("scale", shortened(given.value) if given else "", "must be a number from 0 to 1")
    alias = fields.take("adapter_name")
    called = None if alias is None or is_blank(alias.value) else str(alias.value)
    return await _changed(context, call.owner, f"The scale is {given.value:g}", partial(_scaled, called, given.value))


@router.get("/status")
async def status(context: ContextDep, owner: Owner) -> dict[str, Any]:
    """The loaded adapters."""
    found = await context.threads.run(context.store.client_settings.get, owner, FAMILY_NAME)
    return enveloped(_status(_UNSET | found))


async def take_adapter(context: Context, owner: str, wish: Wish, model: str) -> None:
    """Let a song be played with the active adapter, if one is on and the model has it."""
    found = await context.threads.run(context.store.client_settings.get, owner, FAMILY_NAME)
    settings = _UNSET | found
    if not settings["on"] or settings["active"] is None:
        return
    adapter = settings["adapters"][settings["active"]]
    given = Given("lora", adapter["name"])
    if adapter["name"] in await _adapters_of(context, model):
        wish.set("lora", Given(given.name, [adapter]))
    else:
        wish.fields.ignore(given, f"the model {model!r} has no such adapter")


async def _adapters_of(context: Context, model: str) -> list[str]:
    known = context.store.adapters.known
    return list(await context.threads.run(known, model, context.args.models[model].adapters))


async def _known_adapter(context: Context, given: Given) -> str:
    """The operator's adapter that a client names. Raises InvalidRequest, which lists the adapters."""
    names = sorted({name for model in context.args.models for name in await _adapters_of(context, model)})
    wanted = given.value.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(given.value, str) else ""
    found = next((name for name in names if name in (given.value, wanted)), None)
    if found is None:
        allowed = f"must be one of the adapters: {alternatives(names)}" if names else "names no adapter: there are none"
        raise wrong_field(
            given.name, shortened(given.value), f"{allowed}. An operator adds adapters with 'sophia adapters add'"
        )
    return found


def _alias(given: Given) -> str:
    if not isinstance(given.value, str) or not _ALIAS.fullmatch(given.value):
        raise wrong_field(given.name, shortened(given.value), "must be a name of at most 64 characters")
    return given.value


def _loaded(name: str, alias: str, settings: Settings) -> Settings:
    adapters = {**settings["adapters"], alias: {"name": name, "scale": 1.0}}
    if len(adapters) > MAX_ADAPTERS:
        raise wrong_field("lora_path", name, f"would be more than {MAX_ADAPTERS} loaded adapters: unload them first")
    return {"adapters": adapters, "active": alias, "on": True}


def _scaled(alias: str | None, scale: float, settings: Settings) -> Settings:
    adapters = settings["adapters"]
    called = settings["active"] if alias is None else alias
    if not adapters:
        raise Conflict("No adapter is loaded")
    if called not in adapters:
        raise wrong_field("adapter_name", shortened(called), f"must be a loaded adapter: {alternatives(adapters)}")
    return {**settings, "adapters": {**adapters, called: {**adapters[called], "scale": scale}}}


async def _changed(
    context: Context, owner: str, message: str, change: Callable[[Settings], Settings]
) -> dict[str, Any]:
    changed = await context.threads.run(
        context.store.client_settings.change, owner, FAMILY_NAME, lambda settings: change(_UNSET | settings)
    )
    return enveloped({"message": message, **_status(changed)})


def _status(settings: Settings) -> dict[str, Any]:
    scales = {alias: adapter["scale"] for alias, adapter in settings["adapters"].items()}
    active = settings["active"]
    return {
        "lora_loaded": bool(scales),
        "use_lora": bool(scales) and settings["on"],
        "lora_scale": scales.get(active, 1.0),
        "adapter_type": "lora" if scales else None,
        "scales": scales,
        "active_adapter": active,
        "adapters": list(scales),
    }
