"""Routes for plans: that of a job, and plans without songs."""

from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from serve_app import errors
from serve_app.api.audio_names import check_sound, find_input, find_song
from serve_app.api.auth import Owner
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import SUBMISSION, WITH_PARAMETERS, error_responses
from serve_app.api.field_errors import wrong_field, wrong_fields_error
from serve_app.api.fleet import has_planners_alone, living_workers
from serve_app.api.parameters import OwnJob
from serve_app.api.plan_calls import PlanCall, check_for_planner, plan_of_call, plan_of_song, written_song
from serve_app.api.planning import default_thinking, with_plan, wrong_planner
from serve_app.api.submission import wrong_fields
from serve_app.api.submission_route import SubmissionRoute
from serve_app.api.views.plans import PlanView
from serve_app.artifacts.latents import codes_from_file
from serve_app.config import AppArgs
from serve_app.engine.planner.orders import order
from serve_app.engine.planner.protocol import Sampling, Wishes
from serve_app.music import MAX_SEED, MusicRequest, SongName, song_of, spellings
from serve_app.music.audio_fields import AudioName
from serve_app.music.plan import CODES_PER_SECOND, Plan
from serve_app.music.plan_fields import SongCodes
from serve_app.music.song_fields import LONGEST_S
from serve_app.store import NewPlan, PlanState

router = APIRouter(tags=["plans"], route_class=SubmissionRoute)

_UNDERSTANDING: Final = Sampling(temperature=0.3, guidance=1.0, top_p=1.0)
"""How the original says what a song is."""

_RESPONSES: Final = error_responses(
    *SUBMISSION, errors.DeadlineExceeded, errors.GenerationError, errors.ServiceStopping, errors.ArtifactsUnavailable
)


class _Heard(NamedTuple):
    """A song that is to be described."""

    codes: tuple[int, ...]
    """Its audio codes; empty if a worker must find them."""
    source: str
    """The name of the recording, if a worker must hear it."""
    seconds: float


class UnderstandRequest(BaseModel):
    """Which song to describe: one of `source` and `audio_codes` is required."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    source: AudioName | None = Field(
        None,
        description="What to describe: `job:ID/N` for song N (from 0) of one of your jobs; `input:SHA256`, an upload (POST "
        "/v1/inputs); or an https:// address. If its audio codes were not kept, a worker finds them first, between two songs.",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/0"],
    )
    audio_codes: SongCodes | None = Field(
        None,
        validate_default=True,
        description="The song's audio codes, five a second, from 0 to 63,999. Also ACE-Step's text "
        "`<|audio_code_N|><|audio_code_M|>…`, as GET /v1/jobs/{job_id}/codes returns it.",
        examples=[[1234, 5678]],
    )
    model: str | None = Field(
        None,
        description="The model whose planner listens. Default: the service's default model.",
        examples=["ace-step"],
    )
    plan_seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Seed of the answer: the same request gives the same. Default: 0.",
        examples=[0],
    )
    plan_temperature: float = Field(
        _UNDERSTANDING.temperature,
        ge=0,
        le=2,
        description="How freely the planner chooses its words. Default: 0.3, as in ACE-Step.",
        examples=[0.3],
    )
    deadline_s: float | None = Field(
        None,
        ge=1,
        le=604_800,
        description="Maximum time until the answer, in seconds. Default: 3600, unless the operator has set another value.",
        examples=[60],
    )
    priority: int = Field(5, ge=0, le=9, description="Order among your own plans: 9 first, 0 last.", examples=[5])

    @field_validator("audio_codes", mode="before")
    @classmethod
    def _codes(cls, value: Any) -> Any:
        return spellings.audio_codes(value)

    @field_validator("audio_codes")
    @classmethod
    def _one_of_both(cls, value: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if "source" in info.data and (value is None) == (info.data["source"] is None):
            raise ValueError("is required, or `source`, but not both")
        return value


@router.get(
    "/v1/jobs/{job_id}/plan",
    summary="Get the plan of a job",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound, errors.Conflict),
)
async def get_plan(context: ContextDep, job: OwnJob) -> PlanView:
    """What a planner has decided about the job's songs, with their audio codes.

    A request with it as its `plan`, as it is or with changes, uses it instead of a new one; `job:ID` alone names it. Only jobs
    with `thinking` or a `plan` with codes have one.
    """
    found = await context.threads.run(context.store.plans.of_job, job.id, job.owner)
    if found.state is not PlanState.DONE or found.result is None:
        why = f" ({found.error.code}): {found.error.message}" if found.error and found.state.final else ""
        raise errors.Conflict(f"Job {job.id} has no plan: its planning is {found.state}{why}")
    return _view(Plan.from_json(found.result))


@router.post("/v1/plan", summary="Plan a song without making it", responses=_RESPONSES)
async def make_plan(body: MusicRequest, request: Request, context: ContextDep, owner: Owner) -> PlanView:
    """The plan that POST /v1/jobs with the same body and seeds would make, and no song.

    `thinking` says how much is planned; without it and without a default of the model, codes. The answer comes when the plan is
    made. If the caller disconnects, planning ends.
    """
    check_for_planner(context.args, body)
    if body.thinking == "none":
        raise wrong_field("thinking", "none", "must be 'metadata' or 'codes', because there is nothing else to do")
    song = (await with_plan(context, _thoughtful(context.args, body), owner)).request
    if not song.is_planned:
        raise wrong_field(
            "plan", "", "leaves nothing to plan, because it has the codes, or its task_type is not planned"
        )
    return _view(await plan_of_song(request, context, owner, "plan", song))


@router.post("/v1/format", summary="Write caption and lyrics anew", responses=_RESPONSES)
async def format_song(body: MusicRequest, request: Request, context: ContextDep, owner: Owner) -> PlanView:
    """`prompt` and `lyrics` as the model understands them best, with tempo, key, time signature, length and language.

    Fields that the request has are kept. The answer comes when it is written, without audio codes. Fields about rendering have
    no effect.
    """
    return _view(await written_song(request, context, owner, "format", body))


@router.post("/v1/sample", summary="Make up a song for a description", responses=_RESPONSES)
async def sample_song(body: MusicRequest, request: Request, context: ContextDep, owner: Owner) -> PlanView:
    """A caption, lyrics and the rest of a song for what `prompt` describes in plain words, such as `a sad song about rain`.

    With `lyrics` of `[Instrumental]` nothing is sung. The answer comes when it is written, without audio codes. As the `plan` of a
    request it becomes the song.
    """
    return _view(await written_song(request, context, owner, "sample", body))


@router.post("/v1/understand", summary="Describe a song", responses=_RESPONSES)
async def understand_song(body: UnderstandRequest, request: Request, context: ContextDep, owner: Owner) -> PlanView:
    """Caption, lyrics, tempo, key, time signature and language of a song, from its audio codes."""
    wrong = (*wrong_fields(context.args, None, body.model, None), *wrong_planner(context.args, body.model))
    if wrong:
        raise wrong_fields_error(wrong)
    heard = await _heard(context, body, owner)
    sampling = Sampling(body.plan_temperature, _UNDERSTANDING.guidance, _UNDERSTANDING.top_k, _UNDERSTANDING.top_p)
    wishes = Wishes(caption="", thinking="metadata", seed=body.plan_seed, sampling=sampling)
    new = NewPlan(order(wishes, codes=heard.codes, source=heard.source), heard.seconds, kind="understand")
    call = PlanCall(new, body.model, body.deadline_s, body.priority)
    return _view(await plan_of_call(request, context, owner, call))


def _thoughtful(args: AppArgs, body: MusicRequest) -> MusicRequest:
    """The request with `thinking`: its own, the model's default, or codes."""
    if body.thinking is not None:
        return body
    default = default_thinking(args.models[body.model or args.default_model or ""])
    takes_codes = body.task_type == "text2music" and body.audio_codes is None
    wanted = "codes" if default == "none" else default
    return body.model_copy(update={"thinking": wanted if takes_codes else "metadata"})


