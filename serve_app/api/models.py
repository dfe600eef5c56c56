"""Routes for the served models."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from serve_app.api.auth import identify_caller
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import AUTHENTICATED, WITH_PARAMETERS, error_responses
from serve_app.api.fleet import (
    aligns_lyrics,
    count_ready,
    generates_noise,
    living_workers,
    note_on,
    of_model,
    variant_of,
)
from serve_app.api.planning import has_planner
from serve_app.api.views.models import AdapterView, ModelEntry, ModelList, ModelView, PlannerView
from serve_app.config import ModelArgs
from serve_app.errors import NotFound
from serve_app.music import COMMON_TASKS, MEDIA_TYPES, TASKS, TaskType, bounds_of, defaults_of
from serve_app.music.plan_fields import PLANNED_TASKS
from serve_app.plurals import alternatives
from serve_app.store import WorkerRow

router = APIRouter(tags=["models"])

ModelId = Annotated[str, Path(description="The model's name.", examples=["ace-step"])]


@router.get(
    "/v1/models",
    operation_id="models_v1_models_get",
    summary="List models",
    dependencies=[Depends(identify_caller)],
    responses=error_responses(*AUTHENTICATED),
)
async def list_models(context: ContextDep) -> ModelList:
    """The served models, what each of them supports, and the limits."""
    return await context.threads.run(models_of, context)


@router.get(
    "/v1/models/{model_id:path}",
    summary="Get a model",
    dependencies=[Depends(identify_caller)],
    responses=error_responses(*WITH_PARAMETERS, NotFound),
)
async def get_model(context: ContextDep, model_id: ModelId) -> ModelEntry:
    """A served model, as OpenAI's clients ask for it. What comes before a `/` in its name does not count."""
    name = model_id if model_id in context.args.models else model_id.rpartition("/")[2]
    if name not in context.args.models:
        raise NotFound(f"There is no model {model_id[:100]!r}. Use {alternatives(context.args.models)}")
    return _entry(name)


def _entry(name: str) -> ModelEntry:
    return ModelEntry(id=name, name=name)


def models_of(context: Context) -> ModelList:
    """The served models, what each of them supports, and the limits. Blocks."""
    workers = living_workers(context)
    default = context.args.default_model
    return ModelList(
        data=[_entry(name) for name in sorted(context.args.models, key=lambda name: name != default)],
        models=[_model(context, workers, name, model) for name, model in context.args.models.items()],
        formats=list(MEDIA_TYPES),  # type: ignore[arg-type]  # its keys are the formats
        max_duration_s=bounds_of("duration")["maximum"],
        max_variations=bounds_of("variations")["maximum"],
        max_best_of=bounds_of("best_of")["maximum"],
    )


def _model(context: Context, workers: list[WorkerRow], name: str, model: ModelArgs) -> ModelView:
    variant = variant_of(workers, name, model)
    tasks = list(TASKS[variant] if variant else COMMON_TASKS)
    return ModelView(
        name=name,
        is_default=name == context.args.default_model,
        source=model.source,
        revision=model.revision,
        variant=variant,
        tasks=tasks,
        defaults=defaults_of(variant, model.source) if variant else None,
        planner=_planner(model, tasks),
        aligns_lyrics=aligns_lyrics(workers, name),
        ready_workers=count_ready(of_model(workers, name)),
        adapters=[
            AdapterView(name=adapter, scale=settings.scale)
            for adapter, settings in context.store.adapters.known(name, model.adapters).items()
        ],
        noise=generates_noise(workers, name, model),
        note=note_on(workers, name, model),
    )


def _planner(model: ModelArgs, tasks: Sequence[TaskType]) -> PlannerView | None:
    if not has_planner(model):
        return None
    planned = [task for task in PLANNED_TASKS if task in tasks]
    return PlannerView(source=model.planner.source, thinking=model.planner.thinking, tasks=planned)
