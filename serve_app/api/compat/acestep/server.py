"""The routes that say what the server is and does, and those that would load a model."""

import asyncio
from contextlib import suppress
from typing import Any, Final

from fastapi import APIRouter, Request

from serve_app import __version__
from serve_app.api.auth import Owner
from serve_app.api.compat.acestep.bodies import CallDep
from serve_app.api.compat.acestep.envelope import enveloped
from serve_app.api.compat.acestep.fields import fields_of, is_blank
from serve_app.api.compat.acestep.served import served_model
from serve_app.api.compat.acestep.songs import model_name
from serve_app.api.context import Context, ContextDep
from serve_app.api.models import list_models
from serve_app.api.planning import has_planner
from serve_app.api.threads import SingleFlight
from serve_app.api.views.health import Ready
from serve_app.api.views.models import ModelView
from serve_app.errors import StoreUnavailable
from serve_app.jobs import Status

_MEASURED_JOBS: Final = 20
_TASKS: Final = ("text2music", "cover", "cover-nofsq", "repaint", "extract", "lego", "complete")
"""ACE-Step's tasks; Sophia has more."""

router = APIRouter(include_in_schema=False)


@router.get("/health")
async def health(request: Request, context: ContextDep) -> dict[str, Any]:
    """Whether Sophia answers, and whether songs can be made now. It needs no key."""
    readiness: SingleFlight[Ready] = request.app.state.readiness
    is_ready = False
    with suppress(TimeoutError, StoreUnavailable):
        is_ready = (await asyncio.wait_for(readiness.result(), context.args.api.ready_timeout_s)).ready
    model = context.args.default_model
    return enveloped(
        {
            "status": "ok",
            "service": "ACE-Step API",
            "version": __version__,
            "models_initialized": is_ready,
            "llm_initialized": _planner_of(context, model) is not None,
            "loaded_model": model,
            "loaded_lm_model": None if _planner_of(context, model) is None else "planner",
        }
    )


def _planner_of(context: Context, model: str | None) -> str | None:
    served = context.args.models.get(model or "")
    return served.planner.source if served is not None and has_planner(served) else None


@router.get("/v1/model_inventory")
async def model_inventory(context: ContextDep, _: Owner) -> dict[str, Any]:
    """The served models."""
    return enveloped(await _inventory(context))


async def _inventory(context: Context) -> dict[str, Any]:
    """Every served model counts as loaded, because it takes tasks: Sophia loads it when one needs it."""
    served = (await list_models(context)).models
    planner = _planner_of(context, context.args.default_model)
    planners = sorted({model.planner.source for model in served if model.planner})
    return {
        "models": [_inventory_entry(model) for model in sorted(served, key=lambda model: not model.is_default)],
        "default_model": context.args.default_model,
        "lm_models": [{"name": name, "is_loaded": True} for name in planners],
        "loaded_lm_model": planner,
        "llm_initialized": planner is not None,
    }


def _inventory_entry(model: ModelView) -> dict[str, Any]:
    return {
        "name": model.name,
        "is_default": model.is_default,
        "is_loaded": True,
        "supported_task_types": [task for task in _TASKS if task in model.tasks],
    }


@router.get("/v1/stats")
async def stats(context: ContextDep, owner: Owner) -> dict[str, Any]:
    """Jobs by state, and how long the caller's last ones took."""
    counts = await context.threads.run(context.store.backlog.counts)
    last = await context.threads.run(
        context.store.jobs.page, owner=owner, states=(Status.SUCCEEDED,), limit=_MEASURED_JOBS
    )
    times = [job.finished_at - job.started_at for job in last if job.finished_at and job.started_at]
    jobs = {
        "total": sum(counts.values()),
        "queued": counts[Status.QUEUED],
        "running": counts[Status.RUNNING],
        "succeeded": counts[Status.SUCCEEDED],
        "failed": counts[Status.FAILED] + counts[Status.EXPIRED],
    }
    return enveloped(
        {
            "jobs": jobs,
            "queue_size": jobs["queued"],
            "queue_maxsize": context.args.queue.max_jobs,
            "avg_job_seconds": round(sum(times) / len(times), 3) if times else 0.0,
        }
    )


@router.post("/v1/init")
async def init(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Do nothing for a served model, which Sophia loads by itself, and refuse any other."""
    fields = fields_of(call.body)
    given = fields.take("model")
    slot = fields.number("slot")
    named = (given.name, model_name(given.value)) if given is not None and not is_blank(given.value) else None
    model = served_model(context, named)
    inventory = await _inventory(context)
    planner = _planner_of(context, model)
    return enveloped(
        {
            "message": f"{model!r} is served",
            "slot": slot.value if slot else 1,
            "loaded_model": model,
            "loaded_lm_model": planner,
            "models": inventory["models"],
            "lm_models": inventory["lm_models"],
            "llm_initialized": planner is not None,
        }
    )


@router.post("/v1/reinitialize")
async def reinitialize(_: CallDep) -> dict[str, Any]:
    """Do nothing: Sophia replaces workers by itself."""
    return enveloped({"message": "All models are served", "reloaded": []})
