"""Calls that are answered with a plan. What happens when the caller leaves."""

import asyncio
from typing import Literal, NamedTuple

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app import errors
from serve_app.api.audio_names import named_audio, with_known_audio
from serve_app.api.context import Context
from serve_app.api.field_errors import wrong_field, wrong_fields_error
from serve_app.api.planning import kept_language, plan_seed, wrong_planner
from serve_app.api.submission import random_seed, wrong_fields
from serve_app.api.waiting_calls import disconnected
from serve_app.config import AppArgs
from serve_app.engine.planner.orders import order
from serve_app.engine.planner.protocol import PlanKind
from serve_app.engine.planner.requests import wishes_of
from serve_app.music import MusicRequest
from serve_app.music.plan import Plan
from serve_app.music.song_fields import LONGEST_S
from serve_app.store import NewPlan, PlanTask


class PlanCall(NamedTuple):
    """What a call asks for."""

    new: NewPlan
    model: str | None
    """None is the default model."""
    deadline_s: float | None
    """Seconds until the answer; None is the service's default."""
    priority: int


def check_for_planner(args: AppArgs, song: MusicRequest) -> None:
    """Raise InvalidRequest if the configuration does not allow the request, or its model has no planner."""
    wrong = (*wrong_fields(args, song.prompt, song.model, None), *wrong_planner(args, song.model))
    if wrong:
        raise wrong_fields_error(wrong)
    if song.webhook_url:
        raise wrong_field(
            "webhook_url", song.webhook_url, "must be left out: the answer is the plan, and there is no job"
        )


async def written_song(
    request: Request, context: Context, owner: str, kind: Literal["format", "sample"], song: MusicRequest
) -> Plan:
    """Caption, lyrics and the rest that a planner writes where `song` leaves them open, the length as well.

    Raises what `check_for_planner` and `plan_of_song` raise.
    """
    check_for_planner(context.args, song)
    length = {} if "duration" in song.model_fields_set else {"duration": float(LONGEST_S), "auto_duration": True}
    still_open = song.model_copy(update={"thinking": "metadata", **length, **kept_language(song)})
    return await plan_of_song(request, context, owner, kind, still_open)


async def plan_of_song(request: Request, context: Context, owner: str, kind: PlanKind, song: MusicRequest) -> Plan:
    """What a planner makes of a request, as soon as it is there.

    Raises what `plan_of_call` raises, and UnusableAudio, QuotaExceeded and ArtifactsUnavailable for the recordings that it names.
    """
    named = await named_audio(context, song, owner)
    if named.wrong:
        raise wrong_fields_error(tuple(named.wrong))
    known = await with_known_audio(context, named, owner)
    seed = random_seed() if known.seed is None else known.seed
    known = known.model_copy(update={"seed": seed, **plan_seed(known, seed)})
    new = NewPlan(order(wishes_of(known), query=known.prompt), known.duration * known.played_songs, kind=kind)
    return await plan_of_call(request, context, owner, PlanCall(new, known.model, known.deadline_s, known.priority))


async def plan_of_call(request: Request, context: Context, owner: str, call: PlanCall) -> Plan:
    """Let a planner make a plan, and wait for it. It is deleted when it is answered, or its caller leaves.

    Raises TooManyRequests, DeadlineExceeded, InvalidRequest, GenerationError, ServiceStopping, StoreUnavailable, and
    ClientDisconnect when the caller has left.
    """
    queue = context.args.queue
    wait_s = call.deadline_s or queue.default_deadline_s
    with context.limits.waits.hold(owner):
        task = await context.threads.run(
            context.store.plans.submit,
            call.model or context.args.default_model or "",
            call.new,
            owner=owner,
            deadline_s=wait_s,
            max_attempts=queue.max_attempts,
            priority=call.priority,
        )
        try:
            return _result(await _ended(request, context, task, wait_s + 2 * queue.lease_s))
        finally:
            await asyncio.shield(context.threads.run(context.store.plans.delete, task.id))


async def _ended(request: Request, context: Context, task: PlanTask, timeout_s: float) -> PlanTask:
    ending = asyncio.create_task(context.plan_waits.ended(task.id, timeout_s))
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            raise ClientDisconnect
        return ending.result()
    except TimeoutError as error:
        raise errors.DeadlineExceeded from error
    finally:
        ending.cancel()
        leaving.cancel()


def _result(task: PlanTask) -> Plan:
    """The plan of a task that has ended. Raises DeadlineExceeded, InvalidRequest and GenerationError."""
    if task.result is not None:
        return Plan.from_json(task.result)
    failure = task.error
    if failure is not None and failure.code == errors.DeadlineExceeded.code:
        raise errors.DeadlineExceeded
    if failure is not None and failure.code == errors.InvalidRequest.code:
        raise errors.InvalidRequest(failure.message)
    why = f"failed ({failure.code}): {failure.message}" if failure else f"was {task.state}"
    raise errors.GenerationError(f"There is no plan, because it {why}")