async def _heard(context: Context, body: UnderstandRequest, owner: str) -> _Heard:
    """What a request wants to be described. Raises InvalidRequest, and what keeping a recording from an address raises."""
    if body.audio_codes is not None:
        return _Heard(tuple(body.audio_codes), "", len(body.audio_codes) / CODES_PER_SECOND)
    name = body.source or ""
    song = song_of(name)
    if song is None:
        stored = await find_input(context, "source", name, owner)
        check_sound("source", stored)
        heard = _Heard((), f"input:{stored.sha256}", stored.seconds)
    else:
        heard = await context.threads.run(_heard_song, context, name, song, owner)
    if not heard.codes:
        await context.threads.run(_check_hearing, context, body, heard)
    return heard


def _heard_song(context: Context, name: str, song: SongName, owner: str) -> _Heard:
    """A song of a job, with its audio codes if they were kept. Raises InvalidRequest and ArtifactsUnavailable."""
    file = find_song(context, "source", name, song, owner)
    codes = codes_from_file(context.artifacts.get(file.latents)) if file.latents else None
    return _Heard(tuple(codes), "", file.seconds) if codes else _Heard((), name, file.seconds)


def _check_hearing(context: Context, body: UnderstandRequest, heard: _Heard) -> None:
    """Raise InvalidRequest for a recording that is too long, and where the planner runs without a model that could hear it."""
    if heard.seconds > LONGEST_S:
        raise wrong_field("source", heard.source, f"is {heard.seconds:g} s long; it must have at most {LONGEST_S:g} s")
    model = body.model or context.args.default_model or ""
    if has_planners_alone(living_workers(context), model, context.args.models.get(model)):
        raise wrong_field(
            "source",
            heard.source,
            "has no audio codes yet, and they can be found only where the planner runs in the workers (planner.placement); send "
            "`audio_codes`, or a song whose codes were kept",
        )


def _view(plan: Plan) -> PlanView:
    return PlanView.model_validate(plan.to_json() | {"codes": [list(song) for song in plan.codes]})
