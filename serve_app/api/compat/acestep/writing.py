"""The routes that write words: what a planner makes of a caption and lyrics or of a description, and ready-made examples."""

import random
from typing import Any, Literal

from fastapi import APIRouter

from serve_app.api.compat.acestep import samples
from serve_app.api.compat.acestep.bodies import Call, CallDep
from serve_app.api.compat.acestep.envelope import enveloped, without_planner
from serve_app.api.compat.acestep.fields import Given, fields_of, is_blank
from serve_app.api.compat.acestep.served import served_model
from serve_app.api.compat.acestep.songs import Wish, ignore_the_rest, wish_of
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.plan_calls import written_song
from serve_app.api.planning import has_planner
from serve_app.music.plan import Plan

router = APIRouter(include_in_schema=False)


@router.post("/format_input")
async def format_input(call: CallDep, context: ContextDep) -> Any:
    """Caption and lyrics as the model understands them best, and what else a planner says about the song."""
    fields = fields_of(call.body)
    temperature = fields.number("temperature")
    wish = wish_of(fields)
    model = served_model(context, wish.decided.get("model"))
    if not has_planner(context.args.models[model]):
        return without_planner(model)
    plan = await _written(call, context, "format", wish, temperature)
    written = {
        "caption": plan.caption,
        "lyrics": plan.lyrics,
        "bpm": plan.bpm,
        "key_scale": plan.keyscale or "",
        "time_signature": plan.timesignature or "",
        "duration": plan.duration,
        "vocal_language": plan.language,
    }
    return enveloped(written, fields.ignored)


@router.post("/v1/create_sample")
async def create_sample(call: CallDep, context: ContextDep) -> Any:
    """A song that a planner makes up for a description, or for one of Sophia's own."""
    fields = fields_of(call.body)
    query = fields.take("query")
    temperature = fields.number("temperature")
    is_instrumental = fields.switch("instrumental")
    wish = wish_of(fields)
    model = served_model(context, wish.decided.get("model"))
    if not has_planner(context.args.models[model]):
        return without_planner(model)
    wish.set("prompt", query if query and not is_blank(query.value) else Given("query", samples.any_description()))
    if is_instrumental:
        wish.decided["lyrics"] = ("instrumental", "[Instrumental]")
    plan = await _written(call, context, "sample", wish, temperature)
    written = {
        "caption": plan.caption,
        "lyrics": plan.lyrics,
        "bpm": plan.bpm,
        "keyscale": plan.keyscale or "",
        "duration": plan.duration,
        "timesignature": plan.timesignature or "",
        "vocal_language": plan.language,
    }
    return enveloped(written, fields.ignored)


@router.post("/create_random_sample")
async def create_random_sample(call: CallDep) -> dict[str, Any]:
    """One of Sophia's own descriptions or, in custom mode, one of its own songs."""
    given = fields_of(call.body).take("sample_type")
    kinds = {"simple_mode": samples.DESCRIPTIONS, "custom_mode": samples.SONGS}
    kind = "simple_mode" if given is None or is_blank(given.value) else str(given.value)
    if kind not in kinds:
        raise wrong_field("sample_type", shortened(kind), "must be 'simple_mode' or 'custom_mode'")
    return enveloped(random.choice(kinds[kind]))


async def _written(
    call: Call, context: Context, kind: Literal["format", "sample"], wish: Wish, temperature: Given | None
) -> Plan:
    """What the planner makes of a wish. Raises what `written_song` raises."""
    if temperature is not None:
        wish.set("plan_temperature", temperature)
    ignore_the_rest(wish)
    asked = wish.translated
    with asked.errors_named_as_given():
        return await written_song(call.request, context, call.owner, kind, asked.song)
