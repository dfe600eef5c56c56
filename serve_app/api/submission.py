"""Submitting a job. Every route that adds a job to the queue calls `submit`."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from starlette.requests import ClientDisconnect

from serve_app.api.adapters import known_adapters, with_scales, wrong_adapters
from serve_app.api.audio_names import named_audio, with_known_audio
from serve_app.api.context import Context
from serve_app.api.field_errors import wrong_fields_error
from serve_app.api.fleet import aligns_lyrics, living_workers, variant_of
from serve_app.api.planning import new_plan, plan_seed, with_estimated_length, with_plan, wrong_thinking
from serve_app.api.repeated_calls import WaitingCall
from serve_app.background.webhook_sender import check_url
from serve_app.config import AdapterArgs, AppArgs, Variant
from serve_app.errors import InvalidRequest, NotFound, WrongField
from serve_app.jobs import Job
from serve_app.music import COMMON_TASKS, MAX_SEED, MAX_VARIATIONS, SOURCE_TASKS, TASKS, MusicRequest, TaskType
from serve_app.music.song_length import codes_length_s
from serve_app.plurals import alternatives
from serve_app.store import WorkerRow
from serve_app.store.jobs import Admission, OnceKey, fingerprint

NOT_BLANK: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"
"""A prompt must not be blank. `MusicRequest` itself allows it, because jobs of earlier versions may have a blank prompt."""


class Origin(NamedTuple):
    """The foreign API that a request came by."""

    family: str = ""
    """Its name in the table of families; empty for a native request."""
    warnings: tuple[str, ...] = ()
    """Sentences for the job about what its client asked for and does not get."""


NATIVE: Final = Origin()


async def submit(
    context: Context,
    request: MusicRequest,
    owner: str,
    idempotency_key: str | None = None,
    *,
    origin: Origin = NATIVE,
    call: WaitingCall | None = None,
) -> tuple[Job, bool]:
    """Add a job to the queue. Return the job, which is on disk by then, and whether it is new.

    Fills in the model, the seeds, the adapters' scales and the length of audio codes that the request leaves out. A job is not
    new if the owner has submitted the same request with the same idempotency key before, or if a waiting `call` takes over the
    job of an earlier one.
    Raises InvalidRequest, UnusableAudio, IdempotencyConflict, QuotaExceeded, QueueFull, StoreUnavailable and ArtifactsUnavailable;
    also ClientDisconnect if the waiting caller has left before there was a job.
    """
    adapters = await known_adapters(context, request.model) if request.lora else None
    named = await named_audio(context, request, owner)
    wrong = [
        *_wrong_for_service(context.args, request, adapters),
        *await _wrong_for_model(context, request),
        *named.wrong,
    ]
    if wrong:
        raise wrong_fields_error(tuple(wrong))
    given = request
    request = await with_known_audio(context, named, owner)
    mark = _fingerprint(given, request)
    if call is not None and idempotency_key is None:
        taken_over = await context.repeated_calls.taken_over(call, owner, mark)
        if taken_over is not None:
            return taken_over, False
        if call.is_left:
            raise ClientDisconnect
    planned = await with_plan(context, request, owner)
    request = _filled_in(context.args, planned.request, adapters)
    queue = context.args.queue
    try:
        return await context.threads.run(
            context.store.jobs.submit,
            request,
            owner=owner,
            deadline_s=request.deadline_s or queue.default_deadline_s,
            max_attempts=queue.max_attempts,
            once=OnceKey(idempotency_key, mark) if idempotency_key or call else None,
            admission=Admission(queue, context.args.inputs.ttl_s, origin.family, plan=new_plan(request, planned.plan)),
            warnings=(*origin.warnings, *_warnings(given, request), *planned.warnings),
        )
    except NotFound as error:  # an input was deleted or expired after it was checked
        raise InvalidRequest(error.message) from error


def _wrong_for_service(
    args: AppArgs, request: MusicRequest, adapters: Mapping[str, AdapterArgs] | None
) -> Iterator[WrongField]:
    """The fields that this service's configuration does not allow; `MusicRequest` has checked everything else."""
    yield from wrong_fields(args, request.prompt, request.model, request.webhook_url)
    yield from wrong_thinking(args, request.thinking, request.model)
    yield from wrong_adapters([use.model_dump() for use in request.lora], adapters)
    if request.webhook_url and args.webhook_secret:
        try:
            check_url(request.webhook_url, args.webhooks.allow_private)
        except InvalidRequest as error:
            yield WrongField("webhook_url", request.webhook_url, error.message.removeprefix("webhook_url: "))


