"""What becomes of the fields of a submission that concern its plan."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from serve_app.api.context import Context
from serve_app.api.field_errors import wrong_field
from serve_app.config import AppArgs, ModelArgs
from serve_app.engine.planner.orders import order
from serve_app.engine.planner.requests import wishes_of
from serve_app.errors import NotFound, WrongField
from serve_app.music import MAX_SEED, MAX_VARIATIONS, MusicRequest, spellings
from serve_app.music.given_plan import with_given_plan
from serve_app.music.plan import Plan, Thinking
from serve_app.music.plan_fields import PLANNED_TASKS
from serve_app.plurals import alternatives
from serve_app.store import NewPlan, PlanState

_CODES_TASKS: Final = ("text2music",)
"""The tasks whose songs can be played from a plan's codes."""


class PlannedRequest(NamedTuple):
    """A request that says how it is planned."""

    request: MusicRequest
    plan: Plan | None
    """The plan, if the request brings it with its codes, so that there is nothing left to plan."""
    warnings: tuple[str, ...]


async def with_plan(context: Context, request: MusicRequest, owner: str) -> PlannedRequest:
    """The request with what its `plan` says, the default of `thinking`, and a length in seconds unless a planner decides it.

    Raises InvalidRequest and StoreUnavailable.
    """
    earlier = None
    if request.plan is not None and request.plan.job is not None:
        earlier = await context.threads.run(_plan_of_job, context, request.plan.job, owner)
    try:
        filled, plan = with_given_plan(request, earlier)
    except ValueError as error:
        field, _, message = str(error).partition(": ")
        raise wrong_field(field, "", message) from error
    thinking, warnings = _thinking(context.args, filled)
    filled = filled.model_copy(update={"thinking": thinking, **kept_language(request)})
    return PlannedRequest(filled if filled.is_planned else with_estimated_length(filled), plan, warnings)


def with_estimated_length(request: MusicRequest) -> MusicRequest:
    """The request with the length that its lyrics suggest, if it leaves the length open."""
    if not request.auto_duration:
        return request
    return request.model_copy(update={"duration": request.estimated_duration, "auto_duration": False})


def plan_seed(request: MusicRequest, seed: int) -> dict[str, int]:
    """The seed of a request's plan, if it has one; `seed` is that of its song."""
    if not request.is_planned:
        return {}
    if request.plan_seed is None:
        return {"plan_seed": seed}
    return {"plan_seed": secrets.randbelow(MAX_SEED - MAX_VARIATIONS)} if request.plan_seed == -1 else {}


def new_plan(request: MusicRequest, plan: Plan | None) -> NewPlan | None:
    """The plan of a job: one to make, one that the request brings, or none."""
    if not request.is_planned and plan is None:
        return None
    audio_s = request.duration * request.played_songs
    return NewPlan(order(wishes_of(request)), audio_s, result=plan.to_json() if plan else None)


def wrong_thinking(args: AppArgs, thinking: object, model: object) -> Iterator[WrongField]:
    """An error for a request that wants to be planned by a model without a planner."""
    wanted = spellings.thinking(thinking)
    name = args.default_model if model is None else model
    if wanted not in ("metadata", "codes") or not isinstance(name, str) or name not in args.models:
        return
    if not has_planner(args.models[name]):
        yield WrongField("thinking", str(thinking), f"must be 'none', because {name!r} has no planner; {_advice(args)}")


def wrong_planner(args: AppArgs, model: object) -> Iterator[WrongField]:
    """An error for a model without a planner that is asked for a plan."""
    name = args.default_model if model is None else model
    if isinstance(name, str) and name in args.models and not has_planner(args.models[name]):
        yield WrongField("model", name, f"has no planner; {_advice(args)}")


def _advice(args: AppArgs) -> str:
    able = [name for name, served in args.models.items() if has_planner(served)]
    return (
        f"the models that have one: {alternatives(able)}"
        if able
        else "no model of this service has one (the operator gives a model one with models.NAME.planner)"
    )


def has_planner(model: ModelArgs) -> bool:
    """Whether songs of the model can be planned."""
    return model.planner.is_on


def default_thinking(model: ModelArgs) -> Thinking:
    """What is planned for requests that do not say it."""
    return model.planner.thinking if has_planner(model) else "none"


def _plan_of_job(context: Context, name: str, owner: str) -> Plan:
    """The plan of the job that a request's `plan` names. Raises InvalidRequest."""
    try:
        found = context.store.plans.of_job(name.removeprefix("job:"), owner)
    except NotFound as error:
        raise wrong_field("plan", name, f"names no plan of yours. {error.message}") from error
    if found.state is not PlanState.DONE or found.result is None:
        raise wrong_field("plan", name, f"names a job that has no plan, because its planning is {found.state}")
    return Plan.from_json(found.result)


def _thinking(args: AppArgs, request: MusicRequest) -> tuple[Thinking | None, tuple[str, ...]]:
    """What is planned, and a warning if the request asks for more. None stands for the default, none."""
    task = request.task_type
    if request.thinking is None:
        served = args.models[request.model or args.default_model or ""]
        default = default_thinking(served) if task in PLANNED_TASKS else "none"
        takes_codes = task in _CODES_TASKS and request.audio_codes is None
        thinking = "metadata" if default == "codes" and not takes_codes else default
        return (None if thinking == "none" else thinking), ()
    if request.thinking != "none" and task not in PLANNED_TASKS:
        return "none", (f"thinking is ignored: task_type {task!r} takes from its source what would be planned.",)
    if request.thinking == "codes" and task not in _CODES_TASKS:
        return "metadata", (
            f"thinking plans the metadata only: task_type {task!r} starts from its source, not from codes.",
        )
    return request.thinking, ()


def kept_language(request: MusicRequest) -> Mapping[str, Any]:
    """What a request that names its language says to the planner: to keep it."""
    names_it = "vocal_language" in request.model_fields_set and "plan_language" not in request.model_fields_set
    return {"plan_language": False} if names_it else {}