def wrong_fields(args: AppArgs, prompt: object, model: object, webhook_url: object) -> Iterator[WrongField]:
    """The fields with text that this service's configuration does not allow. `MusicRequest` checks all other values."""
    if isinstance(prompt, str) and prompt and not prompt.strip():
        yield WrongField("prompt", prompt, "must not be blank")
    if isinstance(model, str) and model not in args.models:
        yield WrongField("model", model, f"must be a served model: {alternatives(args.models)}")
    if isinstance(webhook_url, str) and not args.webhook_secret:
        yield WrongField(
            "webhook_url",
            webhook_url,
            "must be left out: this service cannot sign webhooks, because its operator has set no webhook_secret",
        )


async def _wrong_for_model(context: Context, request: MusicRequest) -> list[WrongField]:
    """The fields that ask for what the request's model is known to be unable to do; each names the models that can."""
    if request.task_type in COMMON_TASKS and not request.needs_alignment:
        return []
    return await context.threads.run(_unable, context, request)


def _unable(context: Context, request: MusicRequest) -> list[WrongField]:
    workers = living_workers(context)
    name = request.model or context.args.default_model or ""
    found = (_wrong_task(context, workers, name, request.task_type), _wrong_alignment(context, workers, name, request))
    return [wrong for wrong in found if wrong is not None]


def _wrong_task(context: Context, workers: Sequence[WorkerRow], name: str, task: TaskType) -> WrongField | None:
    served = context.args.models
    variants: dict[str, Variant | None] = {each: variant_of(workers, each, model) for each, model in served.items()}
    variant = variants.get(name)
    if variant is None or task in TASKS[variant]:
        return None
    able = [other for other, kind in variants.items() if kind is not None and task in TASKS[kind]]
    return WrongField("task_type", task, f"cannot be done by {name!r}, a {variant} model; {_advice(able)}")


def _wrong_alignment(
    context: Context, workers: Sequence[WorkerRow], name: str, request: MusicRequest
) -> WrongField | None:
    if not request.needs_alignment or aligns_lyrics(workers, name) is not False:
        return None
    able = [other for other in context.args.models if aligns_lyrics(workers, other)]
    field = "lyrics_timing" if request.lyrics_timing else "best_of"
    message = f"needs a model that can tell when words are sung, and {name!r} cannot; {_advice(able)}"
    return WrongField(field, str(getattr(request, field)), message)


def _advice(able: Sequence[str]) -> str:
    """What to do if a model cannot do what a request asks for; `able` are the models that are known to be able to."""
    return f"send it to the model {alternatives(able)}" if able else "no model of this service can do it"


def _fingerprint(given: MusicRequest, known: MusicRequest) -> str:
    """The fingerprint for an idempotency key. A voice counts by its name, since its recording may change before a repetition.

    An open length counts as what it is without a planner, as in versions that had none, unless the request asks for a planner.
    """
    if not known.is_planned:
        known = with_estimated_length(known)
    if given.voice is None:
        return fingerprint(known)
    return fingerprint(known.model_copy(update={"voice": given.voice, "reference": None}))


def _warnings(given: MusicRequest, known: MusicRequest) -> tuple[str, ...]:
    """One sentence for what a request says and the recordings that it names overrule."""
    if given.task_type in SOURCE_TASKS and "duration" in given.model_fields_set and given.duration != known.duration:
        return (f"duration is ignored: the source, and what is added to it, make a song of {known.duration:g} s.",)
    return ()


def _filled_in(args: AppArgs, request: MusicRequest, adapters: Mapping[str, AdapterArgs] | None) -> MusicRequest:
    """The request with a model, its seeds, its adapters' scales and the length of its audio codes.

    Every attempt therefore generates the same song. A stored request leaves defaults out, so that `MusicRequest` itself cannot
    tell a duration of 60 s from none.
    """
    found: dict[str, Any] = {"model": request.model or args.default_model}
    if request.audio_codes and "duration" not in request.model_fields_set:
        found["duration"] = codes_length_s(len(request.audio_codes))
    if adapters is not None:
        found["lora"] = with_scales(request.lora, adapters)
    seed = random_seed() if request.seed is None else request.seed
    found |= {"seed": seed, **plan_seed(request, seed)}
    if request.retake_variance > 0 and request.retake_seed is None:
        found["retake_seed"] = random_seed()
    return request.model_copy(update=found)


def random_seed() -> int:
    """A seed that leaves room below MAX_SEED for the seeds of the other variations."""
    return secrets.randbelow(MAX_SEED - MAX_VARIATIONS)
